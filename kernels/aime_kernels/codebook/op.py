"""The nearest codes of a codebook: the public functions, their references, and the operator around the kernel."""

import torch
from torch import Tensor

from aime_kernels.dispatch import call, rounds_products, shapes
from aime_kernels.torch_operator import kernel_operator

SAME = 1e-5
"""Codes whose squared distances differ by less than this per dimension, a hundred roundings, are equally near.
Otherwise the order of a sum would choose between two codes on one encoding, as a static background often has."""


def nearest_codes(encodings: Tensor, codes: Tensor) -> Tensor:
    """The index of the nearest code by squared distance: encodings [M, d], codes [n, d] -> int64 [M]; no gradient.

    Of equally near codes (`SAME`) the first is taken, so that indices depend neither on rounding nor on the device.
    An encoding that is not a number gets the last code. Products are full float32, whatever torch's settings say: TF32
    keeps 11 bits of a factor, which moves a squared distance by a hundred times what `SAME` allows.
    """
    return call("nearest_codes", encodings.device, _nearest, _nearest_by_kernel, _obstacle, encodings, codes)


def distance_to_codes(points: Tensor, codes: Tensor) -> Tensor:
    """The Euclidean distance to the nearest code: points [M, d], codes [n, d] -> [M]; no gradient, no TF32."""
    return call("nearest_codes", points.device, _distance, _distance_by_kernel, _obstacle, points, codes)


def _nearest(encodings: Tensor, codes: Tensor) -> Tensor:
    if rounds_products(encodings.device):
        scores = _distances(encodings, codes).square()
    else:
        scores = torch.addmm((codes**2).sum(1), encodings, codes.t(), alpha=-2)
    near = scores <= scores.amin(1, keepdim=True) + SAME * encodings.shape[1]
    # The smallest index: torch.compile generates ten times more code for an argmax over booleans.
    order = torch.arange(len(codes), dtype=torch.int32, device=encodings.device)
    return torch.where(near, order, len(order) - 1).amin(1).long()


def _distance(points: Tensor, codes: Tensor) -> Tensor:
    return _distances(points, codes).amin(1)


def _distances(points: Tensor, codes: Tensor) -> Tensor:
    """[M, n], by a matrix product where that rounds nothing."""
    exact = rounds_products(points.device)
    products = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist_if_necessary"
    return torch.cdist(points, codes, compute_mode=products)


def _nearest_by_kernel(encodings: Tensor, codes: Tensor) -> Tensor:
    return nearest_operator(encodings, codes)[0]


def _distance_by_kernel(points: Tensor, codes: Tensor) -> Tensor:
    return nearest_operator(points, codes)[1]


def _obstacle(encodings: Tensor, codes: Tensor) -> str | None:
    if not encodings.dtype == codes.dtype == torch.float32:
        return f"{encodings.dtype} and {codes.dtype}, built for float32"
    if encodings.device != codes.device:
        return f"tensors on {encodings.device} and {codes.device}"
    if not encodings.dim() == codes.dim() == 2 or encodings.shape[1] != codes.shape[1] or not codes.numel():
        return f"shapes {shapes(encodings, codes)} do not fit"
    return None


nearest_operator = kernel_operator(
    "nearest_codes",
    "aime_kernels.codebook.triton_kernel",
    "encodings codes -> ids distances",
    lambda encodings, _: (encodings.new_empty(len(encodings), dtype=torch.int64), encodings.new_empty(len(encodings))),
)
"""[M, d], [n, d] -> ids int64 [M] and distances [M]."""
