"""Dynamics between frames: the LSTM over the whole sequence, and the slots predicted from z_t alone."""

import torch
from torch import Tensor, nn

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw
from aime_fast.model.parts.layers import in_float32, mlp, wide


class Dynamics(nn.Module):
    """h_t = LSTM([z_t, c_t, attention state_t, a_t], h_{t-1}), one call for all frames."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.draws: tuple[Draw, ...] = (Draw("latent_noise", "normal", (config.latent_dim,)),)
        inputs = config.latent_dim + config.context_dim + config.attention_state_dim + config.action_dim
        self.lstm = nn.LSTM(inputs, config.hidden_dim, batch_first=True)
        self.start = nn.Parameter(torch.zeros(2, config.hidden_dim))
        for name, parameter in self.lstm.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(parameter)

    def train(self, mode: bool = True) -> "Dynamics":
        """The LSTM, which has no dropout, stays in training mode: cuDNN has no gradients in the other."""
        super().train(mode)
        self.lstm.train()
        return self

    def start_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """The learned state before the first frame, (h, c), each [1, B, H]."""
        h, c = self.start[:, None, None].expand(-1, 1, batch, -1)
        return h.contiguous(), c.contiguous()

    def forward(
        self, latent: Tensor, context: Tensor, attention: Tensor, actions: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """z [B, T, D], c [B, T, C], attention state [B, T, N], a [B, T, A] -> h [B, T, H] and the last (h, c)."""
        return in_float32(self.lstm)(torch.cat([latent, context, attention, actions], dim=-1), state)


class SlotPredictor(nn.Module):
    """Slots of a frame from its z alone: they replace the slots of an imagined frame, which has no pixels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.draws: tuple[Draw, ...] = (Draw("imagination_mask", "mask", probability=config.imagination_dropout),)
        self.slots = (config.num_slots, config.slot_dim)
        self.net = mlp(config.latent_dim, config.mlp_dim, config.num_slots * config.slot_dim, layers=2)

    def forward(self, latent: Tensor) -> Tensor:
        """z [..., D] -> slots [..., S, d]."""
        return wide(self.net(latent)).unflatten(-1, self.slots)
