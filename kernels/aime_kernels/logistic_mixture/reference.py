"""Log-likelihood of RGB frames under a mixture of discretised logistics, with its gradient in the same pass.

The model is PixelCNN++ (Salimans et al. 2017, arXiv:1701.05517) on 256 levels in [-1, 1]; `parameters.py` has the
layout and the coupling. A bin's probability needs no difference of two sigmoids: with half width w = 1/255,
y = (x - mu) / s, h = w / s and q = e^-|y|,

    sigma(y + h) - sigma(y - h) = 2 q sinh h / (1 + 2 q cosh h + q^2)

exactly: nothing cancels at any distance, and the three channels of a component share one logarithm (h is at most 4.3).
An outer bin, x = -1 or 1, is open to one side: its probability is sigma(k), k = h - y sign(x). This has the same form
with y replaced by k, 1 for 2 sinh h, 1 for 2 cosh h + q, and min(k, 0) for log q = -|y|.
It runs in place and in chunks, and keeps one tensor, the gradient, where autograd would keep some forty.
"""

import torch
from torch import Tensor

from aime_kernels.logistic_mixture.parameters import FAR, HALF_BIN, MID_SCALE, MIN_SCALE, SCALE_CAP, offset_of_mean

_CHUNKS = 4
"""The frames are processed in this number of chunks, which keeps temporaries small."""
_NEGLIGIBLE = -60.0
"""Nats below the best component at which shares are clamped: smaller gradients would be denormal."""


