"""Whether float frames have the range that the model reads."""

import torch
from torch import Tensor

LARGEST = 1.5
"""Largest absolute value of a pixel. Means that a decoder predicts may lie outside [-1, 1] by some."""


def wrong_range(frames: Tensor) -> str:
    """What is wrong with the range of float frames that should lie in [-1, 1]; empty if nothing is.

    Frames from 0 to 1 are told from bright ones by their levels: of level k they have k / 255, where the model reads
    2 k / 255 - 1, an odd number of 255ths. Without any level, only frames that have no dark pixel at all look alike.
    """
    if frames.numel() == 0:
        return ""
    low, high = (value.item() for value in torch.aminmax(frames))
    if not (low >= -LARGEST and high <= LARGEST):
        if low >= 0 and high <= 255:
            return f"floats from {low:.4g} to {high:.4g}, as levels are (frames / 127.5 - 1 is in range)"
        return f"floats from {low:.4g} to {high:.4g}"
    # Frames of one value show no scale.
    if 0 <= low < high <= 1 and not bool(_odd_levels(frames)):
        return f"floats from {low:.4g} to {high:.4g}, as levels / 255 are (frames * 2 - 1 is in range)"
    return ""


def _odd_levels(frames: Tensor) -> Tensor:
    """Whether all values are an odd number of 255ths, up to the rounding of their type."""
    levels = frames * 255.0
    nearest = 2.0 * torch.floor(levels * 0.5) + 1.0
    return ((levels - nearest).abs() <= 512.0 * torch.finfo(frames.dtype).eps).all()
