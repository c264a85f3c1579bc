"""A mixture of diagonal Gaussians as the distribution of z, whatever its weights come from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from aime_fast.model.priors.prior import Noise
from aime_kernels import mixture_log_density

APART = 0.15
"""Length of the components' first offsets, whatever the size of z. Of components that start further apart, the one
nearest to the first posteriors explains every z after thirty steps, and the others never learn (docs/log.md)."""


@dataclass
class MixtureDistribution:
    """The prior of every frame: a mixture of K Gaussians."""

    log_weights: Tensor  # log pi [B, T, K]; exp sums to 1
    means: Tensor  # [B, T, K, D]
    log_vars: Tensor  # [B, T, K, D]
    divergences: dict[str, Tensor] = field(default_factory=dict)  # of what the weights come from, [B, T] in nats

    @property
    def mean(self) -> Tensor:
        """[B, T, D]."""
        return (self.log_weights.exp()[..., None] * self.means).sum(-2)

    def log_prob(self, z: Tensor) -> Tensor:
        """log sum_k pi_k N(z; mu_k, s_k) in nats: z [B, T, n, D] -> [B, T, n]."""
        return self.log_prob_and_responsibilities(z)[0]

    def log_prob_and_responsibilities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob(z)` and log p(k | z) [B, T, n, K]."""
        frames = (x.flatten(0, 1) for x in (z, self.log_weights, self.means, self.log_vars))
        log_p, log_r = mixture_log_density(*frames)
        return log_p.view(z.shape[:-1]), log_r.view(*z.shape[:-1], -1)

    def sample(self, noise: Noise) -> Tensor:
        """One draw of z [B, T, D]: a component by its weight, then its Gaussian, which alone is differentiable.

        The component is where the weights' sum passes a uniform number, so like weights and equal numbers choose alike.
        """
        sums = self.log_weights.detach().exp().cumsum(-1)
        passed = sums[..., :-1] <= sums[..., -1:] * noise.uniform(sums[..., :1])
        chosen = passed.sum(-1)[..., None, None].expand(-1, -1, 1, self.means.shape[-1])
        mean, log_var = (x.gather(2, chosen)[:, :, 0] for x in (self.means, self.log_vars))
        return mean + (0.5 * log_var).exp() * noise.normal(mean)

    def split(self, rows: int) -> "tuple[MixtureDistribution, MixtureDistribution]":
        """Those of the first `rows` windows, and those of the others."""
        tensors = self.log_weights, self.means, self.log_vars, *self.divergences.values()
        first, others = zip(*(x.split([rows, len(x) - rows]) for x in tensors), strict=True)
        return self._of(first), self._of(others)

    def until(self, frames: int) -> "MixtureDistribution":
        """Those of the first `frames` frames."""
        tensors = self.log_weights, self.means, self.log_vars, *self.divergences.values()
        return self._of([x[:, :frames] for x in tensors])

    def _of(self, parts: Sequence[Tensor]) -> "MixtureDistribution":
        log_weights, means, log_vars, *divergences = parts
        return MixtureDistribution(log_weights, means, log_vars, dict(zip(self.divergences, divergences, strict=True)))

    def kl_terms(self) -> dict[str, Tensor]:
        """The divergences of sticks and concentration, each [B, T] in nats."""
        return self.divergences
