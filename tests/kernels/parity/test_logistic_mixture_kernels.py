"""The pixel likelihood's kernels: values and every gradient against float64, hard values, odd sizes, bfloat16."""

import numpy as np
import pytest
import torch

from aime_kernels import logistic_mixture_loss
from aime_kernels.logistic_mixture.kernel import TILE, kernel_gradients, kernel_terms, pixel_gradients, pixel_terms
from aime_kernels.logistic_mixture.reference import reference_gradients, reference_terms

OF_ERROR = 0.75  # a float32: a kernel's scalars are
EPS = torch.finfo(torch.float32).eps


def levels(*shape):
    """Values of the 256 levels, many of them -1 or 1."""
    drawn = torch.randint(0, 256, shape)
    drawn[torch.rand(shape) < 0.2] = 0
    drawn[torch.rand(shape) < 0.2] = 255
    return drawn.double() * (2 / 255) - 1


def example(n, mixtures, pixels, spread, device, dtype=torch.float32):
    """x, centre, blocks and weights of nats; all but the blocks are at least float32."""
    wide = torch.promote_types(dtype, torch.float32)
    x, centre = levels(n, 3, pixels), 0.3 * torch.randn(n, 3, pixels, dtype=torch.float64)
    blocks = (spread * torch.randn(n, mixtures, 10, pixels, dtype=torch.float64)).to(dtype)
    given = [x.to(wide), centre.to(wide), blocks, torch.randn(n, dtype=torch.float64).to(wide)]
    return [tensor.to(device) for tensor in given]


def exact(x, centre, blocks, of_nats):
    """The reference in float64: log p, error, gradients of blocks and centre; and the mean."""
    doubles = [tensor.double() for tensor in (x, centre, blocks, of_nats)]
    return *reference_gradients(*doubles[:2], doubles[2].clone(), doubles[3], OF_ERROR), reference_terms(*doubles[:3])[
        1
    ]


def found_by_kernels(x, centre, blocks, of_nats):
    log_prob, mean = kernel_terms(x, centre, blocks)
    again, *rest = kernel_gradients(x, centre, blocks.clone(), of_nats, OF_ERROR)
    torch.testing.assert_close(log_prob, again, rtol=10 * EPS if x.dtype == torch.float32 else 1e-13, atol=0)
    return again, *rest, mean


