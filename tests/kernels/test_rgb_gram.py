"""The Gram matrix against one float64 product over the joined vectors; layouts, ragged sizes, extremes, cost."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aime_kernels import rgb_gram
from aime_kernels.rgb.layout import chunk_elements, chunks, flat_alike

CHUNK = chunk_elements(torch.device("cpu"))


class Calls(TorchDispatchMode):
    """Counts operator calls."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def vectors(m, shapes, dtype=torch.float32):
    return [[torch.randn(shape).to(dtype) + 0.3 * i for shape in shapes] for i in range(m)]


def joined(vectors):
    return torch.stack([torch.cat([tensor.double().reshape(-1) for tensor in vector]) for vector in vectors])


@pytest.mark.parametrize("m", [1, 2, 4, 7])
@pytest.mark.parametrize(
    "shapes",
    [[(1,)], [(3, 5), (4095,), (1,), (2, 4097)], [(CHUNK - 1,), (2,)], [(3 * CHUNK + 17,), (5, 1, 3)], [(0,), (6,)]],
)
def test_equals_the_product_of_the_joined_vectors(m, shapes):
    given = vectors(m, shapes)
    expected = joined(given) @ joined(given).t()
    gram = rgb_gram(given)
    assert gram.dtype == torch.float64
    assert torch.equal(gram, gram.t())
    torch.testing.assert_close(gram, expected, rtol=1e-12, atol=1e-12 * expected.diagonal().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_floating_dtype_is_summed_in_float64(dtype):
    given = vectors(3, [(70, 70), (33,)], dtype)
    torch.testing.assert_close(rgb_gram(given), joined(given) @ joined(given).t(), rtol=1e-12, atol=1e-9)


def test_none_counts_as_zeros():
    given = vectors(3, [(9,), (CHUNK + 1,), (4, 4), (2,)])
    holes = [(0, 0), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2), (2, 3)]
    sparse = [[None if (i, k) in holes else tensor for k, tensor in enumerate(row)] for i, row in enumerate(given)]
    zeroed = [[torch.zeros_like(t) if (i, k) in holes else t for k, t in enumerate(row)] for i, row in enumerate(given)]
    torch.testing.assert_close(rgb_gram(sparse), rgb_gram(zeroed), rtol=1e-13, atol=1e-13)
    assert torch.equal(rgb_gram([[None, None], [None, None]]), torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("mixed", [False, True])
def test_elements_correspond_whatever_the_layout(mixed):
    image, matrix = torch.randn(3, 4, 5, 6, 7), torch.randn(3, 8, 9)
    expected = rgb_gram([[image[i], matrix[i]] for i in range(3)])
    strided = [
        [image[i].contiguous(memory_format=torch.channels_last), matrix[i].t().contiguous().t()] for i in range(3)
    ]
    if mixed:
        strided[1] = [image[1].clone(), matrix[1].clone()]
    torch.testing.assert_close(rgb_gram(strided), expected, rtol=1e-13, atol=1e-13)
    expanded = torch.tensor(2.0).expand(5, 5)
    assert rgb_gram([[expanded], [torch.ones(5, 5)]]).tolist() == [[100, 50], [50, 25]]


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 3e38])
def test_no_square_of_float32_overflows_or_vanishes(scale):
    gram = rgb_gram([[torch.full((5000,), scale)], [torch.ones(5000)]])
    single = float(torch.tensor(scale))
    torch.testing.assert_close(gram[0, 0].item(), 5000 * single**2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, CHUNK, -1])
def test_one_poisoned_element_shows_on_the_diagonal(poison, place):
    given = vectors(3, [(CHUNK + 5,)])
    given[1][0][place] = poison
    finite = rgb_gram(given).isfinite().diagonal()
    assert finite.tolist() == [True, False, True]


def test_repeats_bit_for_bit():
    given = vectors(4, [(CHUNK + 3,), (77,)])
    assert torch.equal(rgb_gram(given), rgb_gram(given))


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="different numbers"):
        rgb_gram([[torch.ones(2)], [torch.ones(2), torch.ones(2)]])
    with pytest.raises(ValueError, match="shape"):
        rgb_gram([[torch.ones(2)], [torch.ones(3)]])


def test_calls_grow_with_elements_and_not_with_arithmetic():
    def calls(size):
        given = vectors(4, [(size,)])
        with Calls() as counted:
            rgb_gram(given)
        assert "_local_scalar_dense" not in counted.names
        return len(counted.names)

    one, five = calls(CHUNK), calls(5 * CHUNK)
    assert one <= 45
    assert five <= 5 * one


def test_chunks_cover_every_element_once_and_stay_within_their_size():
    sizes = [5, 1, 1, 40, 3, 17, 16, 0, 8]
    positions = [flat_alike([torch.arange(size) + 100 * k, None]) for k, size in enumerate(sizes)]
    seen, bounds = [], []
    for lengths, pieces in chunks(positions, 16):
        assert [len(piece) for piece in pieces[0]] == lengths
        assert pieces[1] == [None] * len(lengths)
        bounds.append(sum(lengths))
        seen += [piece.clone() for piece in pieces[0]]
    assert max(bounds) <= 16
    assert torch.equal(torch.cat(seen), torch.cat([flats[0] for flats in positions]))
