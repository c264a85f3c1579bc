"""The LSTM and GRU cells as cuDNN runs them: on a CPU torch cuts them into other operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from aime_fast.planning.counting import Counting, tensors_of

_ONE_ON_A_GPU = (torch.lstm, torch.gru_cell)
FORWARD, BACKWARD = "recurrent", "recurrent_backward"
_RESERVE = 6
"""Numbers that cuDNN keeps of each state for the backward pass: four gates, the cell and its tanh."""


class AsOneOperator(TorchFunctionMode):
    """Counts a recurrent network as one call forward and one for each backward pass."""

    def __init__(self, counting: Counting) -> None:
        super().__init__()
        self.counting = counting

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if function not in _ONE_ON_A_GPU:
            return function(*args, **(kwargs or {}))
        tensors = list(tensors_of(args))
        parts = (3, 7) if function is torch.gru_cell else (tensors[0].shape[1] + 1, 2 * tensors[0].shape[1] + 3)
        return _Opaque.apply(self.counting, parts, lambda: function(*args, **(kwargs or {})), *tensors)


# Kernels (forward, backward). A GRU cell: two products and the gates; the gates' gradient, four products, two sums. The
# LSTM of cuDNN: the inputs' product, then one kernel a frame; two a frame, then gradients of weights and inputs (T=32
# has 81 kernels more than T=16 on an H200, in one pass forward and two backward).
class _Opaque(torch.autograd.Function):
    """Calls a function; hides what it calls, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, counting: Counting, parts: tuple[int, int], call: Callable[[], object], *tensors: Tensor
    ) -> object:
        with _hidden(counting), torch.no_grad():
            outputs = call()
        made = list(tensors_of(outputs))
        ctx.flops = _flops(tensors)
        counting.add(FORWARD, ctx.flops, tensors, made, count=parts[0])
        ctx.set_materialize_grads(False)
        ctx.counting, ctx.parts, ctx.tensors, ctx.made = counting, parts[1], tensors, [made[0].detach()]
        ctx.reserve = made[0].new_empty(_RESERVE * made[0].numel())
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with _hidden(ctx.counting):
            wanted = [torch.empty_like(x) if x.requires_grad else None for x in ctx.tensors]
        made = [x for x in wanted if x is not None]
        ctx.counting.add(BACKWARD, 2 * ctx.flops, [*ctx.tensors, *ctx.made], made, count=ctx.parts)
        return None, None, None, *wanted


def _flops(tensors: Sequence[Tensor]) -> float:
    """Two a weight and row of the input: each of the rows passes through all matrices once."""
    rows = tensors[0].shape[:-1].numel()
    return 2.0 * rows * sum(x.numel() for x in tensors if x.ndim == 2 and x.requires_grad)


@contextmanager
def _hidden(counting: Counting) -> Iterator[None]:
    counting.hidden = True
    try:
        yield
    finally:
        counting.hidden = False
