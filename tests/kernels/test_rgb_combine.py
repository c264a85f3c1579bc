"""The combination sweep against float64 tensor algebra; aliasing, layouts, missing tensors, poison, cost."""

import pytest
import torch
from test_logistic_mixture import OperatorCalls

from aime_kernels import rgb_combine, rgb_gram
from aime_kernels.rgb.layout import chunk_elements

CHUNK = chunk_elements(torch.device("cpu"))
SHAPES = [(3, 5), (CHUNK + 19,), (1,), (2, 3, 4, 4), (0,), (7,)]
TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def problem(n, dtype=torch.float32, shapes=SHAPES):
    rows = [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(n)]
    wide = torch.promote_types(dtype, torch.float32)
    return rows, [torch.randn(shape, dtype=wide) for shape in shapes], torch.randn(2, n + 1, dtype=torch.float64)


def expected(rows, direction, coefficients):
    new, total = [], []
    for k, old in enumerate(direction):
        parts = [torch.zeros_like(old) if row[k] is None else row[k] for row in rows]
        fresh = sum(c * part.double() for c, part in zip(coefficients[1], [*parts, old], strict=True))
        new.append(fresh)
        total.append(sum(c * part.double() for c, part in zip(coefficients[0], [*parts, fresh], strict=True)))
    return new, total


def assert_all_close(actual, wanted, dtype):
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(actual, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_tensor_algebra_in_place_and_apart(n, dtype):
    rows, direction, coefficients = problem(n, dtype)
    new, total = expected(rows, direction, coefficients)
    apart, kept = [torch.empty_like(tensor) for tensor in rows[0]], [tensor.clone() for tensor in direction]
    rgb_combine(rows, kept, apart, coefficients, TRUE)
    others = [[tensor.clone() for tensor in row] for row in rows[1:]]
    rgb_combine(rows, direction, rows[0], coefficients, TRUE)
    wide = torch.promote_types(dtype, torch.float32)
    assert_all_close(direction, new, wide)
    assert_all_close(rows[0], total, dtype)
    assert all(torch.equal(a, b) for a, b in zip(apart, rows[0], strict=True))
    assert all(
        torch.equal(a, b) for row, kept in zip(rows[1:], others, strict=True) for a, b in zip(row, kept, strict=True)
    )


def test_missing_tensors_count_as_zeros_and_positions_without_direction_are_left():
    rows, direction, coefficients = problem(3)
    rows[0][0] = rows[1][1] = rows[0][3] = rows[1][3] = rows[2][3] = rows[2][5] = None
    new, total = expected(rows, direction, coefficients)
    update = [rows[0][k] if rows[0][k] is not None else torch.empty_like(direction[k]) for k in range(len(SHAPES))]
    rgb_combine(rows, direction, update, coefficients, TRUE)
    assert_all_close(direction, new, torch.float32)
    assert_all_close(update, total, torch.float32)
    untouched = torch.ones(3)
    rgb_combine([[None]], [None], [None], torch.ones(2, 2), TRUE)
    rgb_combine([[untouched, torch.ones(2)]], [None, torch.ones(2)], [None, torch.ones(2)], torch.ones(2, 2), TRUE)
    assert torch.equal(untouched, torch.ones(3))


@pytest.mark.parametrize("layouts", ["rows", "direction", "mixed", "all"])
def test_writes_arrive_whatever_the_layout(layouts):
    rows, direction, coefficients = problem(3, shapes=[(3, 4, 5, 6), (2, 3, 2, 2)])
    new, total = expected(rows, direction, coefficients)
    if layouts in ("rows", "all"):
        rows = [[tensor.contiguous(memory_format=torch.channels_last) for tensor in row] for row in rows]
    if layouts in ("direction", "all"):
        direction = [tensor.contiguous(memory_format=torch.channels_last) for tensor in direction]
    if layouts == "mixed":
        rows[0] = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in rows[0]]
    rgb_combine(rows, direction, rows[0], coefficients, TRUE)
    assert_all_close(direction, new, torch.float32)
    assert_all_close(rows[0], total, torch.float32)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_not_finite_writes_zeros_and_leaves_the_direction(poison):
    rows, direction, coefficients = problem(3)
    rows[1][1][7] = rows[0][3][0, 0, 0, 0] = poison
    coefficients[:] = poison
    before = [tensor.clone() for tensor in direction]
    rgb_combine(rows, direction, rows[0], coefficients, FALSE)
    assert all(tensor.eq(0).all() for tensor in rows[0])
    assert all(torch.equal(a, b) for a, b in zip(direction, before, strict=True))


def test_scratch_does_not_grow_with_the_vectors(peak_bytes):
    rows, direction, coefficients = problem(3, shapes=[(20 * CHUNK,), (300, 1000)])
    held = peak_bytes(lambda: rgb_combine(rows, direction, rows[0], coefficients, TRUE))
    assert held <= 4 * 6 * CHUNK + 1000  # coefficients


def test_a_chunk_of_a_long_vector_takes_few_operator_calls():
    counts = []
    for chunks in (2, 6):
        size = chunks * CHUNK
        *rows, direction, update = [[torch.zeros(size)] for _ in range(5)]
        with OperatorCalls() as calls:
            rgb_gram([*rows, direction])
            rgb_combine(rows, direction, update, torch.ones(2, 4, dtype=torch.float64), TRUE)
        counts.append(calls.count)
    # Four copies, the products and a last block; eight terms and two selections.
    assert counts[1] - counts[0] <= 4 * 16
