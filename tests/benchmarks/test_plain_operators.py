"""The peers in plain torch do the same work as the operators: they agree where neither is near a limit."""

import pytest
import torch
from plain import PLAIN

import aime_kernels
from aime_kernels.routes import ROUTES


def drawn(*shapes, low=0.0, high=1.0):
    return [torch.rand(shape, dtype=torch.float64) * (high - low) + low for shape in shapes]


INPUTS = {
    "mixture_log_density": lambda: (
        [*drawn((3, 5, 4)), torch.randn(3, 6).double().log_softmax(-1), *drawn((3, 6, 4), (3, 6, 4))]
    ),
    "slot_attention": lambda: drawn((2, 3, 5), (2, 7, 5), (2, 7, 5)),
    "kumaraswamy_log_weights": lambda: drawn((4, 5), (4, 5), (4, 5), low=0.2, high=0.8),
    "nearest_codes": lambda: [torch.randn(9, 4), torch.randn(5, 4)],
    "normalise_frames": lambda: [torch.randint(0, 256, (2, 3, 5, 7, 3), dtype=torch.uint8)],
    "rgb_gram": lambda: [[[torch.randn(5), torch.randn(2, 3)] for _ in range(4)]],
}
TOLERANCE = {"slot_attention": 1e-6}
"""Its plain form adds 1e-8 to a sum of seven assignments, each above 1e-2."""


def test_every_route_has_a_peer():
    assert set(PLAIN) == set(ROUTES)


@pytest.mark.parametrize("name", INPUTS)
def test_a_peer_agrees(name):
    given = INPUTS[name]()
    ours, theirs = getattr(aime_kernels, name)(*given), PLAIN[name](*given)
    tolerance = TOLERANCE.get(name, 1e-5 if name in ("rgb_gram", "normalise_frames") else 1e-10)
    for one, two in zip(*([x] if torch.is_tensor(x) else x for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance, check_dtype=False)


def test_the_peer_of_the_divergence_agrees_where_its_series_converges():
    """Ten terms leave out less than 1e-4 of M for b >= 4 and a <= 1."""
    log_a, log_b = drawn((4, 5), low=-1.0, high=0.0) + drawn((4, 5), low=1.4, high=2.0)
    mean, mean_log = drawn((4, 1), (4, 1), low=0.5, high=2.0)
    given = log_a, log_b, mean, mean_log
    ours, theirs = aime_kernels.expected_kumaraswamy_beta_kl(*given), PLAIN["expected_kumaraswamy_beta_kl"](*given)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("finite", [True, False])
def test_the_peer_of_the_combination_writes_both(finite):
    def tensors():
        torch.manual_seed(1)
        *gradients, direction, update = [[torch.randn(5), torch.randn(2, 3)] for _ in range(5)]
        return gradients, direction, update, torch.rand(2, 4).double(), torch.tensor(finite)

    ours, theirs = tensors(), tensors()
    aime_kernels.rgb_combine(*ours)
    PLAIN["rgb_combine"](*theirs)
    for one, two in zip([*ours[1], *ours[2]], [*theirs[1], *theirs[2]], strict=True):
        torch.testing.assert_close(one, two)
