"""uint8 frames [F, H, W, 3] to float32 [F, 3, H, W]; one program handles 1024 pixels of one frame."""

import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.launch import Launch

# A fused multiply-add would round once, and level 255 would not be exactly 1.
LAUNCH = Launch(1024, 4, None)


@triton.jit
def frames_fwd_kernel(
    frames,  # uint8 [F, pixels, 3]
    out,  # float32 [F, 3, pixels]
    pixels,
    BLOCK: tl.constexpr,
):
    """Bytes are read 16 at a time and separated by channel on the chip."""
    n = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    byte = tl.arange(0, 4 * BLOCK)
    inside = (byte < 3 * BLOCK) & (3 * first + byte < 3 * pixels)
    start = n * 3 * pixels + 3 * first
    levels = tl.load(frames + start + byte, mask=inside, other=0).to(tl.float32)
    pixel = tl.arange(0, BLOCK)
    for channel in tl.static_range(3):
        value = tl.gather(levels, 3 * pixel + channel, 0) * (2.0 / 255.0) - 1.0
        tl.store(out + (3 * n + channel) * pixels + first + pixel, value, mask=first + pixel < pixels)


def launch(kernel: triton.JITFunction, tensors: list[Tensor]) -> None:
    """tensors: frames [F, H, W, 3] and the contiguous result [F, 3, H, W]."""
    frames, out = tensors
    count, _, height, width = out.shape
    pixels = height * width
    grid = (count, triton.cdiv(pixels, LAUNCH.block))
    LAUNCH.start(kernel, grid, frames.contiguous(), out, pixels, BLOCK=LAUNCH.block)
