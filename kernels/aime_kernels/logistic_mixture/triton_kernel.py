"""The likelihood of `reference.py` with its mean, or with the gradient of a loss of both; one lane handles one pixel.

Names and formulas are those of `native.cpp`. The components are passed twice: first for their log-sum-exp, which is
kept online, then for what each contributes to the mean and the gradient. Only a dozen numbers a pixel live between
them, for any number of components. The second pass reads the parameters again: the 25 KiB of a program (float32, five
components) are then in the cache of its multiprocessor. So memory moves the parameters twice, read and overwritten.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.launch import Launch
from aime_kernels.logistic_mixture import parameters as layout
from aime_kernels.logistic_mixture.kernel import TILE

LAUNCH = Launch(TILE, 4, 80)
HALF_BIN = tl.constexpr(layout.HALF_BIN)
MIN_SCALE = tl.constexpr(layout.MIN_SCALE)
MID_SCALE = tl.constexpr(layout.MID_SCALE)
SCALE_CAP = tl.constexpr(layout.SCALE_CAP)
FAR = tl.constexpr(layout.FAR)
NARROWEST = tl.constexpr(40.0)
"""A raw log-scale below -40 gives the smallest scale, one above 80 the largest."""
WIDEST = tl.constexpr(-80.0)
SERIES_BELOW = tl.constexpr(0.7)
"""Half widths h below which e^h - e^-h would lose digits; eight terms of its series are exact to 1e-17 there."""


@triton.jit
def load_pixel(x, centre, row, pixels, p, inside, COMPUTE: tl.constexpr):
    """Of one channel of the pixels: whether each is in an outer bin, 1 (inner) or -sign (outer), and x - centre."""
    at = row * pixels + p
    value = tl.load(x + at, mask=inside, other=0.0).to(COMPUTE)
    outer = tl.abs(value) > 1.0 - HALF_BIN
    flip = tl.where(outer, tl.where(value > 0, -1.0, 1.0), 1.0).to(COMPUTE)
    return outer, flip, value - tl.load(centre + at, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def channel(distance, raw, outer, flip):
    """A channel `distance` away from its location: a ratio and a summand with log p = log(ratio) + summand, and the
    derivatives by location and raw log-scale. Every select keeps a NaN."""
    shut = tl.where(-raw < WIDEST, WIDEST, -raw)
    narrow = tl.exp(tl.where(shut > NARROWEST, NARROWEST, shut))
    total = narrow + SCALE_CAP
    part = 1.0 / (total * (MIN_SCALE * total + MID_SCALE))
    inverse = total * total * part
    h = inverse * HALF_BIN
    y = distance * inverse * flip + tl.where(outer, h, 0.0)
    size = tl.abs(y)
    q, e = tl.exp(-tl.where(size > FAR, FAR, size)), tl.exp(-h)
    square = h * h
    series = 1.0 + square * (1.0 / 156.0) * (1.0 + square * (1.0 / 210.0))
    series = 1.0 + square * (1.0 / 72.0) * (1.0 + square * (1.0 / 110.0) * series)
    series = 1.0 + square * (1.0 / 20.0) * (1.0 + square * (1.0 / 42.0) * series)
    series = 2.0 * h * (1.0 + square * (1.0 / 6.0) * series)
    # e times 2 sinh h and e times 2 cosh h.
    sinh, cosh = tl.where(h < SERIES_BELOW, series * e, 1.0 - e * e), 1.0 + e * e
    below = tl.where(outer, 1.0 + q, e + q * (cosh + q * e))
    reciprocal = 1.0 / (below * sinh)
    density = reciprocal * sinh
    by_width = tl.where(outer, 0.0, h * (cosh * below * reciprocal - sinh * q * density))
    steepness = tl.where(outer, 0.5, e + q * e) * density * (1.0 - q)
    fall = tl.where(y < 0, -steepness, steepness) - tl.where(outer, 0.5, 0.0)
    ratio = tl.where(outer, density, sinh * density)
    summand = tl.where(outer, 0.5 * (y - size), -size)
    return ratio, summand, fall * flip * inverse, MID_SCALE * narrow * part * (y * fall - by_width)


@triton.jit
def load_row(block, i, pixels, inside, COMPUTE: tl.constexpr):
    """Parameter i of a component at the program's pixels."""
    return tl.load(block + i * pixels, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def coupling(block, i, pixels, inside, COMPUTE: tl.constexpr):
    """tanh of a raw coupling; below -40 it is -1."""
    twice = -2.0 * load_row(block, i, pixels, inside, COMPUTE)
    return 2.0 / (1.0 + tl.exp(tl.where(twice > 80.0, 80.0, twice))) - 1.0


@triton.jit
def component(block, pixels, inside, bins, COMPUTE: tl.constexpr):
    """log p of the pixels in one component, its logit, its locations, and the derivatives by parameters 1 to 9.

    block: pointers to its first parameter at each pixel; bins: `load_pixel` of red, green and blue. The compiler drops
    what a caller ignores.
    """
    logit = load_row(block, 0, pixels, inside, COMPUTE)
    m_r = load_row(block, 1, pixels, inside, COMPUTE)
    m_g = load_row(block, 2, pixels, inside, COMPUTE)
    m_b = load_row(block, 3, pixels, inside, COMPUTE)
    c0 = coupling(block, 7, pixels, inside, COMPUTE)
    c1 = coupling(block, 8, pixels, inside, COMPUTE)
    c2 = coupling(block, 9, pixels, inside, COMPUTE)
    red, green, blue = bins[0][2] - m_r, bins[1][2] - m_g, bins[2][2] - m_b
    ratio_r, log_r, of_r, width_r = channel(red, load_row(block, 4, pixels, inside, COMPUTE), bins[0][0], bins[0][1])
    ratio_g, log_g, of_g, width_g = channel(
        green - c0 * red, load_row(block, 5, pixels, inside, COMPUTE), bins[1][0], bins[1][1]
    )
    ratio_b, log_b, of_b, width_b = channel(
        blue - c1 * red - c2 * green, load_row(block, 6, pixels, inside, COMPUTE), bins[2][0], bins[2][1]
    )
    log_prob = tl.log(ratio_r * ratio_g * ratio_b) + log_r + log_g + log_b
    locations = (of_r - c0 * of_g - c1 * of_b, of_g - c2 * of_b, of_b)
    couplings = ((1.0 - c0 * c0) * of_g * red, (1.0 - c1 * c1) * of_b * red, (1.0 - c2 * c2) * of_b * green)
    return log_prob, logit, (m_r, m_g, m_b), locations, (width_r, width_g, width_b), couplings


@triton.jit
def grown(best, total, term):
    """Add e^term to total e^best: the new pair, and the factors of what was there and of what comes."""
    top = tl.where(term > best, term, best)
    kept, come = tl.exp(best - top), tl.exp(term - top)
    return top, total * kept + come, kept, come


@triton.jit
def evidence(block, mixtures, pixels, inside, bins, COMPUTE: tl.constexpr):
    """First pass: log sum_k e^(log p_k + logit_k), log sum_k e^logit_k, and the mean location of each channel."""
    best = tl.full(inside.shape, float("-inf"), COMPUTE)
    best_weight, none = best, tl.zeros_like(best)
    total, total_weight, mean_r, mean_g, mean_b = none, none, none, none, none
    for k in range(mixtures):
        log_prob, logit, location, _, _, _ = component(block + 10 * k * pixels, pixels, inside, bins, COMPUTE)
        best, total, _, _ = grown(best, total, log_prob + logit)
        best_weight, total_weight, kept, come = grown(best_weight, total_weight, logit)
        mean_r = mean_r * kept + come * location[0]
        mean_g = mean_g * kept + come * location[1]
        mean_b = mean_b * kept + come * location[2]
    mean = (mean_r / total_weight, mean_g / total_weight, mean_b / total_weight)
    return best + tl.log(total), best_weight + tl.log(total_weight), mean


@triton.jit
def pixel_terms_kernel(
    x,  # [N, 3, pixels]
    centre,  # [N, 3, pixels]
    blocks,  # [N, mixtures, 10, pixels]
    log_probs,  # [N, tiles]
    means,  # [N, 3, pixels]
    mixtures,
    pixels,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """log p of a tile of pixels, summed, and their expectation."""
    n, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p = tile * BLOCK + tl.arange(0, BLOCK)
    inside, pixels = p < pixels, tl.cast(pixels, tl.int64)
    bins = (
        load_pixel(x, centre, 3 * n, pixels, p, inside, COMPUTE),
        load_pixel(x, centre, 3 * n + 1, pixels, p, inside, COMPUTE),
        load_pixel(x, centre, 3 * n + 2, pixels, p, inside, COMPUTE),
    )
    block = blocks + n * mixtures * 10 * pixels + p
    total, total_weight, mean = evidence(block, mixtures, pixels, inside, bins, COMPUTE)
    tl.store(log_probs + n * tl.num_programs(1) + tile, tl.sum(tl.where(inside, total - total_weight, 0.0), 0))
    for c in tl.static_range(3):
        at = (3 * n + c) * pixels + p
        around = tl.load(centre + at, mask=inside, other=0.0).to(COMPUTE)
        tl.store(means + at, mean[c] + around, mask=inside)


@triton.jit
def pixel_gradients_kernel(
    x,  # [N, 3, pixels]
    centre,  # [N, 3, pixels]
    blocks,  # [N, mixtures, 10, pixels], overwritten by their gradient
    of_nats,  # [N]
    sums,  # [N, tiles, 2]: log p and squared error
    of_centre,  # [N, 3, pixels]
    of_error,
    mixtures,
    pixels,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The gradients of -of_nats log p + of_error (mean - x)^2 by parameters and centre of a tile, and its sums."""
    n, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p = tile * BLOCK + tl.arange(0, BLOCK)
    inside, pixels = p < pixels, tl.cast(pixels, tl.int64)
    bins = (
        load_pixel(x, centre, 3 * n, pixels, p, inside, COMPUTE),
        load_pixel(x, centre, 3 * n + 1, pixels, p, inside, COMPUTE),
        load_pixel(x, centre, 3 * n + 2, pixels, p, inside, COMPUTE),
    )
    nats = tl.load(of_nats + n).to(COMPUTE)
    block = blocks + n * mixtures * 10 * pixels + p
    total, total_weight, mean = evidence(block, mixtures, pixels, inside, bins, COMPUTE)
    error_r, error_g, error_b = mean[0] - bins[0][2], mean[1] - bins[1][2], mean[2] - bins[2][2]
    squares = error_r * error_r + error_g * error_g + error_b * error_b
    at = sums + 2 * (n * tl.num_programs(1) + tile)
    tl.store(at, tl.sum(tl.where(inside, total - total_weight, 0.0), 0))
    tl.store(at + 1, tl.sum(tl.where(inside, squares, 0.0), 0))
    twice = 2.0 * of_error
    error_r, error_g, error_b = twice * error_r, twice * error_g, twice * error_b
    average = error_r * mean[0] + error_g * mean[1] + error_b * mean[2]
    moved_r, moved_g, moved_b = tl.zeros_like(average), tl.zeros_like(average), tl.zeros_like(average)
    kind = blocks.dtype.element_ty
    for k in range(mixtures):
        here = block + 10 * k * pixels
        log_prob, logit, location, by_location, by_scale, by_coupling = component(here, pixels, inside, bins, COMPUTE)
        weight = tl.exp(logit - total_weight)
        likely = -nats * tl.exp(log_prob + logit - total)
        apart = error_r * location[0] + error_g * location[1] + error_b * location[2] - average
        of_red, of_green = likely * by_location[0] + weight * error_r, likely * by_location[1] + weight * error_g
        of_blue = likely * by_location[2] + weight * error_b
        moved_r, moved_g, moved_b = moved_r + of_red, moved_g + of_green, moved_b + of_blue
        tl.store(here, (likely + weight * (apart + nats)).to(kind), mask=inside)
        tl.store(here + pixels, of_red.to(kind), mask=inside)
        tl.store(here + 2 * pixels, of_green.to(kind), mask=inside)
        tl.store(here + 3 * pixels, of_blue.to(kind), mask=inside)
        for c in tl.static_range(3):
            tl.store(here + (4 + c) * pixels, (likely * by_scale[c]).to(kind), mask=inside)
            tl.store(here + (7 + c) * pixels, (likely * by_coupling[c]).to(kind), mask=inside)
    row = of_centre + 3 * n * pixels + p
    tl.store(row, moved_r, mask=inside)
    tl.store(row + pixels, moved_g, mask=inside)
    tl.store(row + 2 * pixels, moved_b, mask=inside)


def launch(kernel: triton.JITFunction, tensors: list[Tensor], *scalars: float) -> None:
    """tensors: the kernel's tensors in order, blocks third; those that it writes are contiguous. scalars: the next."""
    frames, mixtures, _, pixels = tensors[2].shape
    LAUNCH.start(
        kernel,
        (frames, triton.cdiv(pixels, TILE)),
        *(tensor.contiguous() for tensor in tensors),
        *scalars,
        mixtures,
        pixels,
        BLOCK=TILE,
        COMPUTE=tl.float64 if tensors[0].dtype == torch.float64 else tl.float32,
    )
