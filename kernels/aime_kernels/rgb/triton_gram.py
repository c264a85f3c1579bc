"""One pass over m long vectors: a partial Gram matrix for every tile, then their sum in a fixed order."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.launch import Launch
from aime_kernels.rgb.table import TILE_BYTES, Work, narrowest

# A block is 4096 bytes of the narrowest vector: 16 bytes for each thread.
LAUNCH = Launch(4096, 8, 80)


@triton.jit
def load_piece(address, start, offsets, mask, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Elements `start + offsets` of the tensor at `address`, as COMPUTE; zeros where masked or if the address is 0."""
    pointer = tl.multiple_of(address, ALIGNMENT).to(tl.pointer_type(DTYPE))
    pointers = tl.multiple_of(pointer, ALIGNMENT) + start + offsets
    return tl.load(pointers, mask=mask & (address != 0), other=0.0).to(COMPUTE)


@triton.jit
def rescaled(piece, AXIS: tl.constexpr):
    """Multiply each group of a float32 piece, along AXIS, by a power of two near 1 / its largest magnitude.

    Returns the scaled piece and the exponent fields of the powers. The scaling is exact, and after it no finite square
    overflows or vanishes.
    """
    largest = tl.max(tl.abs(piece), AXIS)
    field = tl.minimum(tl.maximum(254 - (largest.to(tl.int32, bitcast=True) >> 23), 1), 253)
    return piece * tl.expand_dims((field << 23).to(tl.float32, bitcast=True), AXIS), field


@triton.jit
def added_products(
    totals,  # tuple of VECTORS (VECTORS + 1) / 2 float64 [len(offsets) / GROUP], or an empty one
    entries,  # int64 [VECTORS], the addresses at one position
    start,
    offsets,
    mask,
    VECTORS: tl.constexpr,
    GROUP: tl.constexpr,
    FIRST_DTYPE: tl.constexpr,
    LAST_DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Add the inner products of every group to `totals`: computed in COMPUTE on scaled values, unscaled in float64.

    A group is what one thread loads. Threads exchange nothing before the end of a tile.
    """
    # After wide loads a thread holds neighbours, after narrow ones elements that are far apart.
    AXIS: tl.constexpr = 1 if ALIGNMENT == 16 else 0
    pieces, fields = (), ()
    for i in tl.static_range(VECTORS):
        address = tl.load(entries + i)
        if i == VECTORS - 1:
            piece = load_piece(address, start, offsets, mask, LAST_DTYPE, COMPUTE, ALIGNMENT)
        else:
            piece = load_piece(address, start, offsets, mask, FIRST_DTYPE, COMPUTE, ALIGNMENT)
        if AXIS == 1:
            piece = tl.reshape(piece, [piece.shape[0] // GROUP, GROUP])
        else:
            piece = tl.reshape(piece, [GROUP, piece.shape[0] // GROUP])
        if COMPUTE == tl.float32:
            piece, field = rescaled(piece, AXIS)
            fields = fields + (field,)
        pieces = pieces + (piece,)
    sums = ()
    for i in tl.static_range(VECTORS):
        for j in tl.static_range(i + 1):
            product = tl.sum(pieces[i] * pieces[j], AXIS).to(tl.float64)
            if COMPUTE == tl.float32:
                # Two powers 2^(127 - field) as one float64, whose exponent is biased by 1023.
                exponent = tl.cast(1277 - fields[i] - fields[j], tl.int64)
                product *= tl.cast(exponent << 52, tl.float64, bitcast=True)
            if len(totals) > 0:
                product += totals[i * (i + 1) // 2 + j]
            sums = sums + (product,)
    return sums


@triton.jit
def rgb_gram_fwd_kernel(
    addresses,  # int64 [K, VECTORS]
    tiles,  # int64 [T, 3]
    partials,  # float64 [T, VECTORS, VECTORS]
    VECTORS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,  # ranges of BLOCK elements in a tile
    GROUP: tl.constexpr,  # elements of one 16-byte load
    FIRST_DTYPE: tl.constexpr,
    LAST_DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # bytes
):
    """The inner products of one tile."""
    program = tl.program_id(0).to(tl.int64)
    entries = addresses + VECTORS * tl.load(tiles + 3 * program)
    start = tl.multiple_of(tl.load(tiles + 3 * program + 1), BLOCK)
    count = tl.load(tiles + 3 * program + 2)
    # Whole groups are loaded wide. The last few elements are loaded one by one, each as its own group.
    whole = count // GROUP * GROUP
    rest = whole + tl.arange(0, GROUP)
    rests = added_products(
        (), entries, start, rest, rest < count, VECTORS, 1, FIRST_DTYPE, LAST_DTYPE, COMPUTE, ALIGNMENT
    )  # fmt: skip
    totals, first = (), tl.arange(0, BLOCK // GROUP) == 0
    for i in tl.static_range(VECTORS * (VECTORS + 1) // 2):
        totals = totals + (tl.where(first, tl.sum(rests[i], 0), 0.0),)
    for step in tl.static_range(STEPS):
        wide = step * BLOCK + tl.arange(0, BLOCK)
        totals = added_products(
            totals, entries, start, wide, wide < whole, VECTORS, GROUP, FIRST_DTYPE, LAST_DTYPE, COMPUTE, ALIGNMENT
        )  # fmt: skip
    for i in tl.static_range(VECTORS):
        for j in tl.static_range(i + 1):
            product = tl.sum(totals[i * (i + 1) // 2 + j], 0)
            tl.store(partials + (program * VECTORS + i) * VECTORS + j, product)
            if i != j:
                tl.store(partials + (program * VECTORS + j) * VECTORS + i, product)


def rgb_gram_triton(work: Work) -> Tensor:
    """Gram matrix float64 [V, V] of the tiles of one `Work`; the order of summation follows from the sizes alone."""
    vectors, tiles = work.addresses.shape[1], work.tiles.shape[0]
    partials = torch.empty(tiles, vectors, vectors, dtype=torch.float64, device=work.addresses.device)
    LAUNCH.start(
        rgb_gram_fwd_kernel,
        (tiles,),
        work.addresses,
        work.tiles,
        partials,
        VECTORS=vectors,
        **steps(LAUNCH.block // narrowest(work.dtypes), work.dtypes),
        **piece_types(work.dtypes, -1, work.aligned),
    )
    return partials.sum(0)


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton gives its dtypes the names that torch does."""
    return getattr(tl, str(dtype).removeprefix("torch."))


def steps(block: int, dtypes: Sequence[torch.dtype]) -> dict[str, int]:
    """A tile as STEPS ranges of BLOCK elements."""
    return {"BLOCK": block, "STEPS": TILE_BYTES // (block * narrowest(dtypes))}


def piece_types(dtypes: Sequence[torch.dtype], last: int, aligned: bool) -> dict[str, object]:
    """Constants of `load_piece`: every vector that is read has the first of `dtypes` or the one at `last`."""
    smallest = narrowest(dtypes)
    return {
        "GROUP": 16 // smallest,
        "FIRST_DTYPE": triton_dtype(dtypes[0]),
        "LAST_DTYPE": triton_dtype(dtypes[last]),
        "COMPUTE": tl.float64 if torch.float64 in dtypes else tl.float32,
        "ALIGNMENT": 16 if aligned else smallest,
    }
