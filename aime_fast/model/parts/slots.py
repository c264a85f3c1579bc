"""How z is divided among the slots, and layers with weights of each slot's own."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from aime_fast.config import ModelConfig


class Pieces(NamedTuple):
    """Lengths of the pieces of z = [shared, slot 1 .. slot S]."""

    shared: int
    slot: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Pieces":
        """Equal pieces for the slots and for all together; what does not divide is shared."""
        slot = config.latent_dim // (config.num_slots + 1)
        return cls(config.latent_dim - config.num_slots * slot, slot)

    def split(self, latent: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """z [..., D] -> the shared piece [..., D_shared] and the slots' pieces [..., S, D_slot]."""
        shared, rest = latent.split([self.shared, slots * self.slot], -1)
        return shared, rest.unflatten(-1, (slots, self.slot))


class PerSlot(nn.Module):
    """A linear map for each slot. Slots are told apart by their weights, so one slot can keep to one thing."""

    def __init__(self, slots: int, inputs: int, outputs: int, gain: float = 1.0) -> None:
        """Weights start normal with standard deviation gain / sqrt(inputs), biases at zero."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(slots, inputs, outputs) * gain * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(slots, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, inputs] -> [N, S, outputs]."""
        return torch.baddbmm(self.bias.to(x.dtype), x.transpose(0, 1), self.weight.to(x.dtype)).transpose(0, 1)
