"""The word in `AIME_KERNELS`, looked at before anything slow is imported."""

import os

from aime_fast.errors import UserError

WORDS = ("reference", "triton", "auto")
"""What `aime_kernels.dispatch` understands."""


def check_kernel_mode() -> None:
    """`UserError` where `AIME_KERNELS` holds another word."""
    word = os.environ.get("AIME_KERNELS", "auto")
    if word not in WORDS:
        raise UserError(f"AIME_KERNELS is {word!r}; set it to reference, triton or auto, or unset it")
