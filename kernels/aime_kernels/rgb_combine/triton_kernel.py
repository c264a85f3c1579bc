"""One pass over n rows and a direction that writes the next direction and the update."""

import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.launch import Launch, launch_for, on_device_of
from aime_kernels.rgb_gram.table import Work
from aime_kernels.rgb_gram.triton_kernel import TRITON_DTYPE, load_piece, piece_types

LAUNCH = {80: Launch(2048, 4, True), 86: Launch(2048, 4, True), 90: Launch(2048, 4, True)}


@triton.jit
def combine_piece(
    entries,  # int64 [ROWS + 2], the addresses at one position: rows, direction, update
    coefficients,
    finite,
    start,
    offsets,
    mask,
    ROWS: tl.constexpr,
    ROW_DTYPE: tl.constexpr,
    LAST_DTYPE: tl.constexpr,
    UPDATE_DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Read n + 1 pieces, then write two. The update may lie where a row does: all is read before it is written."""
    home = tl.load(entries + ROWS)
    old = load_piece(home, start, offsets, mask, LAST_DTYPE, COMPUTE, ALIGNMENT)
    new = old * tl.load(coefficients + 2 * ROWS + 1).to(COMPUTE)
    total = tl.zeros_like(old)
    for i in tl.static_range(ROWS):
        row = load_piece(tl.load(entries + i), start, offsets, mask, ROW_DTYPE, COMPUTE, ALIGNMENT)
        new += row * tl.load(coefficients + ROWS + 1 + i).to(COMPUTE)
        total += row * tl.load(coefficients + i).to(COMPUTE)
    total += new * tl.load(coefficients + ROWS).to(COMPUTE)
    # A select, not a factor of zero: zero times NaN is NaN.
    new = tl.where(finite, new, old)
    total = tl.where(finite, total, 0.0)
    direction = tl.multiple_of(tl.multiple_of(home, ALIGNMENT).to(tl.pointer_type(LAST_DTYPE)), ALIGNMENT)
    target = tl.multiple_of(tl.load(entries + ROWS + 1), ALIGNMENT)
    update = tl.multiple_of(target.to(tl.pointer_type(UPDATE_DTYPE)), ALIGNMENT)
    tl.store(direction + start + offsets, new.to(LAST_DTYPE), mask=mask)
    tl.store(update + start + offsets, total.to(UPDATE_DTYPE), mask=mask)


@triton.jit
def rgb_combine_fwd_kernel(
    addresses,  # int64 [K, ROWS + 2]
    tiles,  # int64 [T, 3]
    coefficients,  # [2, ROWS + 1]
    finite,  # bool, 0-d
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,  # elements of one 16-byte access
    ROW_DTYPE: tl.constexpr,
    LAST_DTYPE: tl.constexpr,
    UPDATE_DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # bytes
):
    """Both combinations of one tile."""
    program = tl.program_id(0).to(tl.int64)
    entries = addresses + (ROWS + 2) * tl.load(tiles + 3 * program)
    start = tl.multiple_of(tl.load(tiles + 3 * program + 1), BLOCK)
    count = tl.load(tiles + 3 * program + 2)
    whole = count // GROUP * GROUP
    wide, rest = tl.arange(0, BLOCK), whole + tl.arange(0, GROUP)
    keep = tl.load(finite)
    combine_piece(
        entries, coefficients, keep, start, wide, wide < whole,
        ROWS, ROW_DTYPE, LAST_DTYPE, UPDATE_DTYPE, COMPUTE, ALIGNMENT,
    )  # fmt: skip
    combine_piece(
        entries, coefficients, keep, start, rest, rest < count,
        ROWS, ROW_DTYPE, LAST_DTYPE, UPDATE_DTYPE, COMPUTE, ALIGNMENT,
    )  # fmt: skip


def rgb_combine_triton(work: Work, coefficients: Tensor, finite: Tensor) -> None:
    """Combine the tiles of one `Work`, whose vectors are the rows, the direction and the update."""
    rows = len(work.dtypes) - 2
    launch = launch_for(LAUNCH, work.addresses.device)
    with on_device_of(finite):
        rgb_combine_fwd_kernel[(work.tiles.shape[0],)](
            work.addresses,
            work.tiles,
            coefficients,
            finite,
            ROWS=rows,
            BLOCK=launch.block,
            UPDATE_DTYPE=TRITON_DTYPE[work.dtypes[-1]],
            **piece_types(work.dtypes, rows, work.aligned),
            **launch.options(),
        )
