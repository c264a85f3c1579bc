"""The two passes of gradient balancing over lists of tensors: layouts, dtypes, alignment, extremes, bytes."""

import pytest
import torch

from aime_kernels import rgb_combine, rgb_gram
from aime_kernels.rgb import reference
from aime_kernels.rgb.op import combine_operator, gram_operator
from aime_kernels.rgb.table import Work, works, written_table
from aime_kernels.rgb.triton_gram import rgb_gram_triton

SHAPES = [(3, 5), (4096 + 19,), (1,), (2, 3, 4, 4), (0,), (2, 4096)]


@pytest.fixture
def true(device):
    return torch.tensor(True, device=device)


def vectors(m, device, dtype=torch.float32, shapes=SHAPES):
    return [[(torch.randn(shape) + 0.3 * i).to(device, dtype) for shape in shapes] for i in range(m)]


def exact_gram(given):
    joined = torch.stack([torch.cat([tensor.double().reshape(-1) for tensor in vector]) for vector in given])
    return joined @ joined.t(), joined.abs() @ joined.abs().t()


@pytest.mark.parametrize("m", [1, 2, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gram_of_ragged_lists(m, dtype, device):
    given = vectors(m, device, dtype)
    exact, size = exact_gram(given)
    gram = rgb_gram(given)
    assert gram.dtype == torch.float64 and torch.equal(gram, gram.t())
    assert ((gram - exact).abs() <= (1e-14 if dtype == torch.float64 else 5e-7) * size).all()
    assert torch.equal(gram, rgb_gram(given))


def test_gram_of_mixed_dtypes_holes_and_odd_addresses(device):
    given = vectors(4, device)
    given[3] = [tensor.double() for tensor in given[3]]
    given[0][5] = torch.randn(2 * 4096 + 1, device=device)[1:].view(2, 4096)  # 4-byte aligned only
    given[1][3] = given[1][3].contiguous(memory_format=torch.channels_last)
    zeroed = [list(vector) for vector in given]
    for i, k in [(0, 0), (1, 0), (2, 1), (3, 3)]:
        given[i][k], zeroed[i][k] = None, torch.zeros_like(given[i][k])
    exact, size = exact_gram(zeroed)
    assert ((rgb_gram(given) - exact).abs() <= 5e-7 * size).all()
    nothing = rgb_gram([[None, torch.empty(0, device=device)]] * 2)
    assert torch.equal(nothing.cpu(), torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-30, 1e30, 3e38])
def test_no_square_of_float32_overflows_or_vanishes(scale, device):
    given = [[torch.full((4100,), scale, device=device)], [torch.ones(4100, device=device)]]
    exact, _ = exact_gram(given)
    torch.testing.assert_close(rgb_gram(given), exact, rtol=5e-7, atol=0)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # numpy's maximum, in the interpreter
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 4096, -1])
def test_one_poisoned_element_shows_on_the_diagonal(poison, place, device):
    given = vectors(3, device, shapes=[(4096 + 5,)])
    given[1][0][place] = poison
    assert rgb_gram(given).isfinite().diagonal().tolist() == [True, False, True]


def plain_combine(rows, direction, update, coefficients, finite):
    columns = [column for column in zip(*rows, direction, update, strict=True) if column[-1] is not None]
    reference.combine(columns, coefficients, finite)


def problem(n, device, dtype, wide, shapes=SHAPES):
    rows, (direction,) = vectors(n, device, dtype, shapes), vectors(1, device, wide, shapes)
    return rows, direction, torch.randn(2, n + 1, dtype=torch.float64).to(device)


@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_combination_in_place_and_apart(n, dtype, device, true):
    wide = torch.promote_types(dtype, torch.float32)
    rows, direction, coefficients = problem(n, device, dtype, wide)
    tolerance = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 2e-2}
    exact = [tensor.double().clone() for tensor in direction]
    update = [torch.empty_like(tensor) for tensor in exact]
    plain_combine([[t.double() for t in row] for row in rows], exact, update, coefficients, true)
    apart, kept = [torch.empty_like(tensor) for tensor in rows[0]], [tensor.clone() for tensor in direction]
    rgb_combine(rows, kept, apart, coefficients, true)
    others = [[tensor.clone() for tensor in row] for row in rows[1:]]
    rgb_combine(rows, direction, rows[0], coefficients, true)
    for found, expected, limit in [(direction, exact, tolerance[wide]), (rows[0], update, tolerance[dtype])]:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=limit, atol=limit)
    assert all(torch.equal(a, b) for a, b in zip([*apart, *kept], [*rows[0], *direction], strict=True))
    for row, old in zip(rows[1:], others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(row, old, strict=True))


