"""`native.cpp` as torch operators, with and without gradients."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aime_kernels.dispatch import route
from aime_kernels.native import library

_SOURCE = Path(__file__).with_suffix(".cpp")


def native_obstacle(parameters: Tensor) -> str | None:
    """The reason why the C++ form cannot take these parameters, or None."""
    if (found := route("logistic_mixture", parameters.device)) != "native":
        return f"the route on {parameters.device.type} is {found}"
    if parameters.dtype != torch.float32:
        return f"{parameters.dtype}, built for float32"
    return build_obstacle()


@torch.compiler.assume_constant_result
def build_obstacle() -> str | None:
    """The reason why this machine has no C++ form, or None. Builds it if it never was built."""
    found = library(_SOURCE)
    return found if isinstance(found, str) else None


@torch.library.custom_op("aime_kernels::logistic_mixture_terms", mutates_args=(), device_types="cpu")
def native_terms(x: Tensor, centre: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """x, centre [N, 3, P], blocks [N, M, 10, P], float32 -> log p [N] and mean [N, 3, P]; no gradient."""
    x, centre, blocks = x.contiguous(), centre.contiguous(), blocks.contiguous()
    log_prob, mean = x.new_empty(len(x)), torch.empty_like(x)
    _call("terms", (x, centre, blocks), blocks, (), (log_prob, mean))
    return log_prob, mean


@native_terms.register_fake
def _(x: Tensor, centre: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape)


def native_gradients(
    x: Tensor, centre: Tensor, blocks: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference_gradients`; contiguous blocks are overwritten by their gradient."""
    blocks = blocks.contiguous()
    log_prob, error, of_centre = gradients_in_place(x, centre, blocks, of_nats, of_error)
    return log_prob, error, blocks, of_centre


@torch.library.custom_op("aime_kernels::logistic_mixture_gradients", mutates_args=("blocks",), device_types="cpu")
def gradients_in_place(
    x: Tensor, centre: Tensor, blocks: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor, Tensor]:
    """For contiguous blocks, which it overwrites: log p [N], squared error [N] and the gradient of centre."""
    inputs = [tensor.contiguous() for tensor in (x, centre, of_nats)]
    log_prob, error, of_centre = x.new_empty(len(x)), x.new_empty(len(x)), torch.empty_like(inputs[1])
    _call("gradients", inputs, blocks, (ctypes.c_float(of_error), _at(blocks)), (log_prob, error, of_centre))
    return log_prob, error, of_centre


@gradients_in_place.register_fake
def _(x: Tensor, centre: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape[0]), centre.new_empty(centre.shape)


def _call(name: str, inputs: Any, blocks: Tensor, rest: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    """Call a function of the library: pointers to read, N, M, P, threads, other arguments, and pointers to write."""
    if (reason := build_obstacle()) is not None:
        raise RuntimeError(reason)
    frames, mixtures, _, pixels = blocks.shape
    sizes = [ctypes.c_long(size) for size in (frames, mixtures, pixels)]
    threads = ctypes.c_int(torch.get_num_threads())
    getattr(library(_SOURCE), name)(*map(_at, inputs), *sizes, threads, *rest, *map(_at, outputs))


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
