"""The record a forward pass returns."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

from torch import Tensor

from aime_fast.model.draws import Noise
from aime_fast.model.parts.attention_schema import Attention
from aime_fast.model.parts.likelihood import Likelihood
from aime_fast.model.parts.tokenizer import Tokens
from aime_fast.model.priors.dpgmm import MixturePrior


@dataclass
class SequenceOutputs:
    """Everything the losses and a user need of a [B, T] window, as attributes or by key (`outputs["latents"]`)."""

    observations: Tensor
    """[B, T, 3, H, W] in [-1, 1]."""
    pixels: Tensor
    """The same as the interleaved sub-images that the likelihood is over, [B*T, q, 3, h, w]."""
    context: Tensor
    """c [B, T, C]; c_t knows frames <= t."""
    posterior_mean: Tensor
    """[B, T, D]."""
    posterior_log_var: Tensor
    """[B, T, D]."""
    samples: Tensor
    """Monte Carlo samples of q(z), [B, T, n, D]."""
    latents: Tensor
    """z [B, T, D], the first sample."""
    prior: MixturePrior
    """p(z_t | h_{t-1}, c_{t-1}) of every frame."""
    stick_kl: Tensor
    """[B, T], nats."""
    alpha_kl: Tensor
    """[B, T], nats."""
    attention: Attention
    """Slots, maps and attention state of every frame."""
    prior_log_maps: Tensor
    """Log of the maps predicted for frames 1 .. T-1, [B, T-1, S, P]."""
    motion: Tensor
    """Predicted motion field into frames 1 .. T-1, [B, T-1, 2, P], in grid widths."""
    predicted: Tensor
    """Slots predicted from z alone, [B, T, S, d]."""
    hidden_states: Tensor
    """h [B, T, H]."""
    likelihood: Likelihood
    """p(x_t | z_t, slots_t)."""
    features: Tensor
    """Trunk features [B*T, F, G, G]."""
    teacher_features: Tensor
    """The EMA teacher's features, without gradient."""
    token_info: Tokens
    """Tokens, codes and the tokenizer's reconstruction."""
    next_token_logits: Tensor
    """Logits of the tokens of frames 1 .. T-1, [B, T-1, P, num_codes]."""
    noise: Noise
    """The draws behind all this."""

    @cached_property
    def reconstructions(self) -> Tensor:
        """Mean of p(x | z, slots), [B, T, 3, H, W] in [-1, 1]."""
        return self.likelihood.mean().unflatten(0, self.context.shape[:2])

    @property
    def perceiver_reconstructions(self) -> Tensor:
        """The tokenizer's reconstruction, [B, T, 3, H, W] in about [-1, 1]."""
        return self.token_info.reconstruction.unflatten(0, self.context.shape[:2])

    @property
    def tokens(self) -> Tensor:
        """int64 [B, T, G, G]."""
        grid = round(self.token_info.ids.shape[-1] ** 0.5)
        return self.token_info.ids.view(*self.context.shape[:2], grid, grid)

    @property
    def attention_maps(self) -> Tensor:
        """Where each slot looks, [B, T, S, G, G]; sums to 1 over the grid."""
        grid = round(self.attention.maps.shape[-1] ** 0.5)
        return self.attention.maps.unflatten(-1, (grid, grid))

    @property
    def slots(self) -> Tensor:
        """[B, T, S, d]."""
        return self.attention.slots

    @property
    def mixture_weights(self) -> Tensor:
        """pi [B, T, K]."""
        return self.prior.log_weights.exp()

    def keys(self) -> Iterator[str]:
        """Names that `outputs[name]` knows."""
        yield from (f.name for f in fields(self))
        yield from (name for name, value in vars(type(self)).items() if isinstance(value, (property, cached_property)))

    def __getitem__(self, name: str) -> object:
        if name not in self.keys():
            raise KeyError(f"outputs have no {name!r}; they have {', '.join(self.keys())}")
        return getattr(self, name)
