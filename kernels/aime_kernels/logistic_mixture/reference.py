"""Mixture of discretised logistics with channel coupling (Salimans et al. 2017, PixelCNN++, section 2.1 and 2.2).

Parameters are [N, 10*M, H, W]: M mixture logits, then 3*M means, 3*M raw log-scales and 3*M raw coefficients, each
of the last three ordered channel (red, green, blue) first, mixture second. Frames lie on 256 levels in [-1, 1], so a
bin is 2/255 wide; the first and the last bin reach to infinity.

With p and q the standardised upper and lower edge of a bin, the log-probability is exact without cancellation:
log(sigma(p) - sigma(q)) = -softplus(-p) - softplus(q) + log(1 - exp(q - p)).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

HALF_BIN = 1 / 255
LOG_SCALE_CENTRE, LOG_SCALE_REACH = -2.0, 5.0
"""log s = centre + reach * tanh(raw / reach): smoothly inside (-7, 3)."""
CHUNKS = 16
"""The pass over [N, 3, M, pixels] is cut into so many pieces along N, to stay in the cache; never more with larger N."""


def logistic_mixture_log_prob(frames: Tensor, parameters: Tensor) -> Tensor:
    """Log-probability of whole frames.

    Args:
        frames: [N, 3, H, W] on the 256 levels of [-1, 1]; not differentiated.
        parameters: [N, 10*M, H, W], float32 or float64; differentiable once.

    Returns:
        Nats of each frame, [N].
    """
    if parameters.shape[1] % 10 or frames.shape[2:] != parameters.shape[2:]:
        raise ValueError(f"frames {tuple(frames.shape)} do not fit parameters {tuple(parameters.shape)} of [N, 10*M, H, W]")
    return _LogProb.apply(frames, parameters)


class _LogProb(torch.autograd.Function):
    """Value and gradient in one sweep: the step reads the many parameters once and keeps nothing but the gradient."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, parameters: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[1]
        frames, packed = frames.to(parameters.dtype).flatten(2), parameters.contiguous().flatten(2)
        gradient = torch.empty_like(packed) if wanted else None
        total = packed.new_empty(len(packed))
        size = -(-len(packed) // CHUNKS)
        for start in range(0, len(packed), max(size, 1)):
            part = slice(start, start + size)
            total[part] = _sweep(frames[part], packed[part], None if gradient is None else gradient[part])
        if gradient is not None:
            ctx.save_for_backward(gradient.view_as(parameters))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * upstream[:, None, None, None]


def _sweep(frames: Tensor, packed: Tensor, gradient: Tensor | None) -> Tensor:
    """Log-probability [n] of frames [n, 3, P] under packed parameters [n, 10*M, P]; fills `gradient` if given."""
    x = frames[:, :, None]
    logits, means, raw_scales, raw_coefficients = unpack(packed)
    bounded = (raw_scales / LOG_SCALE_REACH).tanh_()
    inverse = (bounded * -LOG_SCALE_REACH).sub_(LOG_SCALE_CENTRE).exp_()
    coefficients = raw_coefficients.tanh()
    centred = x - means
    centred[:, 1].addcmul_(coefficients[:, 0], x[:, 0], value=-1)
    centred[:, 2].addcmul_(coefficients[:, 1], x[:, 0], value=-1)
    centred[:, 2].addcmul_(coefficients[:, 2], x[:, 1], value=-1)

    not_first = (x > HALF_BIN - 1).to(packed.dtype)
    not_last = (x < 1 - HALF_BIN).to(packed.dtype)
    upper = (centred + HALF_BIN).mul_(inverse)
    lower = centred.sub_(HALF_BIN).mul_(inverse)
    width = inverse * (2 * HALF_BIN)
    inside = torch.expm1(-width).neg_().log_().mul_(not_first * not_last)
    inside.addcmul_(F.softplus(-upper), not_last, value=-1)
    inside.addcmul_(F.softplus(lower), not_first, value=-1)
    joint = inside.sum(1).add_(logits.log_softmax(1))
    log_prob = joint.logsumexp(1)
    if gradient is not None:
        responsibilities = joint.sub_(log_prob[:, None]).exp_()
        _fill_gradient(
            gradient, responsibilities, logits, x, bounded, inverse, coefficients, upper, lower, width, not_first, not_last
        )
    return log_prob.sum(1)


def _fill_gradient(
    gradient: Tensor,
    responsibilities: Tensor,
    logits: Tensor,
    x: Tensor,
    bounded: Tensor,
    inverse: Tensor,
    coefficients: Tensor,
    upper: Tensor,
    lower: Tensor,
    width: Tensor,
    not_first: Tensor,
    not_last: Tensor,
) -> None:
    """d log-probability / d parameters in closed form; destroys its intermediate arguments."""
    to_logits, to_means, to_scales, to_coefficients = unpack(gradient)
    torch.sub(responsibilities, logits.softmax(1), out=to_logits)
    weight = responsibilities[:, None]
    above = torch.sigmoid(-upper).mul_(not_last).mul_(weight)
    below = torch.sigmoid(lower).mul_(not_first).mul_(weight)
    torch.sub(below, above, out=to_means).mul_(inverse)

    torch.mul(lower, below, out=to_scales).sub_(above.mul_(upper))
    between = width.div_(torch.expm1(width)).mul_(not_first * not_last).mul_(weight)
    to_scales.sub_(between).mul_(bounded.square_().neg_().add_(1))

    slope = coefficients.square_().neg_().add_(1)
    torch.mul(to_means[:, 1], x[:, 0], out=to_coefficients[:, 0])
    torch.mul(to_means[:, 2], x[:, 0], out=to_coefficients[:, 1])
    torch.mul(to_means[:, 2], x[:, 1], out=to_coefficients[:, 2])
    to_coefficients.mul_(slope)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of [N, 10*M, P]: logits [N, M, P]; means, raw log-scales, raw coefficients, each [N, 3, M, P]."""
    mixtures = packed.shape[1] // 10
    logits, *rest = packed.split([mixtures, 3 * mixtures, 3 * mixtures, 3 * mixtures], dim=1)
    means, scales, coefficients = (part.unflatten(1, (3, mixtures)) for part in rest)
    return logits, means, scales, coefficients


def logistic_mixture_mean(parameters: Tensor) -> Tensor:
    """Expected frames [N, 3, H, W], clamped to [-1, 1], of parameters [N, 10*M, H, W].

    Each mixture's means are chained through the coupling before they are averaged by weight; clipping of the
    logistics at the ends of the range is neglected.
    """
    logits, means, _, raw = unpack(parameters.flatten(2))
    coefficients = raw.tanh()
    red = means[:, 0]
    green = means[:, 1] + coefficients[:, 0] * red
    blue = means[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green
    weights = logits.softmax(1)
    expected = torch.stack([(weights * channel).sum(1) for channel in (red, green, blue)], dim=1)
    return expected.clamp(-1, 1).unflatten(2, parameters.shape[2:])


def logistic_mixture_sample(parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw frames [N, 3, H, W] on the 256 levels from parameters [N, 10*M, H, W]: a mixture a pixel, then its chain."""
    logits, means, raw_scales, raw = unpack(parameters.flatten(2))
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype).clamp_(1e-7, 1 - 1e-7)
    chosen = (logits - (-uniform.log()).log()).argmax(1)[:, None, None].expand(-1, 3, 1, -1)
    mean, raw_scale, coefficient = (part.gather(2, chosen)[:, :, 0] for part in (means, raw_scales, raw.tanh()))
    scale = (LOG_SCALE_CENTRE + LOG_SCALE_REACH * (raw_scale / LOG_SCALE_REACH).tanh()).exp()
    noise = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype).clamp_(1e-7, 1 - 1e-7)
    spread = scale * torch.logit(noise)
    red = to_level(mean[:, 0] + spread[:, 0])
    green = to_level(mean[:, 1] + coefficient[:, 0] * red + spread[:, 1])
    blue = to_level(mean[:, 2] + coefficient[:, 1] * red + coefficient[:, 2] * green + spread[:, 2])
    return torch.stack([red, green, blue], dim=1).unflatten(2, parameters.shape[2:])


def to_level(value: Tensor) -> Tensor:
    """The nearest of the 256 levels in [-1, 1]."""
    return ((value.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
