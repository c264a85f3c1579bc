"""uint8 frames: cut windows out of a store, and map the 256 levels to [-1, 1]."""

import torch
from torch import Tensor


def gather_windows(store: Tensor, starts: Tensor, length: int) -> Tensor:
    """Copy windows of consecutive frames out of a store of frames.

    store: uint8 [F, H, W, 3]; starts: int64 [B], each in [0, F - length]. Returns uint8 [B, length, H, W, 3] with
    `result[b, t] = store[starts[b] + t]`. Raises IndexError (from torch) when a window leaves the store.
    """
    offsets = torch.arange(length, device=starts.device)
    index = (starts[:, None] + offsets).reshape(-1)
    return store.index_select(0, index).view(starts.shape[0], length, *store.shape[1:])


def normalise_frames(frames: Tensor) -> Tensor:
    """`aime_kernels.normalise_frames` in tensor algebra."""
    # Transposing bytes moves a quarter of what transposing floats would.
    return frames.movedim(-1, -3).contiguous().to(torch.float32).mul_(2.0 / 255.0).sub_(1.0)
