"""The mixture of discretised logistics: normalisation, closed-form gradient and mean."""

import math
import shutil

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from aime_kernels import logistic_mixture_loss, logistic_mixture_mean

HALF_BIN = 1 / 255
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def level_values(levels):
    return levels.double() * (2 / 255) - 1


def log_prob(frames, parameters, centre=None, weights=None):
    """log p [N], and the differentiable sum_n weights_n log p_n, by a linear map that is the identity."""
    around = torch.zeros_like(frames) if centre is None else centre
    weights = frames.new_ones(len(frames)) if weights is None else weights
    x, around = (tensor.flatten(2)[:, None].to(parameters.dtype) for tensor in (frames, around))
    identity = torch.eye(parameters.shape[1], dtype=parameters.dtype)
    total, nats, _ = logistic_mixture_loss(x, parameters.flatten(2).mT, identity, around, -weights, 0.0)
    return -nats, total


def textbook_log_prob(frames, parameters, centre=0.0):
    """Log-probability per frame from log-sigmoids of the bin's two ends, to be differentiated by autograd."""
    blocks, x = parameters.unflatten(1, (-1, 10)), frames[:, None]
    locations = blocks[:, :, 1:4] + centre
    red, green, _ = (x - locations).unbind(2)
    c = blocks[:, :, 7:].tanh()
    seen = [torch.zeros_like(c[:, :, 0]), c[:, :, 0] * red, c[:, :, 1] * red + c[:, :, 2] * green]
    scale = math.exp(-7) + math.exp(-2) / (torch.exp(-blocks[:, :, 4:7]) + math.exp(-5))
    centred = x - locations - torch.stack(seen, 2)
    below_upper, above_lower = F.logsigmoid((centred + HALF_BIN) / scale), F.logsigmoid((HALF_BIN - centred) / scale)
    inside = below_upper + above_lower + torch.log(-torch.expm1(-2 * HALF_BIN / scale))
    channels = torch.where(x < HALF_BIN - 1, below_upper, torch.where(x > 1 - HALF_BIN, above_lower, inside))
    return (channels.sum(2) + blocks[:, :, 0].log_softmax(1)).logsumexp(1).sum((1, 2))


def example(n, mixtures, height, width, spread, dtype=torch.float64):
    levels = torch.randint(0, 256, (n, 3, height, width))
    levels[torch.rand(levels.shape) < 0.2] = 0
    levels[torch.rand(levels.shape) < 0.2] = 255
    parameters = spread * torch.randn(n, 10 * mixtures, height, width, dtype=torch.float64)
    return level_values(levels).to(dtype), parameters.to(dtype).requires_grad_()


@pytest.mark.parametrize("spread", [0.1, 1.5, 20.0])
@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (1, 1, 1, 1), (17, 2, 3, 2)])
def test_value_and_gradient_equal_the_textbook_form(shape, spread):
    frames, parameters = example(*shape, spread)
    weights = torch.randn(shape[0], dtype=torch.float64)
    for centre in (None, torch.randn(frames.shape, dtype=torch.float64, requires_grad=True)):
        inputs = [parameters] if centre is None else [parameters, centre]
        expected = textbook_log_prob(frames, parameters, 0.0 if centre is None else centre[:, None])
        expected_gradients = torch.autograd.grad(expected @ weights, inputs)
        found, total = log_prob(frames, parameters, centre, weights)
        gradients = torch.autograd.grad(total, inputs)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-10)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-10)
        with torch.no_grad():
            without_gradient = log_prob(frames, parameters, centre)
        torch.testing.assert_close(without_gradient[0], expected, rtol=1e-11, atol=1e-10)


def textbook_terms(frames, parameters, centre):
    """Nats and squared error of the mean per frame [N], to be differentiated by autograd."""
    blocks = parameters.unflatten(1, (-1, 10))
    mean = (blocks[:, :, :1].softmax(1) * blocks[:, :, 1:4]).sum(1) + centre
    return -textbook_log_prob(frames, parameters, centre[:, None]), (mean - frames).square().sum((1, 2, 3))


