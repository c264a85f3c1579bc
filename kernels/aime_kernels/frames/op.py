"""`normalise_frames`: the public function, and the operator around its kernel."""

import torch
from torch import Tensor

from aime_kernels.dispatch import call
from aime_kernels.frames import reference
from aime_kernels.torch_operator import kernel_operator


def normalise_frames(frames: Tensor) -> Tensor:
    """Map uint8 levels [B, T, H, W, 3] to float32 [B, T, 3, H, W] in [-1, 1]: level * (2 / 255) - 1. Any H and W.

    Level 0 maps to exactly -1 and level 255 to exactly 1; (value + 1) * 127.5, rounded, is the level again.
    """
    return call("normalise_frames", frames.device, reference.normalise_frames, _by_kernel, _obstacle, frames)


def _by_kernel(frames: Tensor) -> Tensor:
    return frames_operator(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def _obstacle(frames: Tensor) -> str | None:
    if frames.dim() != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        return f"{frames.dtype} {tuple(frames.shape)}, built for uint8 [B, T, H, W, 3]"
    return None


def _outputs(frames: Tensor) -> Tensor:
    count, height, width, _ = frames.shape
    return frames.new_empty(count, 3, height, width, dtype=torch.float32)


frames_operator = kernel_operator(
    "frames(Tensor frames) -> Tensor", _outputs, "aime_kernels.frames.triton_kernel", "frames_fwd_kernel"
)
"""uint8 [F, H, W, 3] -> float32 [F, 3, H, W]."""
