"""C++ for CPUs: built once, completely or not at all, and equal to the float64 oracle for every number of pixels."""

import ctypes
import re
import threading

import pytest
import torch
from test_logistic_mixture import example, textbook_terms

from aime_kernels import logistic_mixture_loss, native
from aime_kernels.logistic_mixture import native as mixture

SUM = 'extern "C" int sum(int a, int b) { return a + b; }\n'


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache folder and no memory of earlier builds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "adder"
    folder.mkdir()
    (folder / "sum.cpp").write_text(SUM)
    return folder / "sum.cpp"


@pytest.fixture
def buildable():
    """Skips where this machine cannot build, with the reason that a user would read."""
    if reason := mixture.build_obstacle():
        pytest.skip(reason)


OF_ERROR = 3.0


def terms(frames, parameters, centre, of_nats):
    """Nats, errors and the gradients of parameters and centre: a map by the identity leaves parameters as they are."""
    leaves = [parameters.detach().requires_grad_(), centre.detach().requires_grad_()]
    features, images = leaves[0].flatten(2).mT, (x.flatten(2)[:, None] for x in (frames, leaves[1]))
    x, around = images
    loss, *found = logistic_mixture_loss(x, features, torch.eye(features.shape[2]), around, of_nats, OF_ERROR)
    return *found, *torch.autograd.grad(loss, leaves)


def oracle(frames, parameters, centre, of_nats):
    leaves = [parameters.detach().double().requires_grad_(), centre.detach().double().requires_grad_()]
    nats, error = textbook_terms(frames.double(), *leaves)
    return nats, error, *torch.autograd.grad((nats * of_nats).sum() + OF_ERROR * error.sum(), leaves)


def inputs(n, mixtures, height, width, spread=1.0):
    frames, parameters = example(n, mixtures, height, width, spread, torch.float32)
    return frames, parameters, 0.3 * torch.randn_like(frames), torch.randn(n)


@pytest.mark.parametrize("pixels", [(1, 1), (3, 5), (4, 4), (1, 17), (5, 7), (8, 8), (16, 16), (24, 24), (32, 32)])
@pytest.mark.parametrize("mixtures", [1, 5, 10])
def test_every_number_of_pixels_equals_the_oracle(buildable, pixels, mixtures):
    given = inputs(3, mixtures, *pixels)
    assert mixture.native_obstacle(given[1]) is None
    nats, error, of_parameters, of_centre = terms(*given)
    exact = oracle(*given)
    # A sum of channels of up to some hundred nats each, and derivatives up to e^7 that meet with either sign.
    torch.testing.assert_close(nats.double(), exact[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(error.double(), exact[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_parameters.double(), exact[2], rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(of_centre.double(), exact[3], rtol=1e-4, atol=4e-3)
    with torch.no_grad():
        x, around, blocks = (t.flatten(2) for t in (given[0], given[2], given[1]))
        log_prob, mean = mixture.native_terms(x, around, blocks.unflatten(1, (-1, 10)))
    torch.testing.assert_close(-log_prob.double(), exact[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close((mean - x).square().sum((1, 2)).double(), exact[1], rtol=1e-5, atol=1e-5)


def test_no_frames_at_all(buildable):
    frames, parameters = torch.zeros(0, 3, 2, 2), torch.zeros(0, 20, 2, 2)
    shapes = [tuple(found.shape) for found in terms(frames, parameters, frames, torch.zeros(0))]
    assert shapes == [(0,), (0,), (0, 20, 2, 2), (0, 3, 2, 2)]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_spoils_its_own_frame_and_no_other(buildable, poison):
    given = inputs(4, 3, 3, 7)
    clean = terms(*given)
    parameters = given[1].detach().clone()
    parameters[2, 11] = poison  # the location of a component
    spoilt = terms(given[0], parameters, *given[2:])
    rest = [0, 1, 3]
    for before, after in zip(clean, spoilt, strict=True):
        assert torch.equal(before[rest], after[rest])
    assert not spoilt[1][2].isfinite().all() and not spoilt[2][2].isfinite().all()


def test_threads_and_strides_change_nothing(buildable):
    given = inputs(5, 4, 6, 6)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(terms(*given))
    finally:
        torch.set_num_threads(threads)
    strided = [x.detach().contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in given]
    found.append(terms(*strided))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.filterwarnings("default")  # torch's own checks warn of what they do
def test_torch_accepts_the_operators(buildable):
    x, centre, blocks = torch.randn(2, 3, 5).clamp(-1, 1), torch.randn(2, 3, 5), torch.randn(2, 3, 10, 5)
    torch.library.opcheck(mixture.native_terms, (x, centre, blocks))
    torch.library.opcheck(mixture.gradients_in_place, (x, centre, blocks, torch.randn(2), 0.7))


def test_the_reference_can_be_asked_for(monkeypatch):
    given = inputs(2, 3, 4, 4)
    found = terms(*given)
    monkeypatch.setenv("AIME_KERNELS", "reference")
    assert mixture.native_obstacle(given[1]) == "the route on cpu is reference"
    for ours, theirs in zip(found, terms(*given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=4e-3)


def test_a_library_is_built_once(buildable, fresh, source, monkeypatch):
    assert native.library(source).sum(2, 3) == 5
    (kept,) = (fresh / "aime_kernels" / "native").iterdir()
    assert kept.name.startswith("adder-") and kept.suffix == ".so"
    monkeypatch.setattr(native, "_build", lambda *_: pytest.fail("built again"))
    native.library.cache_clear()
    assert native.library(source).sum(2, 3) == 5


def test_another_source_is_another_library(buildable, fresh, source):
    native.library(source)
    source.write_text(SUM.replace("a + b", "a * b"))
    native.library.cache_clear()
    assert native.library(source).sum(2, 3) == 6


def test_builds_at_once_leave_one_whole_library(buildable, source, tmp_path):
    target, faults = tmp_path / "sum.so", []

    def build():
        faults.append(native._build([native.compiler(), "-shared", "-fPIC", str(source)], target))

    workers = [threading.Thread(target=build) for _ in range(4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert faults == [None] * 4 and ctypes.CDLL(str(target)).sum(2, 3) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adder", "sum.so"]


def test_without_a_compiler_torch_operators_run_and_the_reason_is_reported(fresh, monkeypatch):
    given = inputs(2, 2, 3, 3)
    expected = terms(*given)
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.library.cache_clear()
    reason = mixture.native_obstacle(given[1])
    assert reason in ("no C++ compiler; install g++", "the CPU has no AVX2")
    for ours, theirs in zip(terms(*given), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=4e-3)


def test_a_failing_compiler_is_quoted(buildable, fresh, source):
    source.write_text("this is no C++\n")
    assert re.search(r"fails: .*sum\.cpp.*error", native.library(source))
    assert not any((fresh / "aime_kernels" / "native").iterdir())


def test_a_compiler_that_fails_is_asked_once(buildable, fresh, source, monkeypatch):
    script = fresh / "compiler"
    script.write_text(f"#!/bin/sh\necho asked >> {fresh}/asked\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    for _ in range(3):
        assert native.library(source).endswith("fails: no message")
    assert (fresh / "asked").read_text() == "asked\n"


def test_a_cache_that_cannot_be_written_costs_a_build_a_process(buildable, fresh, source):
    (fresh / "aime_kernels").write_text("a file where the folder would be")
    assert native.library(source).sum(2, 3) == 5
