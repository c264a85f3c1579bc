"""What a rank sends, counted from the collectives that torch dispatches, whoever calls them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FACTORS = {"allreduce": 2, "reduce_scatter": 1, "allgather": 1, "alltoall": 1}
"""How often a ring sends (W-1)/W of the longer of its input and output."""


class Collectives(TorchDispatchMode):
    """Counts the elements and the sent bytes of each kind of collective."""

    def __init__(self, world_size):
        super().__init__()
        self.world_size = world_size
        self.elements, self.sent = {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and args:
            name = func._schema.name.removeprefix("c10d::").strip("_")
            kind = next(kind for kind in FACTORS if name.startswith(kind))
            tensors = [[t for t in tree_leaves(arg) if isinstance(t, torch.Tensor)] for arg in args[:2]]
            longest = max(tensors, key=lambda found: sum(t.numel() for t in found))
            numel = sum(t.numel() for t in longest)
            self.elements[kind] = self.elements.get(kind, 0) + numel
            share = FACTORS[kind] * (self.world_size - 1) / self.world_size
            self.sent[kind] = self.sent.get(kind, 0) + share * numel * longest[0].element_size()
        return func(*args, **(kwargs or {}))
