"""Priors of the latent state: one file each, listed by name."""

from difflib import get_close_matches

from aime_fast.config import ModelConfig
from aime_fast.errors import UserError
from aime_fast.model.priors.dpgmm import DPGMMPrior
from aime_fast.model.priors.prior import Prior

PRIORS: dict[str, type[Prior]] = {
    "dpgmm": DPGMMPrior,
}
"""Priors by the name that `ModelConfig.prior` gives."""


def make_prior(config: ModelConfig) -> Prior:
    """The prior that the configuration names; `UserError` for an unknown name."""
    if config.prior not in PRIORS:
        nearest = get_close_matches(config.prior, PRIORS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"model.prior={config.prior} is unknown{hint} (priors: {', '.join(PRIORS)})")
    return PRIORS[config.prior](config)
