"""Gram matrix of a few long vectors that are stored as lists of tensors."""

from aime_kernels.rgb_gram.op import rgb_gram

__all__ = ["rgb_gram"]
