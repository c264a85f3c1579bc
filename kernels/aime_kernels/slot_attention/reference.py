"""One round of slot attention (Locatello et al. 2020, arXiv:2006.15055, algorithm 1 without the GRU)."""

import torch
from torch import Tensor


def slot_attention(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`aime_kernels.slot_attention` in tensor algebra."""
    logits = torch.bmm(slots * slots.shape[-1] ** -0.5, keys.transpose(1, 2))
    log_assignments = logits.log_softmax(dim=1)
    maps = log_assignments.softmax(dim=2)
    return torch.bmm(maps, values), log_assignments.exp(), maps