def reference_terms(x: Tensor, centre: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """x, centre [N, 3, P], blocks [N, M, 10, P] of one dtype -> log p [N] and mean [N, 3, P]; no gradient."""
    chunks = zip(*(tensor.tensor_split(_CHUNKS) for tensor in (x, x - centre, blocks)), strict=True)
    log_prob = torch.cat([_log_prob(value, offset, block.clone(), False) for value, offset, block in chunks])
    return log_prob, offset_of_mean(blocks).add_(centre)


def reference_gradients(
    x: Tensor, centre: Tensor, blocks: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference_terms`, with of_nats [N] -> log p, squared error of the mean [N], gradients of blocks and centre.

    The gradients are those of sum_n of_nats_n * -log p_n + of_error * error_n. Overwrites blocks by their gradient.
    """
    chunks = zip(*(tensor.tensor_split(_CHUNKS) for tensor in (x, centre, blocks, of_nats)), strict=True)
    made = [_gradients(x, centre, block, of, of_error) for x, centre, block, of in chunks]
    log_prob, error, of_centre = map(torch.cat, zip(*made, strict=True))
    return log_prob, error, blocks, of_centre


def _gradients(
    x: Tensor, centre: Tensor, blocks: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor, Tensor]:
    weights, locations = blocks[:, :, 0].softmax(1), blocks[:, :, 1:4].clone()
    difference = (weights[:, :, None] * locations).sum(1).add_(centre).sub_(x)
    log_prob = _log_prob(x, x - centre, blocks, True)
    blocks.mul_(-of_nats[:, None, None, None])
    pull = weights[:, :, None] * (2.0 * of_error * difference)[:, None]
    blocks[:, :, 1:4].add_(pull)
    share = pull.mul_(locations).sum(2)
    blocks[:, :, 0].add_(share).sub_(weights.mul_(share.sum(1, keepdim=True)))
    # The centre shifts every component.
    return log_prob, difference.square_().sum((1, 2)), blocks[:, :, 1:4].sum(1)


def _log_prob(x: Tensor, offsets: Tensor, blocks: Tensor, wanted: bool) -> Tensor:
    """log p [n] of x [n, 3, P]; overwrites the parameters `blocks` [n, M, 10, P] by d log p / d blocks if wanted."""
    log_weight = blocks[:, :, 0].log_softmax(1)
    share = _components(x[:, None], offsets[:, None], blocks, wanted).add_(log_weight)
    best = share.amax(1, keepdim=True)
    share.sub_(best).clamp_min_(_NEGLIGIBLE).exp_()
    total = share.sum(1, keepdim=True)
    if wanted:
        share.div_(total)
        blocks[:, :, 1:].mul_(share[:, :, None])
        blocks[:, :, 0] = share.sub_(log_weight.exp_())
    return total.log_().add_(best).sum((1, 2))


def _components(x: Tensor, offsets: Tensor, blocks: Tensor, wanted: bool) -> Tensor:
    """log p(x | component) [n, M, P]; turns channels 1-9 of `blocks` [n, M, 10, P] into their gradients if wanted."""
    # As floats: 1 in an outer bin; 1 in an inner bin; 1 (inner) or -sign(x) (outer).
    outer = (x.abs() > 1.0 - HALF_BIN).to(x.dtype)
    inner, flip = 1.0 - outer, 1.0 - outer - outer * x.sign()
    y, growth, coupling = blocks[:, :, 1:4], blocks[:, :, 4:7], blocks[:, :, 7:]
    coupling.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)  # tanh in a third of its time
    growth.neg_().exp_().add_(SCALE_CAP).reciprocal_()
    inverse = torch.rsub(growth, MIN_SCALE, alpha=-MID_SCALE).reciprocal_()
    torch.sub(offsets, y, out=y)
    red, green = y[:, :, :2].clone().unbind(2)  # distances from their own locations
    c0, c1, c2 = coupling.unbind(2)
    y[:, :, 1].addcmul_(c0, red, value=-1.0)
    y[:, :, 2].addcmul_(c1, red, value=-1.0).addcmul_(c2, green, value=-1.0)
    h = inverse * HALF_BIN
    y.mul_(inverse).mul_(flip).addcmul_(h, outer)

    cosh = h.expm1()  # e^h - 1 first: sinh of a small h stays accurate
    shrunk = cosh.add(1.0).reciprocal_()
    sinh = torch.addcmul(cosh, cosh, shrunk)
    cosh.add_(shrunk).add_(1.0)
    distance = y.abs()
    q = distance.clamp_max(FAR).neg_().exp_()
    density = torch.add(cosh, q).mul_(inner).add_(outer).mul_(q).add_(1.0).reciprocal_()
    ratio = torch.addcmul(outer, sinh, inner).mul_(density)
    log_prob = ratio.prod(2).log_()
    # -min(k, 0) = (|k| - k) / 2 in an outer bin, |y| in an inner one.
    distance.addcmul_(distance, outer, value=-0.5).addcmul_(y, outer, value=-0.5)
    log_prob.sub_(distance.sum(2))
    if wanted:
        growth.addcmul_(growth, growth, value=-SCALE_CAP).mul_(inverse).mul_(MID_SCALE)
        # h d log p / dh, then -d log p / dy, as partial derivatives; outer bins depend on k alone.
        by_width = cosh.div_(sinh).addcmul_(sinh.mul_(q), density, value=-1.0).mul_(h).mul_(inner)
        slope = torch.mul(q, inner).add_(inner).add_(outer, alpha=0.5)
        slope.mul_(density).addcmul_(slope, q, value=-1.0)
        fall = torch.copysign(slope, y).sub_(outer, alpha=0.5)
        growth.mul_(y.mul_(fall).sub_(by_width))
        pull = fall.mul_(flip).mul_(inverse)
        y.copy_(pull)
        _, of_green, of_blue = pull.unbind(2)
        y[:, :, 0].addcmul_(c0, of_green, value=-1.0).addcmul_(c1, of_blue, value=-1.0)
        y[:, :, 1].addcmul_(c2, of_blue, value=-1.0)
        coupling.square_().neg_().add_(1.0)
        coupling[:, :, :2].mul_(pull[:, :, 1:]).mul_(red[:, :, None])
        c2.mul_(of_blue).mul_(green)
    return log_prob
