"""Features of whole windows from a video network that the user brings, for the Frechet video distance.

The network is a TorchScript file, as the I3D network of the FVD is passed on (Unterthiner et al. 2018).
"""

from pathlib import Path

import torch
from torch import Tensor

from aime_fast.errors import UserError
from aime_fast.evaluation.metrics import unit_range
from aime_fast.evaluation.open_loop import Features

OPTIONS = ("rescale", "resize", "return_features")
"""Switches of the usual I3D file: levels to [-1, 1], frames to 224 x 224, features instead of classes."""


def load_video_network(path: str, frames: int, size: int, device: torch.device) -> Features:
    """The network at `path` as a function of windows [B, T, 3, H, W] in [-1, 1] that gives [B, 1, D].

    It is called with levels from 0 to 255, float32 [B, 3, T, H, W], and with those of `OPTIONS` that it has set. It is
    tried on `frames` frames of `size` pixels. `UserError` if it cannot be read, or does not give one vector a window.
    """
    try:
        network = torch.jit.load(str(Path(path)), map_location=device).eval()
        known = {argument.name for argument in network.forward.schema.arguments}
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        raise UserError(
            f"--fvd-weights {path} is no TorchScript network ({_first(error)}); save one with torch.jit"
        ) from error
    switches = {name: True for name in OPTIONS if name in known}

    def features(windows: Tensor) -> Tensor:
        levels = (unit_range(windows.float()) * 255).movedim(1, 2).to(device)
        return network(levels, **switches).flatten(1)[:, None]

    try:
        with torch.no_grad():
            tried = features(torch.zeros(2, frames, 3, size, size))
    except (RuntimeError, torch.jit.Error) as error:
        raise UserError(
            f"--fvd-weights {path} takes no clip of {frames} frames of {size}x{size} ({_last(error)}); "
            "raise --horizon, or give another network"
        ) from error
    if not tried.is_floating_point() or len(tried) != 2:
        raise UserError(f"--fvd-weights {path} gives no vector of features for each clip; give another network")
    return features


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _last(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
