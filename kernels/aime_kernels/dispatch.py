"""Which implementation of an operator runs: by the device of its tensors, `AIME_KERNELS` and the table of routes.

    AIME_KERNELS=reference  plain PyTorch everywhere
    AIME_KERNELS=triton     the Triton kernel on CUDA, or a ValueError that says why this call has none
    AIME_KERNELS=auto       (default) what `routes.ROUTES` says for the device

On a CPU a Triton kernel runs in Triton's interpreter only, for tests: AIME_KERNELS=triton with TRITON_INTERPRET=1.
On a GPU without Triton, or too old for it, `auto` takes the references: `obstacle_of_device` says why.
"""

import functools
import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from aime_kernels.routes import ROUTES, Route

Mode = Literal["reference", "triton", "auto"]
Result = TypeVar("Result")
_assumed: str | None = None
_OLDEST = (8, 0)
"""The lowest compute capability that the kernels are built and checked for."""


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
    if mode == "triton":
        interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        if interpreted or device.type == "cuda":
            return "triton"
    kind = _assumed or device.type
    found = row.cuda if kind == "cuda" else row.cpu if kind == "cpu" else "reference"
    return "reference" if found == "triton" and obstacle_of_device(device) else found


# A compiler takes the answer as it is: looking for Triton cannot be traced.
@torch.compiler.assume_constant_result
def obstacle_of_device(device: torch.device) -> str | None:
    """The reason why no Triton kernel can run on this CUDA device, or None. Other devices need none: None."""
    return _obstacle_of_gpu(device) if device.type == "cuda" else None


@functools.cache
def _obstacle_of_gpu(device: torch.device) -> str | None:
    try:
        importlib.import_module("triton")
    except (ImportError, OSError) as error:
        return f"Triton cannot be imported ({error})"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler; install gcc"
    if (capability := torch.cuda.get_device_capability(device)) < _OLDEST:
        return "compute capability {}.{}, the kernels need {}.{}".format(*capability, *_OLDEST)
    return None


@contextmanager
def assumed_device(kind: str) -> Iterator[None]:
    """Take the routes of another type of device: what a step would launch there can be counted here."""
    global _assumed
    before, _assumed = _assumed, kind
    try:
        yield
    finally:
        _assumed = before


def rounds_products(device: torch.device) -> bool:
    """Whether torch may round the factors of float32 products there: on a GPU, to the 11 bits of TF32.

    References whose results need all 24 bits avoid such products there. Kernels never round.
    """
    return (_assumed or device.type) == "cuda"


def call(
    op: str,
    device: torch.device,
    plain: Callable[..., Result],
    kernel: Callable[..., Result],
    obstacle: Callable[..., str | None],
    *inputs: object,
) -> Result:
    """Call the reference `plain` or `kernel` on `inputs`.

    obstacle: called on `inputs` before the kernel; the reason why the kernel cannot take them, or None.
    Raises ValueError where the device or the inputs have such a reason and `AIME_KERNELS=triton`; otherwise the
    reference runs.
    """
    if route(op, device) != "triton":
        return plain(*inputs)
    reason = obstacle_of_device(device) or obstacle(*inputs)
    if reason is None:
        return kernel(*inputs)
    if kernel_mode() == "triton":
        raise ValueError(f"{op}: no kernel for this call: {reason}; AIME_KERNELS=auto takes the reference")
    return plain(*inputs)


def report() -> list[str]:
    """The mode and the device of this machine, then the operators of each route there, one line each.

    A last line says why Triton kernels cannot run on the GPU here, if they cannot.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    taken = {op: route(op, device) for op in ROUTES}
    kinds = [f"{kind}: {', '.join(op for op in taken if taken[op] == kind)}" for kind in sorted({*taken.values()})]
    obstacle = obstacle_of_device(device)
    return [
        f"AIME_KERNELS={kernel_mode()} on {device.type}",
        *kinds,
        *([f"no kernels: {obstacle}"] if obstacle else []),
    ]


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