@pytest.mark.parametrize("shape", [(2, 5, 9), (1, 1, 1), (3, 2, TILE + 3), (1, 10, 2 * TILE), (2, 1, 7)])
@pytest.mark.parametrize("spread", [0.1, 1.5, 20.0])
def test_float32_against_float64(shape, spread, device):
    given = example(*shape, spread, device)
    log_prob, error, of_blocks, of_centre, mean = found_by_kernels(*given)
    truth = exact(*given)
    torch.testing.assert_close(log_prob.double(), truth[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(error.double(), truth[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean.double(), truth[4], rtol=1e-5, atol=1e-5 * spread)
    # 1 - tanh^2 keeps no digit of a saturated coupling: its error is eps times the pull, at most e^7, and the distance.
    lost = max(EPS * 1100 * (4 * spread + 1), 1e-3) * given[3].abs().max().item()
    torch.testing.assert_close(of_blocks.double(), truth[2], rtol=1e-3, atol=lost)
    torch.testing.assert_close(of_centre.double(), truth[3], rtol=1e-3, atol=2 * lost)


def test_double_precision_is_that_of_the_reference(device):
    for shape in [(2, 3, 11), (1, 1, 4)]:
        for spread in (0.3, 3.0):
            given = example(*shape, spread, device, torch.float64)
            for found, truth in zip(found_by_kernels(*given), exact(*given), strict=True):
                torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


def test_gradients_of_the_loss_in_double_precision(device):
    shapes = (1, 2, 2), (2 * 10, 2), (1, 1, 3, 2)
    features, weight, centre = (0.5 * torch.randn(shape, dtype=torch.float64, device=device) for shape in shapes)
    leaves = [leaf.requires_grad_() for leaf in (features, weight, centre)]
    pixels, of_nats = levels(1, 1, 3, 2).to(device), torch.rand(1, dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(
        lambda *leaves: logistic_mixture_loss(pixels, *leaves, of_nats, OF_ERROR)[0], leaves, fast_mode=True
    )


@pytest.mark.parametrize("value", [-1e4, -100.0, -7.0, 7.0, 100.0, 1e4])
def test_hard_parameters_are_finite_and_those_of_the_reference(value, device):
    x = (torch.tensor([0, 1, 128, 254, 255]) * (2 / 255) - 1).expand(1, 3, 5).contiguous()
    for first in (1, 4, 7):
        blocks = torch.zeros(1, 2, 10, 5)
        blocks[:, 0, first : first + 3] = value
        blocks[:, 1, first : first + 3] = -value
        given = [tensor.to(device) for tensor in (x, torch.zeros_like(x), blocks, torch.ones(1))]
        truths = exact(*given)
        # Shares of components are exponentials of differences of their log p.
        slack = 1e-4 + 4 * EPS * truths[0].abs().max().item()
        for found, truth in zip(found_by_kernels(*given), truths, strict=True):
            assert found.isfinite().all()
            torch.testing.assert_close(found.double(), truth, rtol=slack, atol=slack * truth.abs().max().item() + 1e-6)


def test_scales_from_the_smallest_to_the_largest(device):
    """Where the two forms of sinh meet, and at both ends."""
    raw = torch.linspace(-12, 12, 97)
    blocks = torch.zeros(1, 1, 10, 97)
    blocks[:, :, 4:7] = raw
    x = levels(1, 3, 97).float()
    given = [tensor.to(device) for tensor in (x, x + 0.01, blocks, torch.ones(1))]
    for found, truth in zip(found_by_kernels(*given), exact(*given), strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=2e-5, atol=2e-6 * truth.abs().max().item())


def test_bfloat16_parameters_are_computed_in_float32(device):
    given = example(2, 3, 20, 1.0, device, torch.bfloat16)
    log_prob, error, of_blocks, of_centre, mean = found_by_kernels(*given)
    truth = exact(*given)
    assert of_blocks.dtype == torch.bfloat16
    for found, true in zip((log_prob, error, of_centre, mean), (truth[0], truth[1], truth[3], truth[4]), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=2e-3)
    # The interpreter truncates where a GPU rounds: one step of bfloat16 instead of half a step.
    torch.testing.assert_close(of_blocks.double(), truth[2], rtol=2**-7, atol=2e-3)


def test_what_is_not_finite_spoils_its_own_frame_and_no_other(device):
    given = example(3, 3, 7, 1.0, device)
    clean = found_by_kernels(*given)
    for poison in (float("nan"), float("inf")):
        spoilt = given[2].clone()
        spoilt[1, 1, 1] = poison  # a location of a component
        with np.errstate(invalid="ignore"):
            log_prob, error, of_blocks, *_ = after = kernel_gradients(given[0], given[1], spoilt, given[3], OF_ERROR)
        for one, other in zip(clean, after, strict=False):
            assert torch.equal(one[[0, 2]], other[[0, 2]])
        assert not error[1].isfinite() and not of_blocks[1].isfinite().all()
        if poison != poison:
            assert log_prob[1].isnan()


def test_strides_and_tiles_change_nothing(device):
    given = example(2, 2, TILE + 5, 1.0, device)
    turned = [tensor.mT.contiguous().mT for tensor in given[:3]]
    for one, other in zip(found_by_kernels(*given), found_by_kernels(*turned, given[3]), strict=True):
        assert torch.equal(one, other)


def test_no_frames_give_nothing(device):
    x, blocks = torch.zeros(0, 3, 4, device=device), torch.zeros(0, 2, 10, 4, device=device)
    shapes = [tuple(t.shape) for t in found_by_kernels(x, x, blocks, torch.zeros(0, device=device))]
    assert shapes == [(0,), (0,), (0, 2, 10, 4), (0, 3, 4), (0, 3, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_takes_the_kernels(dtype, device, monkeypatch):
    features = torch.randn(2, 6, 4, device=device).to(dtype).requires_grad_()
    weight, centre = torch.randn(4 * 20, 4, device=device), torch.randn(2, 4, 3, 6, device=device)
    leaves = features, weight.requires_grad_(), centre.requires_grad_()
    pixels, of_nats = levels(2, 4, 3, 6).float().to(device), torch.rand(2, device=device)

    def run():
        found = logistic_mixture_loss(pixels, *leaves, of_nats, OF_ERROR)
        with torch.no_grad():
            alone = logistic_mixture_loss(pixels, *leaves, of_nats, OF_ERROR)
        return [*found, *alone, *torch.autograd.grad(found[0], leaves)]

    by_kernels = run()
    monkeypatch.setenv("AIME_KERNELS", "reference")
    for found, expected in zip(by_kernels, run(), strict=True):
        assert found.dtype == expected.dtype
        # Gradients of bfloat16 parameters are rounded to it before the products.
        slack = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, expected, rtol=slack, atol=slack * expected.abs().max().item())


def test_float16_is_refused(device):
    with pytest.raises(ValueError, match="float16"):
        logistic_mixture_loss(
            *(torch.zeros(shape, device=device, dtype=torch.float16) for shape in ((1, 1, 3, 2), (1, 2, 4), (10, 4))),
            torch.zeros(1, 1, 3, 2, device=device), torch.ones(1, device=device), 0.0,
        )  # fmt: skip


@pytest.mark.filterwarnings("default")  # torch's tracer warns of what it does itself
def test_operators_and_a_graph_around_them(device):
    x, centre, blocks, of_nats = example(2, 2, 5, 1.0, device)
    torch.library.opcheck(pixel_terms, (x, centre, blocks))
    torch.library.opcheck(pixel_gradients, (x, centre, blocks, of_nats, OF_ERROR))
    features = torch.randn(2, 5, 3, device=device, requires_grad=True)
    weight, around = torch.randn(20, 3, device=device), centre[:, None]

    def loss(features):
        return logistic_mixture_loss(x[:, None], features, weight, around, of_nats, OF_ERROR)[0]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, expected = ((out, *torch.autograd.grad(out, features)) for out in (compiled(features), loss(features)))
    torch.testing.assert_close(found, expected)


def test_the_bytes_that_move(device, moved_bytes):
    given = example(2, 3, TILE, 1.0, device)
    blocks, frame = given[2].nbytes, given[0].nbytes
    sums = 2 * (4 + 2 * 4)
    assert moved_bytes(lambda: kernel_gradients(*given, OF_ERROR)) == 3 * blocks + 3 * frame + sums