def test_combination_with_holes_layouts_and_odd_addresses(device, true):
    rows, direction, coefficients = problem(3, device, torch.float32, torch.float32)
    direction[5] = torch.randn(2 * 4096 + 1, device=device)[1:].view(2, 4096)
    rows[1][3] = rows[1][3].contiguous(memory_format=torch.channels_last)
    rows[2][1] = rows[1][0] = direction[2] = None
    update = [None if tensor is None else torch.empty_like(tensor) for tensor in direction]
    expected = [None if t is None else t.clone() for t in direction], [None if t is None else t.clone() for t in update]
    plain_combine(rows, *expected, coefficients, true)
    rgb_combine(rows, direction, update, coefficients, true)
    for found, other in zip([*direction, *update], [*expected[0], *expected[1]], strict=True):
        assert (found is None) == (other is None)
        if found is not None:
            torch.testing.assert_close(found, other, rtol=2e-6, atol=4e-6)


def flat_views(count, offset, cuts, device, dtype=torch.float32):
    """`count` vectors, each as slices of a flat buffer that begin `offset` elements into it."""
    buffers = torch.randn(count, offset + sum(cuts) + 16, device=device).to(dtype)
    return [list(buffer[offset : offset + sum(cuts)].split(cuts)) for buffer in buffers.unbind()]


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("cuts", [(5000,), (4097, 3, 130, 4096)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_into_flat_buffers_at_any_offset(offset, cuts, dtype, device, true):
    rows, direction = flat_views(3, offset, cuts, device, dtype), flat_views(1, offset, cuts, device)[0]
    exact, size = exact_gram([*rows, direction])
    assert ((rgb_gram([*rows, direction]) - exact).abs() <= 5e-7 * size).all()
    coefficients, update = (
        torch.randn(2, 4, dtype=torch.float64, device=device),
        flat_views(1, 1, cuts, device, dtype)[0],
    )
    expected = [t.clone() for t in direction], [t.clone() for t in update]
    plain_combine(rows, *expected, coefficients, true)
    rgb_combine(rows, direction, update, coefficients, true)
    limit = 2e-2 if dtype == torch.bfloat16 else 4e-6
    for found, other in zip([*direction, *update], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(found, other, rtol=limit, atol=limit)


def test_writes_stay_inside_a_view(device, true):
    buffers = torch.ones(4, 4200, device=device)
    one, two, direction, update = ([buffer[3:4101]] for buffer in buffers.unbind())
    rgb_combine([one, two], direction, update, torch.ones(2, 3, dtype=torch.float64, device=device), true)
    assert direction[0].eq(3).all() and update[0].eq(5).all()
    assert buffers[:, :3].eq(1).all() and buffers[:, 4101:].eq(1).all()


def test_only_the_elements_before_the_first_aligned_one_are_read_narrowly(device):
    def sizes(*offsets):
        flats = [torch.zeros(1000 + offset, device=device)[offset:][:1000] for offset in offsets]
        return {work.aligned: work.tiles[:, 2].sum().item() for work in works([flats], torch.device(device))}

    assert sizes(0, 0) == {True: 1000} and sizes(1, 1) == {False: 3, True: 997} and sizes(3, 7) == {False: 1, True: 999}
    assert sizes(0, 1) == {False: 1000}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_not_finite_writes_zeros_and_leaves_the_direction(poison, device):
    rows, direction, coefficients = problem(3, device, torch.float32, torch.float32)
    rows[1][1][7] = rows[0][3][0, 0, 0, 0] = poison
    coefficients[:] = poison
    before = [tensor.clone() for tensor in direction]
    rgb_combine(rows, direction, rows[0], coefficients, torch.tensor(False, device=device))
    assert all(tensor.eq(0).all() for tensor in rows[0])
    assert all(torch.equal(a, b) for a, b in zip(direction, before, strict=True))


@pytest.mark.parametrize("m", [2, 4, 8])
def test_bytes_moved_over_the_minimum(m, device, true, moved_bytes):
    """The table of docs/performance.md has what this prints."""
    shapes = [(8 * 4096 + 40,), (64, 64), (4000,)]
    rows, direction, coefficients = problem(m - 1, device, torch.float32, torch.float32, shapes)
    update = [torch.empty_like(tensor) for tensor in direction]
    size = 4 * sum(tensor.numel() for tensor in direction)
    gram = moved_bytes(lambda: rgb_gram([*rows, direction]))
    tiles = 3 + 1 + 1
    second_stage = 8 * m * m * (tiles + 1)
    of_gram = (gram + second_stage) / (m * size)
    assert 1.0 <= of_gram <= 1.05
    print(f"bytes moved over the minimum: rgb_gram {m} vectors {of_gram:.4f}")
    rows = rows[:6]  # the most that rgb_combine takes beside the direction and the update
    combine = moved_bytes(lambda: rgb_combine(rows, direction, update, coefficients, true))
    of_combine = combine / ((len(rows) + 3) * size)
    print(f"bytes moved over the minimum: rgb_combine {len(rows)} rows {of_combine:.4f}")
    assert 1.0 <= of_combine <= 1.05


def test_what_the_kernels_are_not_built_for_is_refused(device, true):
    many = vectors(9, device, shapes=[(4,)])
    with pytest.raises(ValueError, match="9 vectors, built for 8"):
        rgb_gram(many)
    with pytest.raises(ValueError, match="dtype"):
        one = torch.ones(4, device=device)
        rgb_gram([[one.half()], [one], [one]])
    with pytest.raises(ValueError, match="int64"):
        rgb_gram([[torch.ones(4, device=device, dtype=torch.int64)]])
    with pytest.raises(ValueError, match="shape"):
        rgb_gram([[torch.ones(2, device=device)], [torch.ones(3, device=device)]])
    with pytest.raises(ValueError, match="9 vectors"):
        rgb_combine(many[:7], many[7], many[8], torch.ones(2, 8, device=device), true)


def test_tensors_on_two_devices_are_refused(device, true):
    one, elsewhere = torch.ones(4, device=device), torch.ones(4, device="meta")
    with pytest.raises(ValueError, match=r"float32 on meta among those on"):
        rgb_gram([[one], [elsewhere]])
    with pytest.raises(ValueError, match="not on"):
        rgb_combine([[one]], [one], [one.clone()], torch.ones(2, 2, device="meta"), true)


@pytest.mark.slow
def test_tiles_beyond_32_bits(device, tmp_path):
    far, size = 2**31 + 16, 40
    if device == "cpu":
        long = torch.from_file(str(tmp_path / "sparse"), shared=True, size=far + size)  # takes no room on the disk
    else:
        long = torch.zeros(far + size, device=device)
    long[far:] = torch.randn(size, device=device)
    addresses, tiles = torch.tensor([[long.data_ptr()]]), torch.tensor([[0, far, size]])
    work = Work(addresses.to(device), tiles.to(device), (torch.float32,), True)
    torch.testing.assert_close(rgb_gram_triton(work), rgb_gram([[long[far:].clone()]]), rtol=1e-6, atol=0)


def test_a_table_written_on_the_device_has_every_bit_of_the_addresses(device):
    addresses = ((0, 2**62 + 1, 2**47 - 16), (1, 0, 140_000_000_000_256))
    assert torch.equal(written_table(addresses, torch.device(device)).cpu(), torch.tensor(addresses))


def test_a_cuda_graph_of_vectors_that_it_allocates_itself(device, true):
    if device == "cpu":
        pytest.skip("the interpreter has no CUDA graphs")
    sources, direction, coefficients = problem(2, device, torch.float32, torch.float32, [(3, 5), (70_000,)])

    def step():
        rows = [[tensor * 2 for tensor in row] for row in sources]  # new addresses in the memory of the graph
        update = [torch.empty_like(tensor) for tensor in direction]
        gram = rgb_gram([*rows, direction])
        rgb_combine(rows, direction, update, coefficients, true)
        return gram, *update

    side = torch.cuda.Stream()
    before = [tensor.clone() for tensor in direction]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        found = step()
    for tensor, value in zip(direction, before, strict=True):
        tensor.copy_(value)
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_operators_and_a_graph_around_them(device, true):
    rows, direction, coefficients = problem(2, device, torch.float32, torch.float32, [(3, 5), (7,)])
    flat, update = [t for column in zip(*rows, strict=True) for t in column], [torch.zeros_like(t) for t in direction]
    torch.library.opcheck(gram_operator, (flat, 2))
    torch.library.opcheck(combine_operator, (flat, direction, update, coefficients, true))

    def both(rows, direction, update, coefficients):
        rgb_combine(rows, direction, update, coefficients, true)
        return rgb_gram([*rows, direction])

    again = [tensor.clone() for tensor in direction]
    found = torch.compile(both, fullgraph=True, backend="aot_eager")(rows, direction, update, coefficients)
    assert torch.equal(found, both(rows, again, update, coefficients))
    assert all(torch.equal(a, b) for a, b in zip(direction, again, strict=True))
