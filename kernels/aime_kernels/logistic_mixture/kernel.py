"""`triton_kernel.py` as torch operators, with and without gradients."""

import importlib

import torch
from torch import Tensor

from aime_kernels.torch_operator import kernel_operator

TILE = 128
"""Pixels of one program."""
_MODULE = "aime_kernels.logistic_mixture.triton_kernel"


def kernel_obstacle(x: Tensor, centre: Tensor, blocks: Tensor, *_: object) -> str | None:
    """The reason why the kernels cannot take these parameters, or None."""
    if blocks.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        return f"parameters of {blocks.dtype}, built for bfloat16, float32 and float64"
    return None


def kernel_terms(x: Tensor, centre: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference_terms`; blocks may be bfloat16."""
    log_probs, mean = pixel_terms(x, centre, blocks)
    return log_probs.sum(1), mean


def kernel_gradients(
    x: Tensor, centre: Tensor, blocks: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference_gradients`, with blocks that may be bfloat16; contiguous ones are overwritten by their gradient."""
    blocks = blocks.contiguous()
    sums, of_centre = pixel_gradients(x, centre, blocks, of_nats, of_error)
    log_prob, error = sums.sum(1).unbind(1)
    return log_prob, error, blocks, of_centre


def _tiles(x: Tensor) -> int:
    return -(-x.shape[2] // TILE)


pixel_terms = kernel_operator(
    "pixel_terms",
    _MODULE,
    "x centre blocks -> log_probs means",
    lambda x, *_: (x.new_empty(x.shape[0], _tiles(x)), x.new_empty(x.shape)),
)
"""x, centre [N, 3, P], blocks [N, M, 10, P] -> log p of each tile [N, tiles] and mean [N, 3, P]."""


@torch.library.custom_op("aime_kernels::pixel_gradients", mutates_args=("blocks",))
def pixel_gradients(
    x: Tensor, centre: Tensor, blocks: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor]:
    """For contiguous blocks, which it overwrites: log p and squared error of each tile [N, tiles, 2], and of centre.

    A kernel's scalar is float32, so of_error is rounded to that for any dtype.
    """
    module = importlib.import_module(_MODULE)
    made = _sums_and_centre(x)
    module.launch(module.pixel_gradients_kernel, [x, centre, blocks, of_nats, *made], of_error)
    return made


@pixel_gradients.register_fake
def _sums_and_centre(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], _tiles(x), 2), x.new_empty(x.shape)
