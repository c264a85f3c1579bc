"""The record that a training pass returns."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

from torch import Tensor

from aime_fast.model.draws import Draws
from aime_fast.model.frame_memory import SingleFrames
from aime_fast.model.parts.attention_schema import Attention
from aime_fast.model.parts.likelihood import Likelihood
from aime_fast.model.parts.tokenizer import Tokens
from aime_fast.model.priors.prior import PriorDistribution
from aime_fast.model.state import LatentState


@dataclass
class Inferred:
    """The posterior of z of [B, T] frames."""

    mean: Tensor  # posterior mean [B, T, D]
    log_var: Tensor  # [B, T, D]
    samples: Tensor  # of the posterior, [B, T, n, D]
    latents: Tensor  # the first sample [B, T, D]
    noisy: Tensor  # this sample with noise, which dynamics and prior read, [B, T, D]
    singles: Tensor | None = None  # a sample of z of each single frame, [B, n, D]
    single_log_q: Tensor | None = None  # its log-density under its posterior, in nats, [B, n]


@dataclass
class SequenceOutputs:
    """What the losses and a user need of a window, as attributes or by key (`outputs["latents"]`).

    Every tensor starts with [B, T], or with [B, T-1] where it is a prediction of frames 1 .. T-1 (docs/shapes.md).
    `recalled_*` and `single*` are of other windows; they are None in a pass without any. A pass with n single frames a
    window has these after the window's own in `features` and `teacher_features`, [B, T + n, ...]. What is drawn there,
    `pixels`, `masks`, `likelihood` and `reconstructions`, is of T frames too, but not of the window's in their order:
    T - n of its own come first, in any order, then the single ones.
    """

    observations: Tensor  # [B, T, 3, H, W] in [-1, 1]
    pixels: Tensor  # the observations as the interleaved sub-images of the likelihood, [B, T, q, 3, h, w]
    posterior_mean: Tensor  # [B, T, D]
    posterior_log_var: Tensor  # [B, T, D]
    samples: Tensor  # Monte Carlo samples of q(z), [B, T, n, D]
    context: Tensor  # c [B, T, C]; c_t depends on frames <= t
    state: LatentState  # of every frame, with the first sample as `latent`, without `cell` and `memory`
    prior: PriorDistribution  # p(z_t | h_{t-1}, a_{t-1}, z_{t-1}) of every frame
    attention: Attention  # slots, maps and owners of the cells, of every frame
    masks: Tensor  # the decoder's: share of each slot in each cell, [B, T, S, P]; sums to 1 over the slots
    prior_log_maps: Tensor  # log of the maps predicted for frames 1 .. T-1, [B, T-1, S, P]
    motion: Tensor  # predicted motion field into frames 1 .. T-1, [B, T-1, 2, P]; a cell is 2 / (G - 1)
    hidden_states: Tensor  # h [B, T, H]; h_t is the LSTM's output after frame t and a_t
    likelihood: Likelihood  # p(x_t | z_t)
    features: Tensor  # trunk features [B, T (+ n), F, G, G]
    teacher_features: Tensor  # the EMA teacher's features [B, T (+ n), F, G, G], without gradient
    token_info: Tokens  # tokens, codes and the tokenizer's reconstruction
    next_token_logits: Tensor  # logits of the tokens of frames 1 .. T-1, [B, T-1, P, num_codes]
    heads: dict[str, Tensor]  # the tasks' heads of the state, [B, T, ...] by task name
    draws: Draws  # the random numbers of this pass
    recalled_nats: Tensor | None = None  # what the latents of earlier windows cost the prior, in nats, [R, T]
    recalled_weight: Tensor | None = None  # what their mean counts, relative to kl_z, 0-d
    singles: SingleFrames | None = None  # the single frames of this pass
    single_kl: Tensor | None = None  # log q(z) - log p(z) of their samples in nats, p of a first frame, [B, n]

    @property
    def latents(self) -> Tensor:
        """z [B, T, D], the first sample."""
        return self.state.latent

    @property
    def slots(self) -> Tensor:
        """[B, T, S, d]."""
        return self.attention.slots

    @property
    def attention_maps(self) -> Tensor:
        """Where each slot attends, [B, T, S, G, G]; sums to 1 over the grid."""
        grid = round(self.attention.maps.shape[-1] ** 0.5)
        return self.attention.maps.unflatten(-1, (grid, grid))

    @property
    def mixture_weights(self) -> Tensor:
        """Weights of the prior's components, [B, T, K]."""
        return self.prior.log_weights.exp()

    @property
    def tokens(self) -> Tensor:
        """int64 [B, T, G, G]."""
        grid = round(self.token_info.ids.shape[-1] ** 0.5)
        return self.token_info.ids.unflatten(-1, (grid, grid))

    @cached_property
    def reconstructions(self) -> Tensor:
        """Mean of p(x | z), [B, T, 3, H, W] in [-1, 1]; with single frames not frame by frame (see above)."""
        return self.likelihood.mean()

    @property
    def perceiver_reconstructions(self) -> Tensor:
        """The tokenizer's reconstruction, [B, T, 3, H, W] in about [-1, 1]."""
        return self.token_info.reconstruction

    def keys(self) -> Iterator[str]:
        """Names that `outputs[name]` knows."""
        yield from (f.name for f in fields(self))
        yield from (name for name, value in vars(type(self)).items() if isinstance(value, (property, cached_property)))

    def __getitem__(self, name: str) -> object:
        if name not in self.keys():
            raise KeyError(f"outputs have no {name!r}; they have {', '.join(self.keys())}")
        return getattr(self, name)
