"""The nearest code through the kernel: against float64, equally near codes, odd sizes, what is not a number."""

import pytest
import torch

from aime_kernels import distance_to_codes, nearest_codes
from aime_kernels.codebook.op import SAME, nearest_operator


def squared(encodings, codes):
    return torch.cdist(encodings.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def first_near(encodings, codes):
    distances = squared(encodings, codes)
    return (distances <= distances.amin(1, keepdim=True) + SAME * codes.shape[1]).int().argmax(1)


@pytest.mark.parametrize("shape", [(70, 130, 20), (1, 1, 1), (5, 3, 64), (64, 64, 16), (3, 65, 33)])
def test_the_nearest_code_and_its_distance(shape, device):
    rows, count, dim = shape
    encodings, codes = torch.randn(rows, dim).to(device), torch.randn(count, dim).to(device)
    ids = nearest_codes(encodings, codes)
    assert ids.dtype == torch.int64 and torch.equal(ids, first_near(encodings, codes))
    exact = squared(encodings, codes).amin(1).sqrt()
    torch.testing.assert_close(distance_to_codes(encodings, codes).double(), exact, rtol=1e-5, atol=1e-3)


def test_of_codes_on_one_encoding_the_first_is_chosen_whatever_the_rounding(device):
    codes = torch.randn(100, 24)
    codes[70:] = codes[20:50] * (1 + 1e-7 * torch.randn(30, 1))
    codes[65] = codes[90]  # three codes on one place, over two tiles
    encodings = codes[20:50] * (1 + 1e-7 * torch.randn(30, 1))
    assert torch.equal(nearest_codes(encodings.to(device), codes.to(device)).cpu(), torch.arange(20, 50))
    one = torch.ones(2, 24, device=device)
    assert torch.equal(nearest_codes(one, one[:1].expand(90, -1)).cpu(), torch.zeros(2, dtype=torch.int64))


def test_a_distance_counts_to_its_last_digits(device):
    """Codes whose distances differ by a hundred times the tolerance, but less than TF32 resolves of |c|^2 - 2 x.c."""
    encodings = 3.0 + torch.randn(40, 64)
    codes = torch.cat([encodings + 0.1 * torch.randn(40, 64), 4 + torch.randn(20, 64)])
    codes = torch.cat([codes, codes[:40] + 0.05 * torch.randn(40, 64)])
    assert torch.equal(nearest_codes(encodings.to(device), codes.to(device)).cpu(), first_near(encodings, codes))


def test_what_is_not_a_number_gets_the_last_code(device):
    encodings, codes = torch.randn(4, 8), torch.randn(70, 8)
    expected = first_near(encodings, codes)
    encodings[1, 3], expected[1] = float("nan"), 69
    assert torch.equal(nearest_codes(encodings.to(device), codes.to(device)).cpu(), expected)
    distances = distance_to_codes(encodings.to(device), codes.to(device)).cpu()
    assert distances.isnan().tolist() == [False, True, False, False]


def test_nothing_strided_and_wrong_inputs(device):
    encodings, codes = torch.randn(12, 10).to(device), torch.randn(9, 10).to(device)
    assert nearest_codes(encodings[:0], codes).shape == distance_to_codes(encodings[:0], codes).shape == (0,)
    turned = encodings.t().contiguous().t(), codes.t().contiguous().t()
    assert torch.equal(nearest_codes(*turned), nearest_codes(encodings, codes))
    for wrong, words in [((encodings.double(), codes), "float64"), ((encodings, codes[:, :9]), "do not fit")]:
        with pytest.raises(ValueError, match=words):
            nearest_codes(*wrong)


def test_operator_and_a_graph_around_it(device):
    encodings, codes = torch.randn(6, 5).to(device), torch.randn(7, 5).to(device)
    torch.library.opcheck(nearest_operator, (encodings, codes))
    compiled = torch.compile(nearest_codes, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(encodings, codes), nearest_codes(encodings, codes))
