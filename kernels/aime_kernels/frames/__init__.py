"""Frames in and out of uint8: cutting windows, normalisation, and its exact inverse."""

from aime_kernels.frames.op import normalise_frames
from aime_kernels.frames.reference import frames_to_levels, gather_windows

__all__ = ["frames_to_levels", "gather_windows", "normalise_frames"]