def linear_example(n, images, mixtures, pixels, features, dtype=torch.float64):
    """Arguments of `logistic_mixture_loss`: features, weight and centre are leaves."""
    frames, _ = example(n * images, mixtures, 1, pixels, 1.0)
    shapes = (n, pixels, features), (images * 10 * mixtures, features), (n, images, 3, pixels)
    leaves = [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return frames.view(n, images, 3, pixels).to(dtype), *leaves, torch.rand(n).to(dtype), 0.7


def textbook_loss(pixels, features, weight, centre, of_nats, of_error):
    n, images, _, size = pixels.shape
    parameters = torch.einsum("npf,cf->ncp", features, weight).reshape(n * images, -1, 1, size)
    frames, around = (x.reshape(n * images, 3, 1, size) for x in (pixels, centre))
    nats, error = (term.view(n, images).sum(1) for term in textbook_terms(frames, parameters, around))
    return (nats * of_nats).sum() + of_error * error.sum(), nats, error


@pytest.mark.filterwarnings("default")  # torch's tracer warns of what it does itself
@pytest.mark.parametrize("shape", [(6, 4, 3, 20, 8), (1, 1, 1, 1, 1), (3, 2, 5, 7, 2)])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_the_loss_of_a_linear_map_equals_the_textbook_form(shape, compiled):
    torch.compiler.reset()
    given = linear_example(*shape)
    run = torch.compile(logistic_mixture_loss, fullgraph=True, dynamic=False) if compiled else logistic_mixture_loss
    found, expected = run(*given), textbook_loss(*given)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-10)
    assert [term.requires_grad for term in found] == [True, False, False]
    gradients, exact = (torch.autograd.grad(-1.5 * terms[0], given[1:4]) for terms in (found, expected))
    torch.testing.assert_close(gradients, exact, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(run(*given), expected, rtol=1e-11, atol=1e-10)


@pytest.mark.filterwarnings("default")  # torch's tracer warns of what it does itself
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_the_loss_in_float32_against_float64(mode, compiled, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", mode)
    torch.compiler.reset()
    given = linear_example(5, 4, 5, 18, 6, torch.float32)
    run = torch.compile(logistic_mixture_loss, fullgraph=True, dynamic=False) if compiled else logistic_mixture_loss
    doubles = [x.detach().double().requires_grad_(x.requires_grad) for x in given[:5]]
    found, exact = run(*given), textbook_loss(*doubles, given[5])
    # Derivatives up to e^7 meet with either sign, in sums over 18 pixels and 5 frames.
    gradients = torch.autograd.grad(found[0], given[1:4])
    for ours, truth in zip((*found, *gradients), (*exact, *torch.autograd.grad(exact[0], doubles[1:4])), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-5 * truth.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_loss_under_autocast_keeps_the_dtypes_of_its_gradients(dtype):
    pixels, features, weight, centre, *rest = linear_example(3, 2, 2, 6, 4, torch.float32)
    given = features.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, nats, _ = logistic_mixture_loss(pixels, given, weight, centre, *rest)
    gradients = torch.autograd.grad(loss, (given, weight, centre))
    assert nats.dtype == loss.dtype == torch.float32
    assert [of.dtype for of in gradients] == [dtype, torch.float32, torch.float32]
    exact = torch.autograd.grad(textbook_loss(pixels, features, weight, centre, *rest)[0], (features, weight, centre))
    for rounded, true in zip(gradients, exact, strict=True):
        assert F.cosine_similarity(rounded.float().flatten(), true.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("position", [0, 3, 4])
@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_the_loss_of_mixed_dtypes_is_that_of_the_features(position, mode, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", mode)
    given = linear_example(3, 2, 2, 6, 4, torch.float32)
    mixed = [x.detach().double() if i == position else x for i, x in enumerate(given)]
    (expected, *of), (found, *also) = (
        (logistic_mixture_loss(*arguments)[0], *torch.autograd.grad(logistic_mixture_loss(*arguments)[0], given[1]))
        for arguments in (given, mixed)
    )
    assert torch.equal(found, expected) and torch.equal(also[0], of[0])


def test_the_loss_leaves_its_arguments_alone_and_backward_what_it_kept():
    given = linear_example(2, 2, 2, 5, 3)
    before = [x.detach().clone() for x in given[:5]]
    loss = logistic_mixture_loss(*given)[0]
    (first,) = torch.autograd.grad(3 * loss, given[1:2], retain_graph=True)
    (second,) = torch.autograd.grad(loss, given[1:2])
    torch.testing.assert_close(first, 3 * second)
    assert all(torch.equal(was, now.detach()) for was, now in zip(before, given[:5], strict=True))


@needs_compiler
@pytest.mark.filterwarnings("default")  # torch's tracer warns of what it does itself
@pytest.mark.parametrize("spread", [1.5, 20.0])
@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_compiled_float32_against_float64(spread, mode, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", mode)
    torch.compiler.reset()
    frames, parameters = example(4, 5, 6, 6, spread, torch.float32)
    exact_parameters = parameters.detach().double().requires_grad_()
    exact, exact_total = log_prob(frames.double(), exact_parameters)
    found, total = torch.compile(log_prob, fullgraph=True, dynamic=False)(frames, parameters)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-3)
    total.backward()
    exact_total.backward()
    lost = torch.finfo(torch.float32).eps * math.exp(7) * (4 * spread + 1)
    torch.testing.assert_close(parameters.grad.double(), exact_parameters.grad, rtol=1e-3, atol=max(lost, 1e-3))


@pytest.mark.parametrize("spread", [1.5, 20.0])
@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_float32_against_float64(spread, mode, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", mode)
    frames, parameters = example(4, 5, 6, 6, spread, torch.float32)
    exact_parameters = parameters.detach().double().requires_grad_()
    exact, exact_total = log_prob(frames.double(), exact_parameters)
    found, total = log_prob(frames, parameters)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-3)
    total.backward()
    exact_total.backward()
    # 1 - tanh^2 keeps no digit of a saturated coupling: its error is eps times the pull, at most e^7, and the distance.
    lost = torch.finfo(torch.float32).eps * math.exp(7) * (4 * spread + 1)
    torch.testing.assert_close(parameters.grad.double(), exact_parameters.grad, rtol=1e-3, atol=max(lost, 1e-3))


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("raw_scale", [-9.0, -1.0, 0.5, 9.0])
def test_probabilities_of_the_256_levels_sum_to_one(channel, raw_scale):
    mixtures = 3
    parameters = torch.randn(1, 10 * mixtures, 1, 1, dtype=torch.float64)
    blocks = parameters.view(mixtures, 10)
    blocks[:, 4:7] = raw_scale
    # The other two channels are certain: at -1, with means so low that every other level is impossible.
    others = [c for c in range(3) if c != channel]
    blocks[:, [1 + c for c in others]] = -1e5
    levels = torch.zeros(256, 3, 1, 1)
    levels[:, channel, 0, 0] = torch.arange(256)
    found, _ = log_prob(level_values(levels), parameters.expand(256, -1, -1, -1))
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-10)


def test_hard_inputs_are_finite_with_a_gradient_that_points_home():
    extremes = torch.tensor([-1e4, -100.0, -7.0, 7.0, 100.0, 1e4])
    frames = level_values(torch.tensor([0, 1, 128, 254, 255])).float()
    for value in extremes:
        for first in (1, 4, 7):
            parameters = torch.zeros(5, 20, 1, 1)
            parameters[:, first : first + 3] = value
            parameters[:, 10:14] = -value
            parameters.requires_grad_()
            found, total = log_prob(frames[:, None, None, None].expand(-1, 3, 1, 1), parameters)
            total.backward()
            assert found.isfinite().all() and parameters.grad.isfinite().all()
    far = torch.zeros(1, 10, 1, 1)
    far[:, 1:4] = 50.0
    far[:, 4:7] = -5.0
    far.requires_grad_()
    log_prob(torch.zeros(1, 3, 1, 1), far)[1].backward()
    assert (far.grad[0, 1:4] < -1).all() and (far.grad[0, 4:7] > 0.3).all()


class OperatorCalls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_operator_calls_do_not_grow_with_the_number_of_frames():
    counts = []
    for n in (5, 16, 64):
        with OperatorCalls() as calls:
            logistic_mixture_loss(*linear_example(n, 2, 2, 9, 4))[0].backward()
        counts.append(calls.count)
    assert len(set(counts)) == 1


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="10 M"):
        logistic_mixture_mean(torch.zeros(2, 25, 4, 4))
    pixels, features, weight, centre, *rest = linear_example(2, 2, 3, 5, 4)
    for wrong in ((features[:1], weight, centre), (features, weight[:50], centre), (features, weight, centre[:, :1])):
        with pytest.raises(ValueError, match="do not fit"):
            logistic_mixture_loss(pixels, *wrong, *rest)
    for count in (0, 1, 3):
        with pytest.raises(ValueError, match="do not fit"):
            logistic_mixture_loss(pixels, features, weight, centre, torch.ones(count), 0.5)
    with pytest.raises(ValueError, match="several devices: cpu, cpu, cpu, cpu, meta"):
        logistic_mixture_loss(pixels, features, weight, centre, torch.ones(2, device="meta"), 0.5)


@pytest.mark.parametrize("sides", [(8, 8), (16, 16), (24, 24), (32, 32), (5, 7)])
@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_sub_images_of_any_size(sides, mode, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", mode)
    given = linear_example(2, 4, 2, sides[0] * sides[1], 3, torch.float32)
    doubles = [x.detach().double().requires_grad_(x.requires_grad) for x in given[:5]]
    found, exact = logistic_mixture_loss(*given), textbook_loss(*doubles, given[5])
    gradients = torch.autograd.grad(found[0], given[1:4])
    for ours, truth in zip((*found, *gradients), (*exact, *torch.autograd.grad(exact[0], doubles[1:4])), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-4 * truth.abs().max().item())


def test_the_mean_is_the_one_whose_error_the_loss_counts():
    frames, parameters = example(3, 4, 2, 5, 1.0)
    centre = torch.randn(frames.shape, dtype=torch.float64)
    blocks = parameters.unflatten(1, (-1, 10))
    expected = (blocks[:, :, :1].softmax(1) * blocks[:, :, 1:4]).sum(1) + centre
    torch.testing.assert_close(logistic_mixture_mean(parameters, centre), expected)
    torch.testing.assert_close(
        (expected - frames).square().sum((1, 2, 3)), textbook_terms(frames, parameters, centre)[1]
    )


def test_the_mean_carries_gradient():
    parameters = 0.1 * torch.randn(1, 20, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(logistic_mixture_mean, (parameters.requires_grad_(),))
