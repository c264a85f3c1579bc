"""One round of slot attention (Locatello et al. 2020, arXiv:2006.15055, algorithm 1 without the GRU)."""

import torch
from torch import Tensor


def slot_attention(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Let S slots compete for P positions, then read the mean value of each slot's positions.

    slots: [N, S, d]; keys, values: [N, P, d], one floating dtype. Returns
    - updates [N, S, d] = maps @ values, a convex combination of the values (a mean, never a sum);
    - assignments [N, S, P], softmax over slots of q.k / sqrt(d): sums to 1 over S;
    - maps [N, S, P] = assignments normalised over positions: sums to 1 over P.

    The normalisation over positions is a softmax of the log-assignments, which is the same ratio without an epsilon:
    a slot that loses everywhere still gets a proper, finite map.
    """
    logits = torch.bmm(slots * slots.shape[-1] ** -0.5, keys.transpose(1, 2))
    log_assignments = logits.log_softmax(dim=1)
    maps = log_assignments.softmax(dim=2)
    return torch.bmm(maps, values), log_assignments.exp(), maps
