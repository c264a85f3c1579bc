"""Frames in and out of uint8: window gathering, normalisation, and its exact inverse."""

from aime_kernels.frames.reference import frames_to_levels, gather_windows, normalise_frames

__all__ = ["frames_to_levels", "gather_windows", "normalise_frames"]
