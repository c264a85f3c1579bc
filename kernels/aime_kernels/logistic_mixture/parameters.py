"""Layout of the 10 M channels of a mixture of discretised logistics and its expectation.

Component k has the ten consecutive channels 10 k .. 10 k + 9, so that one component is one contiguous block:

    0        logit of its weight (softmax over the M components)
    1 2 3    m_r, m_g, m_b, locations in units of the frames, as offsets from the caller's centre (or zero)
    4 5 6    raw log-scales: log s = raw - 2, smoothly bounded to (-7, 3) by s = e^-7 + e^-2 / (e^-raw + e^-5)
    7 8 9    raw coupling: c = tanh(raw)

The channels are coupled through the distances of the earlier channels from their own locations:
mu_r = m_r, mu_g = m_g + c_0 (x_r - m_r), mu_b = m_b + c_1 (x_r - m_r) + c_2 (x_g - m_g).
This is the family of PixelCNN++ (mu_g = m_g + c_0 x_r, ...) with shifted locations: a coupling sharpens a pixel
without moving its mean.
"""

import math

from torch import Tensor

CHANNELS_PER_COMPONENT = 10
MIN_SCALE = math.exp(-7.0)
MID_SCALE = math.exp(-2.0)
"""Nearly the scale at a raw log-scale of 0: a new network starts at a width that is neither saturated nor flat."""
SCALE_CAP = math.exp(-5.0)
"""MID_SCALE / SCALE_CAP = e^3, the largest scale."""
HALF_BIN = 1.0 / 255.0
"""Half the distance between two of the 256 levels in [-1, 1]."""
FAR = 40.0
"""e^-40 is negligible beside 1, even in float64; below e^-87 float32 is denormal and exp takes 30 times longer."""


def offset_of_mean(blocks: Tensor) -> Tensor:
    """The expectation [N, 3, P] of blocks [N, M, 10, P], as an offset from the centre."""
    logits, locations, _ = blocks.split([1, 3, 6], dim=2)  # its gradient is one concatenation
    return (logits.softmax(1) * locations).sum(1)


def logistic_mixture_mean(parameters: Tensor, centre: Tensor | None = None) -> Tensor:
    """Expected frames [N, 3, H, W] of parameters [N, 10 M, H, W] around `centre` [N, 3, H, W] (zero); differentiable.

    The exact expectation of the coupled mixture before values beyond -1 and 1 are clamped: it may leave [-1, 1].
    Raises ValueError when the channels are not a multiple of 10.
    """
    if parameters.dim() != 4 or not parameters.shape[1] or parameters.shape[1] % CHANNELS_PER_COMPONENT:
        raise ValueError(f"mixture parameters must be [N, 10 M, H, W], not {tuple(parameters.shape)}")
    blocks = parameters.flatten(2).unflatten(1, (-1, CHANNELS_PER_COMPONENT))
    expected = offset_of_mean(blocks).unflatten(2, parameters.shape[2:])
    return expected if centre is None else expected + centre
