"""Dynamics between frames: the LSTM over the whole sequence."""

import torch
from torch import Tensor, nn

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw
from aime_fast.model.parts.layers import in_float32

LSTMState = tuple[Tensor, Tensor]
"""Output and cell of the LSTM, each [1, N, H]."""


class Dynamics(nn.Module):
    """h_t = LSTM([z_t, a_t], h_{t-1}): nothing else of a frame enters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.draws: tuple[Draw, ...] = (Draw("latent_noise", "normal", (config.latent_dim,)),)
        self.lstm = nn.LSTM(config.latent_dim + config.action_dim, config.hidden_dim, batch_first=True)
        self.start = nn.Parameter(torch.zeros(2, config.hidden_dim))
        for name, parameter in self.lstm.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(parameter)

    def train(self, mode: bool = True) -> "Dynamics":
        """The LSTM, which has no dropout, stays in training mode: cuDNN has no gradients in the other."""
        super().train(mode)
        self.lstm.train()
        return self

    def start_state(self, batch: int) -> LSTMState:
        """The learned state before the first frame, (h, c), each [1, B, H]."""
        h, c = self.start[:, None, None].expand(-1, 1, batch, -1)
        return h.contiguous(), c.contiguous()

    def forward(self, latent: Tensor, actions: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """z [B, T, D], a [B, T, A] -> h [B, T, H] and the last (h, c)."""
        return in_float32(self.lstm)(torch.cat([latent, actions], dim=-1), state)
