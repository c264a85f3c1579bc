"""Every operator where float32 products keep 11 bits of their factors (TF32), against float64.

On a CPU the rounding is simulated and the operators take the references that a GPU would take. On a GPU it is real, for
references and kernels. Only the linear map of `logistic_mixture_loss` may be rounded: its tolerance is larger.
"""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import aime_kernels
from aime_kernels.codebook.op import SAME
from aime_kernels.dispatch import assumed_device

PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm", "aten.mv", "aten.addmv", "aten.dot", "aten.addbmm")


def rounded(x):
    """float32 with the last 13 of its 23 bits rounded away."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


class TensorFloat32(TorchDispatchMode):
    """Rounds the factors of float32 products as tensor cores do."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function).startswith(tuple(f"{name}." for name in PRODUCTS)):
            summand = 1 if "add" in str(function) else 0
            args = (*args[:summand], *map(rounded, args[summand:]))
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def rounding(request, monkeypatch):
    """The device on which products are rounded during the test."""
    if request.param == "real":
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
        yield "cuda"
        return
    monkeypatch.setenv("AIME_KERNELS", "reference")
    with assumed_device("cuda"), TensorFloat32():
        yield "cpu"


@pytest.fixture(autouse=True, params=["reference", "auto"])
def mode(request, monkeypatch):
    """Both are references on a CPU; on a GPU `auto` takes the kernels."""
    monkeypatch.setenv("AIME_KERNELS", request.param)


def draw(*shape, device):
    return torch.randn(shape, dtype=torch.float64).float().to(device)


def both(function, inputs, wanted):
    """Results and gradients of the first inputs, in float32 and in float64."""
    found = []
    for given in (inputs, [x.double() if x.is_floating_point() else x for x in inputs]):
        leaves = [x.detach().clone().requires_grad_(i < wanted) for i, x in enumerate(given)]
        made = function(*leaves)
        parts = [made] if isinstance(made, torch.Tensor) else list(made)
        gradients = torch.autograd.grad([p.sin().sum() for p in parts], leaves[:wanted]) if wanted else ()
        found.append([*parts, *gradients])
    return zip(*found, strict=True)


def close(pairs, slack):
    for found, exact in pairs:
        torch.testing.assert_close(found.double(), exact, rtol=slack, atol=slack * (1 + exact.abs().max().item()))


def test_the_simulation_rounds(rounding):
    a, b = draw(256, 256, device=rounding), draw(256, 256, device=rounding)
    error = ((a @ b).double() - a.double() @ b.double()).abs().max()
    assert 1e-3 < error < 1e-1


def test_slot_attention(rounding):
    inputs = [4 * draw(2, 5, 16, device=rounding), *(draw(2, 64, 16, device=rounding) for _ in range(2))]
    close(both(aime_kernels.slot_attention, inputs, 3), 2e-5)


def test_mixture_density(rounding):
    inputs = [draw(3, 4, 6, device=rounding), *(draw(3, 5, *rest, device=rounding) for rest in [(), (6,), (6,)])]
    inputs[1] = inputs[1].log_softmax(-1)
    close(both(aime_kernels.mixture_log_density, inputs, 4), 2e-5)


def test_sticks_and_their_divergence(rounding):
    sticks = [draw(6, 14, device=rounding) for _ in range(2)]
    uniform = torch.rand(6, 14).clamp(0.01, 0.99).to(rounding)
    close(both(aime_kernels.kumaraswamy_log_weights, [*sticks, uniform], 2), 5e-5)
    moments = [draw(6, 1, device=rounding).abs() + 0.5, draw(6, 1, device=rounding)]
    close(both(aime_kernels.expected_kumaraswamy_beta_kl, [*sticks, *moments], 4), 5e-5)


def test_nearest_codes(rounding):
    # Codes that differ in distance by more than SAME allows and by less than TF32 resolves of |c|^2 - 2 x.c.
    encodings = 2 + draw(60, 64, device=rounding)
    codes = torch.cat([encodings + 0.1 * draw(60, 64, device=rounding) for _ in range(4)])
    squared = torch.cdist(encodings.double(), codes.double()).square()
    exact = (squared <= squared.amin(1, keepdim=True) + SAME * 64).int().argmax(1)
    assert torch.equal(aime_kernels.nearest_codes(encodings, codes), exact)
    found = aime_kernels.distance_to_codes(encodings, codes)
    torch.testing.assert_close(found.double(), squared.amin(1).sqrt(), rtol=1e-3, atol=0)
    if rounding == "cpu":
        with assumed_device("cpu"):  # a product of matrices is not enough
            assert not torch.equal(aime_kernels.nearest_codes(encodings, codes), exact)


def test_gram_matrices_and_combinations(rounding):
    vectors = [[draw(5000, device=rounding)] for _ in range(3)]
    joined = torch.stack([vector[0].double() for vector in vectors])
    bound = 5e-7 * joined.abs() @ joined.abs().t()
    assert ((aime_kernels.rgb_gram(vectors) - joined @ joined.t()).abs() <= bound).all()
    direction, update = [torch.zeros(5000, device=rounding)], [torch.empty(5000, device=rounding)]
    coefficients = torch.rand(2, 4, dtype=torch.float64).to(rounding)
    aime_kernels.rgb_combine(
        vectors, direction, update, coefficients, torch.ones((), dtype=torch.bool, device=rounding)
    )
    new = coefficients[1, :3] @ joined
    close([(direction[0], new), (update[0], coefficients[0, :3] @ joined + coefficients[0, 3] * new)], 1e-6)


@pytest.mark.parametrize("dtype, slack", [(torch.float32, 2e-2), (torch.bfloat16, 0.1)])
def test_the_linear_map_of_the_pixel_likelihood_may_be_rounded(dtype, slack, rounding):
    """The density is that of parameters which are off by a rounding of the map's factors; its gradient fits them."""
    pixels = torch.randint(0, 256, (2, 4, 3, 6)).to(rounding) * (2 / 255) - 1
    features, weight, centre = draw(2, 6, 8, device=rounding), draw(200, 8, device=rounding) / 8, 0.1 * pixels
    rest = torch.rand(2).to(rounding), 0.5
    pairs = []
    for dtypes in ((dtype, torch.float32), (torch.float64,) * 2):
        leaves = [features.to(dtypes[0]).requires_grad_(), weight.to(dtypes[1]).requires_grad_()]
        loss, nats, _ = aime_kernels.logistic_mixture_loss(pixels, *leaves, centre, *rest)
        pairs.append((nats, *torch.autograd.grad(loss, leaves)))
    (nats, *gradients), (exact_nats, *exact) = pairs
    torch.testing.assert_close(nats.double(), exact_nats, rtol=slack, atol=0)
    for one, other in zip(gradients, exact, strict=True):
        assert F.cosine_similarity(one.double().flatten(), other.flatten(), dim=0) > 1 - slack
