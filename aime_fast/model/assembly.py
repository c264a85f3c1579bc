"""The parts of the world model, built from one configuration, and what every pass over them shares."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Protocol

import torch
from torch import Tensor, nn

from aime_fast.config import ModelConfig
from aime_fast.errors import UserError, unknown_name
from aime_fast.model.draws import Draw
from aime_fast.model.frame_range import wrong_range
from aime_fast.model.parts.attention_schema import BottomUpAttention, TopDownAttention
from aime_fast.model.parts.decoder import Decoder
from aime_fast.model.parts.dynamics import Dynamics
from aime_fast.model.parts.layers import CONTRAST
from aime_fast.model.parts.likelihood import FAMILIES, Likelihood
from aime_fast.model.parts.perceiver import CausalPerceiver
from aime_fast.model.parts.posterior import Posterior, Trunk
from aime_fast.model.parts.subimages import subimages
from aime_fast.model.parts.tokenizer import Tokenizer
from aime_fast.model.priors import make_prior
from aime_kernels import normalise_frames


class HeadMaker(Protocol):
    """What may add a head: a module that maps a `LatentState` to a tensor [B, T, ...]."""

    @property
    def name(self) -> str:
        """Name of the head."""

    def head(self, config: ModelConfig) -> nn.Module | None:
        """Make the head; None for no head."""


class Assembly(nn.Module):
    """The parts by name; `UserError` for sizes that do not fit together and for an unknown prior."""

    _range_seen = False
    mean_frame: Tensor
    """[3, H, W] in [-1, 1]: networks read and predict differences to it; zero until the trainer sets it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        check_sizes(config)
        self.register_buffer("mean_frame", torch.zeros(3, config.image_size, config.image_size))
        self.tokenizer = Tokenizer(config)
        self.perceiver = CausalPerceiver(config)
        self.trunk = Trunk(config)
        self.teacher = Trunk(config).requires_grad_(False)
        self.teacher.load_state_dict(self.trunk.state_dict())
        self.posterior = Posterior(config)
        self.decoder = Decoder(config)
        self.prior = make_prior(config)
        self.attention = BottomUpAttention(config)
        self.attention_prior = TopDownAttention(config)
        self.dynamics = Dynamics(config)
        self.heads = nn.ModuleDict()

    def prepare(self, mean_frame: Tensor, frames: int) -> None:
        """Take over what the model must know of its data: the mean frame [3, H, W] and the number of frames."""
        self.mean_frame.copy_(mean_frame)
        self.prior.frames_in_data.fill_(max(frames, 1))

    def add_heads(self, makers: Iterable[HeadMaker]) -> None:
        """Register heads as `self.heads[name]`, after all other parts: theirs are the last initial weights drawn."""
        for maker in makers:
            if head := maker.head(self.config):
                self.heads[maker.name] = head

    @property
    def declared_draws(self) -> list[Draw]:
        """The draws of all parts; their order fixes the numbers that a key gives."""
        parts = (self.prior, self.posterior, self.tokenizer, self.dynamics, self.decoder.keeping)
        return [draw for part in parts for draw in part.draws]

    def standardise(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, T, 3, H, W] -> the networks' input [B*T, 3, H, W], channels last, and the frames' `subimages`."""
        flat = ((frames.flatten(0, 1) - self.mean_frame) * CONTRAST).contiguous(memory_format=torch.channels_last)
        return flat, subimages(frames, self.decoder.patch).contiguous()

    def likelihood(self, latents: Tensor, kept: Tensor | None = None) -> Likelihood:
        """p(x | z, kept) of z [B, T, D] and frames seen before, [B, T, 3, H, W]; without them nothing is kept."""
        return self.with_masks(latents, kept=kept)[0]

    def with_masks(
        self, latents: Tensor, without: Sequence[int] = (), kept: Tensor | None = None
    ) -> tuple[Likelihood, Tensor]:
        """p(x | z, kept) of z [B, T, D] without some slots, and the masks of the others, [B, T, S, P]."""
        features, centre, masks = self.decoder(latents, self.mean_frame, without, kept)
        return FAMILIES[self.config.likelihood](features, self.decoder.head_weight, centre), masks

    def check(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The frames [B, T, 3, H, W] as floats in [-1, 1]; `UserError` for other types and shapes of the inputs."""
        size = self.config.image_size
        if observations.ndim != 5 or observations.shape[2:] != (3, size, size):
            raise UserError(f"observations are {tuple(observations.shape)}; the model reads [B, T, 3, {size}, {size}]")
        wanted = (*observations.shape[:2], self.config.action_dim)
        if actions.shape != wanted:
            raise UserError(f"actions are {tuple(actions.shape)}; the model reads {wanted}: check action_dim")
        if observations.dtype == torch.uint8:
            return normalise_frames(observations.movedim(2, -1))
        if not observations.is_floating_point():  # levels of another type would pass as values in [-1, 1]
            raise UserError(f"observations are {observations.dtype}; the model reads uint8, or floats in [-1, 1]")
        return observations

    def check_range(self, observations: Tensor) -> None:
        """Raise `UserError` for float frames that are not in [-1, 1], such as levels from 0 to 255, or from 0 to 1.

        It reads values back, so training steps leave it out, and of frames on a GPU only the first are checked.
        """
        if observations.is_floating_point() and not (observations.is_cuda and self._range_seen):
            self._range_seen = True
            if problem := wrong_range(observations.detach()):
                raise UserError(f"observations are {problem}; the model reads uint8, or floats in [-1, 1]")


def check_sizes(config: ModelConfig) -> None:
    """Raise `UserError` for an unknown likelihood and for sizes that do not fit together."""
    if config.likelihood not in FAMILIES:
        raise unknown_name("likelihood", config.likelihood, FAMILIES)
    least = {field.name: 1 for field in fields(config) if type(field.default) is int}
    least["action_dim"] = 0
    broken = [f"{name} must be at least {low}" for name, low in least.items() if getattr(config, name) < low]
    if not broken:
        rules = {
            "latent_dim must be above num_slots": config.latent_dim > config.num_slots,
            "grid must be an even number": config.grid % 2 == 0,
            "image_size must be a multiple of 4 * grid": config.image_size % (4 * config.grid) == 0,
            "perceiver_dim must be a multiple of perceiver_heads": config.perceiver_dim % config.perceiver_heads == 0,
            "decoder_width must be a multiple of 2": config.decoder_width % 2 == 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise UserError(f"model sizes do not fit: {'; '.join(broken)}")
