"""The arithmetic of a step by phase: operations of products, and bytes that operators read and write."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from aime_fast.profiling.flops import operations
from aime_fast.profiling.launches import FREE, Launches


@dataclass(frozen=True)
class Work:
    """What one phase of a step computes."""

    flops: float = 0.0
    """Multiplications and additions of matrix products, convolutions, attention and recurrent networks."""
    bytes: float = 0.0
    """Sizes of all that operators read and write; views are free, and caches are not taken into account."""
    launches: float = 0.0
    """Operators that a GPU would start; see `Launches`."""


class Arithmetic(Launches):
    """Counts, beside calls, operations and bytes of what runs inside, as it runs on this device."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        """Operations by phase."""
        self.bytes: Counter[str] = Counter()
        """Bytes by phase."""

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        name = str(function)
        if not (function.is_view or name.startswith((*FREE, "profiler."))):
            self.flops[self.phase] += operations(function, args, kwargs or {}, result)
            self.bytes[self.phase] += sum(map(_size, _tensors((args, kwargs, result))))
        return result


def _tensors(nest: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor; an expanded one has no more than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
