"""Checks the environment variable `AIME_KERNELS` before anything slow is imported."""

import os

from aime_fast.errors import UserError

WORDS = ("reference", "triton", "auto")
"""The values that `aime_kernels.dispatch` accepts."""


def check_kernel_mode() -> None:
    """`UserError` if `AIME_KERNELS` has another value."""
    word = os.environ.get("AIME_KERNELS", "auto")
    if word not in WORDS:
        raise UserError(f"AIME_KERNELS is {word!r}; set it to reference, triton or auto, or unset it")
