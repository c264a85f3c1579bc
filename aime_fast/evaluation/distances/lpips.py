"""LPIPS with weights that the user brings (Zhang et al. 2018).

It needs two files. The network of images is large and the user's: AlexNet or VGG-16, as torchvision distributes them.
The small weights of the layers' differences come with torchmetrics. Nothing is fetched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor
from torch.nn import functional as F

from aime_fast.errors import UserError
from aime_fast.evaluation.metrics import Measure

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and deviation of ImageNet's channels, for images in [-1, 1]."""
AT_ONCE = 64
"""Frames that pass through the network at once."""


@dataclass(frozen=True)
class Architecture:
    """A network of convolutions, each followed by a ReLU, as `features.N` of torchvision."""

    linear: str
    """Name of the weights in torchmetrics."""
    stages: Sequence[Sequence[int]]
    """Numbers N of the convolutions up to each compared layer."""
    pooled: int
    """From this stage on, a maximum over `window` pixels in steps of 2 comes first."""
    pooled_until: int
    window: int
    stride: int
    """Stride of the first convolution."""


ALEXNET = Architecture("alex", ((0,), (3,), (6,), (8,), (10,)), 1, 3, 3, 4)
VGG16 = Architecture("vgg", ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), 1, 5, 2, 1)
FIRST = {(64, 3, 11, 11): ALEXNET, (64, 3, 3, 3): VGG16}
"""By the shape of the first convolution's weights."""


def load_lpips(path: str, device: torch.device) -> Measure:
    """LPIPS of frames [..., 3, H, W] in [-1, 1], float32 [...], with the image network at `path`; 0 for equal frames.

    `UserError` if the file has no weights of AlexNet or VGG-16.
    """
    try:
        weights = torch.load(Path(path), map_location=device, weights_only=True)
        design = FIRST[tuple(weights["features.0.weight"].shape)]
        layers = [[(weights[f"features.{n}.weight"], weights[f"features.{n}.bias"]) for n in s] for s in design.stages]
    except (OSError, RuntimeError, UnpicklingError, LookupError, TypeError, AttributeError, EOFError) as error:
        raise UserError(
            f"--lpips-weights {path} has no weights of AlexNet or VGG-16 as torchvision saves them "
            f"({type(error).__name__}); give such a .pth file"
        ) from error
    linear = _linear(design, device)

    def lpips(prediction: Tensor, target: Tensor) -> Tensor:
        pairs = zip(
            *(x.float().clamp(-1, 1).reshape(-1, *x.shape[-3:]).split(AT_ONCE) for x in (prediction, target)),
            strict=True,
        )
        with torch.no_grad():
            return torch.cat([_distance(design, layers, linear, *pair) for pair in pairs]).view(prediction.shape[:-3])

    return lpips


def _linear(design: Architecture, device: torch.device) -> list[Tensor]:
    """Weights [1, C, 1, 1] of each compared layer."""
    # Slow to import.
    from torchmetrics.functional.image import lpips

    file = Path(lpips.__file__).parent / "lpips_models" / f"{design.linear}.pth"
    known = torch.load(file, map_location=device, weights_only=True)
    return [known[f"lin{stage}.model.1.weight"] for stage in range(len(design.stages))]


Layers = list[list[tuple[Tensor, Tensor]]]


def _distance(design: Architecture, layers: Layers, linear: list[Tensor], ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean over pixels of the weighted squared difference of unit features, summed over the layers: [N]."""
    both = torch.cat([ours, theirs])
    shift, scale = (both.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
    x, total = (both - shift) / scale, both.new_zeros(len(ours))
    for stage, (convolutions, weight) in enumerate(zip(layers, linear, strict=True)):
        if design.pooled <= stage < design.pooled_until:
            x = F.max_pool2d(x, design.window, 2)
        for number, (kernel, bias) in enumerate(convolutions):
            first = stage == number == 0
            padding = 2 if first and design is ALEXNET else kernel.shape[-1] // 2
            x = F.conv2d(x, kernel, bias, design.stride if first else 1, padding).relu()
        unit = x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
        a, b = unit.chunk(2)
        total = total + ((a - b).square() * weight).sum(1).mean((1, 2))
    return total
