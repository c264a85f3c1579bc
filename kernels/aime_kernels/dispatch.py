"""Which implementation of an operator runs: by the device of its tensors, `AIME_KERNELS` and the table of routes.

    AIME_KERNELS=reference  plain PyTorch everywhere
    AIME_KERNELS=triton     the Triton kernel on CUDA, or a ValueError that says why this call has none
    AIME_KERNELS=auto       (default) what `routes.ROUTES` says for the device

On a CPU a Triton kernel runs in Triton's interpreter only, for tests: AIME_KERNELS=triton with TRITON_INTERPRET=1.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from aime_kernels.routes import ROUTES, Route

Mode = Literal["reference", "triton", "auto"]
Result = TypeVar("Result")
_assumed: str | None = None


def kernel_mode() -> Mode:
    """The value of `AIME_KERNELS`. Raises ValueError for an unknown one."""
    if (mode := os.environ.get("AIME_KERNELS", "auto")) not in get_args(Mode):
        raise ValueError(f"AIME_KERNELS is {mode!r}; use reference, triton or auto")
    return cast(Mode, mode)


def route(op: str, device: torch.device) -> Route:
    """The implementation of an operator on a device, before the inputs of a call are looked at."""
    mode, row = kernel_mode(), ROUTES[op]
    if mode == "reference":
        return "reference"
    if mode == "triton" and row.cpu != "native":
        interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        if interpreted or device.type == "cuda":
            return "triton"
    kind = _assumed or device.type
    return row.cuda if kind == "cuda" else row.cpu if kind == "cpu" else "reference"


@contextmanager
def assumed_device(kind: str) -> Iterator[None]:
    """Take the routes of another type of device: what a step would launch there can be counted here."""
    global _assumed
    before, _assumed = _assumed, kind
    try:
        yield
    finally:
        _assumed = before


def call(
    op: str,
    device: torch.device,
    plain: Callable[..., Result],
    kernel: Callable[..., Result],
    obstacle: Callable[..., str | None],
    *inputs: object,
) -> Result:
    """Call the reference `plain`, its compiled form or `kernel` on `inputs`.

    obstacle: called on `inputs` before the kernel; the reason why the kernel cannot take them, or None.
    Raises ValueError where there is such a reason and `AIME_KERNELS=triton`; otherwise the reference runs.
    """
    found = route(op, device)
    if found == "triton":
        reason = obstacle(*inputs)
        if reason is None:
            return kernel(*inputs)
        if kernel_mode() == "triton":
            raise ValueError(f"{op}: no kernel for this call: {reason}; AIME_KERNELS=auto takes the reference")
    # Inside a caller that is being compiled, that compiler fuses the reference.
    if found == "compiled" and not torch.compiler.is_compiling():
        return _compiled(plain)(*inputs)
    return plain(*inputs)


@functools.cache
def _compiled(plain: Callable[..., Result]) -> Callable[..., Result]:
    return torch.compile(plain)


def report() -> list[str]:
    """The mode and the device of this machine, then the operators of each route there, one line each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    taken = {op: route(op, device) for op in ROUTES}
    kinds = [f"{kind}: {', '.join(op for op in taken if taken[op] == kind)}" for kind in sorted({*taken.values()})]
    return [f"AIME_KERNELS={kernel_mode()} on {device.type}", *kinds]


def float_obstacle(*tensors: Tensor) -> str | None:
    """The reason why tensors do not share one device and one of float32 and float64, or None."""
    first = tensors[0]
    if any(tensor.device != first.device for tensor in tensors):
        return f"tensors on {sorted({str(tensor.device) for tensor in tensors})}"
    if any(tensor.dtype != first.dtype for tensor in tensors) or first.dtype not in (torch.float32, torch.float64):
        return f"dtypes {sorted({str(tensor.dtype) for tensor in tensors})}, built for one of float32 and float64"
    return None


def shapes(*tensors: Tensor) -> str:
    """The shapes, for a message."""
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


def padded_size(rows: int, columns: int) -> int:
    """Elements of a tile whose sides, at least 1, are rounded up to powers of two."""
    return 1 << ((rows - 1).bit_length() + (columns - 1).bit_length())
