"""Priors of the latent state: one file each, listed by name."""

from aime_fast.config import ModelConfig
from aime_fast.errors import unknown_name
from aime_fast.model.priors.dpgmm import DPGMMPrior
from aime_fast.model.priors.dpgmm_frame import DPGMMFramePrior
from aime_fast.model.priors.gaussian import GaussianPrior
from aime_fast.model.priors.prior import Prior

PRIORS: dict[str, type[Prior]] = {
    "dpgmm": DPGMMPrior,
    "dpgmm-frame": DPGMMFramePrior,
    "gaussian": GaussianPrior,
}
"""Priors by the name that `ModelConfig.prior` gives."""


def make_prior(config: ModelConfig) -> Prior:
    """The prior that the configuration names; `UserError` for an unknown name."""
    if config.prior not in PRIORS:
        raise unknown_name("--model.prior", config.prior, PRIORS)
    return PRIORS[config.prior](config)
