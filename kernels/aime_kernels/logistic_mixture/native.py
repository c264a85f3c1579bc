"""`native.cpp` as torch operators, forward and backward: contiguous copies where needed, then one call."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aime_kernels.dispatch import kernel_mode
from aime_kernels.native import attempt, library

_SOURCE = Path(__file__).with_suffix(".cpp")


def native_obstacle(parameters: Tensor) -> str | None:
    """Why the C++ form cannot take these parameters; None when it can."""
    if kernel_mode() == "reference":
        return "AIME_KERNELS=reference"
    if parameters.device.type != "cpu" or parameters.dtype != torch.float32:
        return f"{parameters.dtype} on {parameters.device.type}, built for float32 on a CPU"
    return build_obstacle()


@torch.compiler.assume_constant_result
def build_obstacle() -> str | None:
    """Why this machine has no C++ form, built now if it never was; None where it has."""
    found = attempt(_SOURCE)
    return found if isinstance(found, str) else None


@torch.library.custom_op("aime_kernels::logistic_mixture_terms", mutates_args=(), device_types="cpu")
def native_terms(x: Tensor, centre: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """x, centre [N, 3, P], blocks [N, M, 10, P], float32 -> log p [N] and mean [N, 3, P]."""
    x, centre, blocks = x.contiguous(), centre.contiguous(), blocks.contiguous()
    log_prob, mean = x.new_empty(len(x)), torch.empty_like(x)
    _call("terms", (x, centre, blocks), blocks, (log_prob, mean))
    return log_prob, mean


@native_terms.register_fake
def _(x: Tensor, centre: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape)


@torch.library.custom_op("aime_kernels::logistic_mixture_terms_backward", mutates_args=(), device_types="cpu")
def native_terms_backward(
    x: Tensor, centre: Tensor, blocks: Tensor, of_log_prob: Tensor, of_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of centre and blocks."""
    inputs = [tensor.contiguous() for tensor in (x, centre, blocks, of_log_prob, of_mean)]
    of_centre, of_blocks = torch.empty_like(inputs[1]), torch.empty_like(inputs[2])
    _call("terms_backward", inputs, blocks, (of_blocks, of_centre))
    return of_centre, of_blocks


@native_terms_backward.register_fake
def _(x: Tensor, centre: Tensor, blocks: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return centre.new_empty(centre.shape), blocks.new_empty(blocks.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


native_terms.register_autograd(
    lambda ctx, *grads: (None, *native_terms_backward(*ctx.saved_tensors, *grads)), setup_context=_save
)


def _call(name: str, inputs: Any, blocks: Tensor, outputs: tuple[Tensor, Tensor]) -> None:
    """One of the library's two functions: pointers to read, N, M, P and threads, pointers to write."""
    frames, mixtures, _, pixels = blocks.shape
    sizes = [ctypes.c_long(size) for size in (frames, mixtures, pixels)]
    read, written = ([ctypes.c_void_p(tensor.data_ptr()) for tensor in group] for group in (inputs, outputs))
    getattr(library(_SOURCE), name)(*read, *sizes, ctypes.c_int(torch.get_num_threads()), *written)
