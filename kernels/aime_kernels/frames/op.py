"""uint8 frames: cut windows out of a store, and map the 256 levels to [-1, 1]."""

import torch
from torch import Tensor

from aime_kernels.dispatch import call
from aime_kernels.torch_operator import kernel_operator


def gather_windows(store: Tensor, starts: Tensor, length: int) -> Tensor:
    """Copy windows of consecutive frames out of a store of frames.

    store: uint8 [F, H, W, 3]; starts: int64 [B], each in [0, F - length]. Returns uint8 [B, length, H, W, 3] with
    `result[b, t] = store[starts[b] + t]`. Raises IndexError (from torch) when a window leaves the store.
    """
    index = (starts[:, None] + torch.arange(length, device=starts.device)).reshape(-1)
    return store.index_select(0, index).view(starts.shape[0], length, *store.shape[1:])


def normalise_frames(frames: Tensor) -> Tensor:
    """Map uint8 levels [B, T, H, W, 3] to float32 [B, T, 3, H, W] in [-1, 1]: level * (2 / 255) - 1. Any H and W.

    Level 0 maps to exactly -1 and level 255 to exactly 1; (value + 1) * 127.5, rounded, is the level again.
    """
    return call("normalise_frames", frames.device, reference, _by_kernel, _obstacle, frames)


def reference(frames: Tensor) -> Tensor:
    """`normalise_frames` in tensor algebra."""
    # Transposing bytes moves a quarter of what transposing floats would.
    return frames.movedim(-1, -3).contiguous().to(torch.float32).mul_(2.0 / 255.0).sub_(1.0)


def _by_kernel(frames: Tensor) -> Tensor:
    return frames_operator(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def _obstacle(frames: Tensor) -> str | None:
    if frames.dim() != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        return f"{frames.dtype} {tuple(frames.shape)}, built for uint8 [B, T, H, W, 3]"
    return None


def _outputs(frames: Tensor) -> Tensor:
    count, height, width, _ = frames.shape
    return frames.new_empty(count, 3, height, width, dtype=torch.float32)


frames_operator = kernel_operator("frames_fwd", "aime_kernels.frames.triton_kernel", "frames -> values", _outputs)
"""uint8 [F, H, W, 3] -> float32 [F, 3, H, W]."""
