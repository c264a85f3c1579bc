"""The log-likelihood of `reference.py` for a compiler to fuse: elementwise, value and gradient together.

Nothing is in place, and tracing unrolls the loop over components. Run eagerly it is slow and needs much memory.
"""

import torch
from torch import Tensor

from aime_kernels.logistic_mixture.parameters import FAR, HALF_BIN, MID_SCALE, MIN_SCALE, SCALE_CAP, offset_of_mean


def fused_terms(x: Tensor, centre: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """x, centre [N, 3, P], blocks [N, M, 10, P] of one dtype -> log p [N] and mean [N, 3, P]; no gradient."""
    return value_and_gradient(x, x - centre, blocks)[0], offset_of_mean(blocks) + centre


def fused_gradients(
    x: Tensor, centre: Tensor, blocks: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference_gradients`, but blocks keep their values."""
    log_prob, gradient = value_and_gradient(x, x - centre, blocks)
    difference = offset_of_mean(blocks) + centre - x
    weights = blocks[:, :, :1].softmax(1)
    pull = weights * (2.0 * of_error * difference)[:, None]
    share = (pull * blocks[:, :, 1:4]).sum(2, keepdim=True)
    of_mean = torch.cat([share - weights * share.sum(1, keepdim=True), pull], 2)
    gradient = -of_nats[:, None, None, None] * gradient
    gradient = torch.cat([gradient[:, :, :4] + of_mean, gradient[:, :, 4:]], 2)
    return log_prob, difference.square().sum((1, 2)), gradient, gradient[:, :, 1:4].sum(1)


def value_and_gradient(x: Tensor, offsets: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """log p [N] of x [N, 3, P], and d log p / d blocks [N, M, 10, P]; arguments as in `reference.py`."""
    outer = x.abs() > 1.0 - HALF_BIN
    flip = torch.where(outer, -x.sign(), 1.0)
    bins = list(zip(outer.unbind(1), flip.unbind(1), strict=True))
    log_probs, gradients = zip(*(_component(offsets.unbind(1), bins, block) for block in blocks.unbind(1)), strict=True)
    logits = [block[:, 0] for block in blocks.unbind(1)]
    total_weight, joint = _log_sum_exp(logits), [log + logit for log, logit in zip(log_probs, logits, strict=True)]
    total = _log_sum_exp(joint)
    rows = []
    for log, logit, parts in zip(joint, logits, gradients, strict=True):
        share = torch.exp(log - total)
        rows += [share - torch.exp(logit - total_weight), *(share * part for part in parts)]
    return (total - total_weight).sum(1), torch.stack(rows, 1).view_as(blocks)


def _log_sum_exp(terms: list[Tensor]) -> Tensor:
    best = terms[0]
    for term in terms[1:]:
        best = torch.maximum(best, term)
    total = torch.exp(terms[0] - best)
    for term in terms[1:]:
        total = total + torch.exp(term - best)
    return best + torch.log(total)


def _component(
    offsets: tuple[Tensor, ...], bins: list[tuple[Tensor, Tensor]], block: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """log p(x | component) [N, P] of its parameters `block` [N, 10, P], and the gradients of parameters 1 to 9.

    bins: for each channel whether a value is in an outer bin, and 1 (inner) or -sign (outer).
    """
    parameters = block.unbind(1)
    red, green, blue = (offset - location for offset, location in zip(offsets, parameters[1:4], strict=True))
    c0, c1, c2 = (2.0 / (1.0 + torch.exp(-2.0 * raw)) - 1.0 for raw in parameters[7:])  # tanh in a third of its time
    distances = (red, green - c0 * red, blue - c1 * red - c2 * green)
    ratios, logs, pulls, widths = zip(*map(_channel, distances, parameters[4:7], bins), strict=True)
    of_red, of_green, of_blue = pulls
    locations = [of_red - c0 * of_green - c1 * of_blue, of_green - c2 * of_blue, of_blue]
    couplings = [
        (1.0 - c * c) * pull * known
        for c, pull, known in ((c0, of_green, red), (c1, of_blue, red), (c2, of_blue, green))
    ]
    log = torch.log(ratios[0] * ratios[1] * ratios[2]) + logs[0] + logs[1] + logs[2]
    return log, [*locations, *widths, *couplings]


def _channel(distance: Tensor, raw: Tensor, bin_: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For one channel at `distance` from its location: log p and its derivatives by location and raw log-scale.

    log p is returned as two terms: a ratio whose logarithm is taken later, and a summand.
    """
    outer, flip = bin_
    growth = 1.0 / (torch.exp(-raw) + SCALE_CAP)
    inverse = 1.0 / (MIN_SCALE + MID_SCALE * growth)
    h = inverse * HALF_BIN
    y = distance * inverse * flip + torch.where(outer, h, 0.0)
    sinh = 2.0 * torch.sinh(h)  # a compiler would evaluate e^h - 1 literally and lose digits of a small h
    cosh = torch.sqrt(4.0 + sinh * sinh)
    size = y.abs()
    q = torch.exp(-size.clamp_max(FAR))
    density = 1.0 / (1.0 + q * torch.where(outer, 1.0, cosh + q))
    ratio = torch.where(outer, 1.0, sinh) * density
    log = -torch.where(outer, 0.5 * (size - y), size)
    by_width = torch.where(outer, 0.0, h * (cosh / sinh - sinh * q * density))
    slope = -torch.copysign(torch.where(outer, 0.5, 1.0 + q) * density * (1.0 - q), y) + torch.where(outer, 0.5, 0.0)
    by_raw = -growth * (1.0 - SCALE_CAP * growth) * inverse * MID_SCALE * (y * slope + by_width)
    return ratio, log, -slope * flip * inverse, by_raw
