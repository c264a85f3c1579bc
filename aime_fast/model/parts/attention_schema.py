"""Attention schema: slots that bind to regions of a frame, and the top-down prior that predicts their maps."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.parts.layers import ConvBlock, in_float32, mlp, wide
from aime_kernels import slot_attention

LEAST_SHARE = 1e-6
"""A map's least value when it is copied: what was nowhere in a frame may be somewhere in the next."""


@dataclass
class Attention:
    """The schema of [B, T] frames."""

    slots: Tensor  # [B, T, S, d], normalised
    maps: Tensor  # [B, T, S, P]: where each slot looks; sums to 1 over the P = G*G grid cells
    centres: Tensor  # [B, T, S, 2]: centre of mass (x, y) of each map, in [-1, 1]
    assignments: Tensor  # [B, T, S, P]: which slot owns a cell; sums to 1 over the slots

    def until(self, frames: int) -> "Attention":
        """Of the first frames alone."""
        return Attention(*(x[:, :frames] for x in (self.slots, self.maps, self.centres, self.assignments)))


class BottomUpAttention(nn.Module):
    """Slot attention (Locatello et al. 2020) over the trunk's features, the slots seeded from the context.

    Queries have no bias: the same for all slots, it would leave the softmax over slots as it is, and AdamW would move
    it by the rounding of its gradient.
    """

    cells: Tensor
    """[P, 2]: position (x, y) of every grid cell, in [-1, 1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, cells = config.slot_dim, config.grid**2
        self.register_buffer("cells", cell_positions(config.grid), persistent=False)
        self.iterations, self.num_slots = config.slot_iterations, config.num_slots
        self.position = nn.Parameter(torch.randn(cells, dim) * 0.5)
        self.inputs = nn.Linear(2 * config.encoder_width, dim)
        self.input_norm = nn.LayerNorm(dim)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.seed = nn.Linear(config.context_dim, self.num_slots * dim)
        nn.init.normal_(self.seed.bias)
        self.query_norm = nn.LayerNorm(dim, bias=False)
        self.query = nn.Linear(dim, dim, bias=False)
        self.update = nn.GRUCell(dim, dim)
        self.refine = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.slot_norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor, context: Tensor) -> Attention:
        """Features [B*T, F, G, G] and context [B, T, C] -> slots and maps; all frames at once."""
        inputs = self.input_norm(self.inputs(features.flatten(2).transpose(1, 2)) + self.position)
        keys, values = self.key_value(inputs).chunk(2, dim=-1)
        slots = wide(self.seed(context.flatten(0, 1))).unflatten(-1, (self.num_slots, -1))
        for _ in range(self.iterations):
            updates, assignments, maps = in_float32(slot_attention)(self.query(self.query_norm(slots)), keys, values)
            slots = self.update(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.refine(slots)
        slots = self.slot_norm(wide(slots))
        batch = context.shape[:2]
        centres = in_float32(torch.matmul)(maps, self.cells)
        return Attention(*(x.unflatten(0, batch) for x in (slots, maps, centres, assignments)))


class TopDownAttention(nn.Module):
    """p(map_t | map_{t-1}, h_{t-1}, z_{t-1}, a_{t-1}) and the motion field, from the same inputs.

    The predicted map is the copied one times a correction, and the motion starts at zero: the part starts as a copy.
    The correction has no bias, which the softmax over cells would ignore.
    """

    compiled = ("forward",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid, width = config.grid, 2 * config.slot_dim
        self.maps = nn.Conv2d(config.num_slots, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(width, config.grid, config.grid))
        self.state = mlp(config.hidden_dim + config.latent_dim + config.action_dim, 2 * width, width)
        self.layer = ConvBlock(width, width)
        self.logits = nn.Conv2d(width, config.num_slots, 3, padding=1, bias=False)
        self.motion = nn.Conv2d(width, 2, 3, padding=1)
        for start in (self.logits.weight, self.motion.weight, cast(Tensor, self.motion.bias)):
            nn.init.zeros_(start)

    def forward(self, maps: Tensor, hidden: Tensor, latent: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the maps predicted for frames 1 .. T-1 [B, T-1, S, P]; motion [B, T-1, 2, P], a cell is 2 / (G - 1).

        The inputs are those of the frames before: maps [B, T-1, S, P], h [B, T-1, H], z [B, T-1, D], a [B, T-1, A].
        """
        shape = maps.shape[:2]
        grid = (maps * self.grid**2).reshape(-1, maps.shape[2], self.grid, self.grid)
        state = self.state(torch.cat([hidden, latent, actions], dim=-1)).view(-1, len(self.position), 1, 1)
        joint = self.layer(F.silu(self.maps(grid) + self.position + state))
        copied = wide(maps).clamp_min(LEAST_SHARE).log().flatten(0, 1)
        log_maps = (copied + wide(self.logits(joint)).flatten(2)).log_softmax(-1)
        motion = wide(self.motion(joint)).flatten(2)
        return log_maps.unflatten(0, shape), motion.unflatten(0, shape)


def cell_positions(grid: int) -> Tensor:
    """Positions (x, y) of the cells of a grid, row by row, [grid * grid, 2]; the corners are at -1 and 1."""
    line = torch.linspace(-1, 1, grid)
    return torch.stack([line.repeat(grid), line.repeat_interleave(grid)], dim=-1)
