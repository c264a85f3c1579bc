"""uint8 frames [F, H, W, 3], all of them or windows of them, to float32 [N, 3, H, W]: 1024 pixels of one a program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.launch import Launch, launch_for, on_device_of

# A fused multiply-add would round once, and level 255 would not be exactly 1.
LAUNCH = {80: Launch(1024, 4, False), 86: Launch(1024, 4, False), 90: Launch(1024, 4, False)}


@triton.jit
def frames_fwd_kernel(
    store,  # uint8 [frames, pixels, 3]
    starts,  # int64 [B]; not read unless WINDOWS
    out,  # float32 [N, 3, pixels]
    frames,
    length,
    pixels,
    WINDOWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bytes are read 16 at a time and told apart by channel on the chip. A frame outside the store becomes NaN."""
    n = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    source = n
    if WINDOWS:
        source = tl.load(starts + n // length) + n % length
    known = (source >= 0) & (source < frames)
    byte = tl.arange(0, 4 * BLOCK)
    inside = (byte < 3 * BLOCK) & (3 * first + byte < 3 * pixels) & known
    start = source * 3 * pixels + 3 * first
    levels = tl.load(store + start + byte, mask=inside, other=0).to(tl.float32)
    pixel = tl.arange(0, BLOCK)
    for channel in tl.static_range(3):
        value = tl.gather(levels, 3 * pixel + channel, 0) * (2.0 / 255.0) - 1.0
        value = tl.where(known, value, float("nan"))
        tl.store(out + (3 * n + channel) * pixels + first + pixel, value, mask=first + pixel < pixels)


def frames_triton(store: Tensor, starts: Tensor | None, length: int) -> Tensor:
    """Contiguous store [F, H, W, 3] -> [F, 3, H, W], or with starts [B] the windows [B * length, 3, H, W]."""
    frames, height, width, _ = store.shape
    count = frames if starts is None else starts.shape[0] * length
    out = store.new_empty(count, 3, height, width, dtype=torch.float32)
    launch = launch_for(LAUNCH, store.device)
    if out.numel():
        with on_device_of(store):
            frames_fwd_kernel[(count, triton.cdiv(height * width, launch.block))](
                store,
                store if starts is None else starts,
                out,
                frames,
                length,
                height * width,
                WINDOWS=starts is not None,
                BLOCK=launch.block,
                **launch.options(),
            )
    return out
