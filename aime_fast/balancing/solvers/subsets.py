"""All subsets of a few tasks, for solvers that try every active set."""

import torch
from torch import Tensor


def subsets(tasks: int, device: torch.device) -> Tensor:
    """Every subset of the tasks but the empty one last, [2^n, n] bool."""
    numbers = torch.arange(2**tasks - 1, -1, -1, device=device)
    return (numbers[:, None] >> torch.arange(tasks, device=device)) % 2 == 1


def restricted(gram: Tensor, chosen: Tensor) -> Tensor:
    """The matrices [G, n, n] restricted to each subset [S, n], the identity elsewhere: [G, S, n, n]."""
    both = chosen[:, :, None] & chosen[:, None]
    return torch.where(both, gram[:, None], torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
