"""One pass over n gradients and a direction that writes the next direction and the update."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.launch import Launch
from aime_kernels.rgb.table import Work
from aime_kernels.rgb.triton_gram import load_piece, piece_types, steps, triton_dtype

LAUNCH = Launch(2048, 4, 80)


@triton.jit
def combine_piece(
    entries,  # GRADIENTS + 2 addresses: gradients, direction, update
    of_update,  # GRADIENTS + 1 coefficients
    of_direction,  # GRADIENTS + 1 coefficients
    finite,
    start,
    offsets,
    mask,
    GRADIENTS: tl.constexpr,
    FIRST_DTYPE: tl.constexpr,
    LAST_DTYPE: tl.constexpr,
    UPDATE_DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Read n + 1 pieces, then write two. The update may be a gradient's own memory: reads come before writes."""
    old = load_piece(entries[GRADIENTS], start, offsets, mask, LAST_DTYPE, COMPUTE, ALIGNMENT)
    new = old * of_direction[GRADIENTS]
    total = tl.zeros_like(old)
    for i in tl.static_range(GRADIENTS):
        gradient = load_piece(entries[i], start, offsets, mask, FIRST_DTYPE, COMPUTE, ALIGNMENT)
        new += gradient * of_direction[i]
        total += gradient * of_update[i]
    total += new * of_update[GRADIENTS]
    # A select, not a factor of zero: zero times NaN is NaN.
    new = tl.where(finite, new, old)
    total = tl.where(finite, total, 0.0)
    direction = tl.multiple_of(entries[GRADIENTS], ALIGNMENT).to(tl.pointer_type(LAST_DTYPE))
    update = tl.multiple_of(entries[GRADIENTS + 1], ALIGNMENT).to(tl.pointer_type(UPDATE_DTYPE))
    tl.store(tl.multiple_of(direction, ALIGNMENT) + start + offsets, new.to(LAST_DTYPE), mask=mask)
    tl.store(tl.multiple_of(update, ALIGNMENT) + start + offsets, total.to(UPDATE_DTYPE), mask=mask)


@triton.jit
def rgb_combine_fwd_kernel(
    addresses,  # int64 [K, GRADIENTS + 2]
    tiles,  # int64 [T, 3]
    coefficients,  # [2, GRADIENTS + 1] in COMPUTE
    finite,  # bool, 0-d
    GRADIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,  # ranges of BLOCK elements in a tile
    GROUP: tl.constexpr,  # elements of one 16-byte access
    FIRST_DTYPE: tl.constexpr,
    LAST_DTYPE: tl.constexpr,
    UPDATE_DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # bytes
):
    """Both combinations of one tile. All scalars are read first: the compiler must assume that a store changes them."""
    program = tl.program_id(0).to(tl.int64)
    position = tl.load(tiles + 3 * program)
    start = tl.multiple_of(tl.load(tiles + 3 * program + 1), BLOCK)
    count = tl.load(tiles + 3 * program + 2)
    keep = tl.load(finite)
    entries, of_update, of_direction = (), (), ()
    for i in tl.static_range(GRADIENTS + 2):
        entries = entries + (tl.load(addresses + (GRADIENTS + 2) * position + i),)
    for i in tl.static_range(GRADIENTS + 1):
        of_update = of_update + (tl.load(coefficients + i),)
        of_direction = of_direction + (tl.load(coefficients + GRADIENTS + 1 + i),)
    whole = count // GROUP * GROUP
    for step in tl.static_range(STEPS):
        wide = step * BLOCK + tl.arange(0, BLOCK)
        combine_piece(
            entries, of_update, of_direction, keep, start, wide, wide < whole,
            GRADIENTS, FIRST_DTYPE, LAST_DTYPE, UPDATE_DTYPE, COMPUTE, ALIGNMENT,
        )  # fmt: skip
    rest = whole + tl.arange(0, GROUP)
    combine_piece(
        entries, of_update, of_direction, keep, start, rest, rest < count,
        GRADIENTS, FIRST_DTYPE, LAST_DTYPE, UPDATE_DTYPE, COMPUTE, ALIGNMENT,
    )  # fmt: skip


def rgb_combine_triton(work: Work, coefficients: Tensor, finite: Tensor) -> None:
    """Combine the tiles of one `Work`, whose vectors are the gradients, the direction and the update."""
    gradients = len(work.dtypes) - 2
    wide = torch.float64 if torch.float64 in work.dtypes else torch.float32
    LAUNCH.start(
        rgb_combine_fwd_kernel,
        (work.tiles.shape[0],),
        work.addresses,
        work.tiles,
        coefficients.to(wide).contiguous(),
        finite,
        GRADIENTS=gradients,
        UPDATE_DTYPE=triton_dtype(work.dtypes[-1]),
        **steps(LAUNCH.block, work.dtypes),
        **piece_types(work.dtypes, gradients, work.aligned),
    )
