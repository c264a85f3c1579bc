"""What the 10 M channels of a mixture of discretised logistics mean, its expectation, and samples of it.

Component k owns the ten consecutive channels 10 k .. 10 k + 9, so that one component is one contiguous block:

    0        logit of its weight (softmax over the M components)
    1 2 3    m_r, m_g, m_b, locations in units of the frames, as offsets from a centre that the caller gives (or zero)
    4 5 6    raw log-scales: log s = raw - 2, smoothly bounded to (-7, 3) by s = e^-7 + e^-2 / (e^-raw + e^-5)
    7 8 9    raw coupling: c = tanh(raw)

The channels are coupled through how far the values already seen lie from their own locations:
mu_r = m_r, mu_g = m_g + c_0 (x_r - m_r), mu_b = m_b + c_1 (x_r - m_r) + c_2 (x_g - m_g).
This is the family of PixelCNN++ (mu_g = m_g + c_0 x_r, ...) with its locations shifted, so that a coupling sharpens a
pixel without moving its mean.
"""

import math

import torch
from torch import Tensor

CHANNELS_PER_COMPONENT = 10
SMALLEST_SCALE = math.exp(-7.0)
NEUTRAL_SCALE = math.exp(-2.0)
"""The scale of a raw log-scale of 0, nearly: a fresh network starts at a width that neither saturates nor is flat."""
SCALE_CEILING = math.exp(-5.0)
"""NEUTRAL_SCALE / SCALE_CEILING = e^3, the largest scale."""
HALF_BIN = 1.0 / 255.0
"""Half the distance of two of the 256 levels in [-1, 1]."""
FAR = 40.0
"""e^-40 is nothing beside 1, even in float64; beyond e^-87 float32 turns denormal and exp takes 30 times longer."""


def components(parameters: Tensor) -> Tensor:
    """View [N, 10 M, H, W] as [N, M, 10, H W]. Raises ValueError when the channels are not a multiple of 10."""
    if parameters.dim() != 4 or not parameters.shape[1] or parameters.shape[1] % CHANNELS_PER_COMPONENT:
        raise ValueError(f"mixture parameters must be [N, 10 M, H, W], not {tuple(parameters.shape)}")
    return parameters.flatten(2).unflatten(1, (-1, CHANNELS_PER_COMPONENT))


def logistic_mixture_mean(parameters: Tensor, centre: Tensor | None = None) -> Tensor:
    """Expected frames [N, 3, H, W] of parameters [N, 10 M, H, W] around `centre` [N, 3, H, W] (zero); differentiable.

    The exact expectation of the coupled mixture, before what lies beyond -1 and 1 is folded into the outer bins: it
    may leave [-1, 1].
    """
    logits, locations, _ = components(parameters).split([1, 3, 6], dim=2)  # whose gradient is one concatenation
    expected = (logits.softmax(1) * locations).sum(1).unflatten(2, parameters.shape[2:])
    return expected if centre is None else expected + centre


def logistic_mixture_sample(
    parameters: Tensor, generator: torch.Generator | None = None, centre: Tensor | None = None
) -> Tensor:
    """Draw frames [N, 3, H, W] on the 256 levels of [-1, 1]: a component a pixel, then red, green, blue in turn.

    Values have exactly the probabilities of `logistic_mixture_log_prob`. No gradient.
    """
    blocks = components(parameters.detach())
    eps = torch.finfo(blocks.dtype).eps

    def uniform(like: Tensor) -> Tensor:
        draw = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        return draw.clamp_(eps / 2, 1.0 - eps / 2)

    gumbel = uniform(blocks[:, :, 0]).log_().neg_().log_().neg_()
    chosen = (blocks[:, :, 0] + gumbel).argmax(1)
    block = blocks.take_along_dim(chosen[:, None, None], 1)[:, 0]
    scale = SMALLEST_SCALE + NEUTRAL_SCALE / (torch.exp(-block[:, 4:7]) + SCALE_CEILING)
    locations = block[:, 1:4] if centre is None else block[:, 1:4] + centre.to(block.dtype).flatten(2)
    free = locations + scale * torch.logit(uniform(block[:, 4:7]))
    c0, c1, c2 = torch.tanh(block[:, 7:]).unbind(1)
    red = _nearest_level(free[:, 0])
    green = _nearest_level(free[:, 1] + c0 * (red - locations[:, 0]))
    seen = c1 * (red - locations[:, 0]) + c2 * (green - locations[:, 1])
    blue = _nearest_level(free[:, 2] + seen)
    return torch.stack([red, green, blue], 1).unflatten(2, parameters.shape[2:])


def _nearest_level(value: Tensor) -> Tensor:
    """The nearest of the 256 levels in [-1, 1]; everything beyond belongs to the outer two."""
    return value.add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).mul_(2.0 / 255.0).sub_(1.0)
