"""The compiled step trains as the step as written does, compiles once, and leaves validation alone."""

import shutil

import pytest
import torch
from recording import tiny_options, write_recording

from aime_fast.errors import UserError
from aime_fast.training import compilation
from aime_fast.training.trainer import DMCVBTrainer

STEPS, WARM_UP = 20, 2
# SGD: AdamW's first steps divide by the noise of near-zero gradients, which turns rounding into steps.
OPTIM = {"name": "sgd", "lr": 0.005, "warmup_steps": 0}

# Torch's tracer warns of what it does itself: looks at `.grad` of every tensor, makes objects of autograd functions.
pytestmark = pytest.mark.filterwarnings("default")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


def weights(trainer):
    return torch.cat([p.detach().flatten().double() for p in trainer.engine.module.parameters() if p.requires_grad])


def train(trainer, stance):
    """Values of each step; after the warm-up under `stance`, which may forbid to compile."""
    values = []
    for step in range(STEPS):
        with torch.compiler.set_stance("default" if step < WARM_UP else stance):
            result = trainer.step(trainer.step.fetch(step), 0.5)
        assert result.finite
        values.append({name: value.item() for name, value in result.values.items()})
    return values


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """As written and compiled: the trainer, its first weights, and its values of 20 steps."""
    found = {}
    for choice in ("off", "on"):
        out = tmp_path_factory.mktemp(choice) / "run"
        trainer = DMCVBTrainer(**tiny_options(data, out, steps=STEPS, optim=OPTIM, compile=choice))
        start = weights(trainer)
        found[choice] = trainer, start, train(trainer, "fail_on_recompile")
    return found


@needs_compiler
@pytest.mark.timeout(600)
def test_twenty_steps_equal_those_of_the_step_as_written(runs):
    eager, start, expected = runs["off"]
    compiled, _, found = runs["on"]
    way = (weights(eager) - start).norm()
    assert way > 0.01
    assert (weights(compiled) - weights(eager)).norm() < 1e-4 * way
    names = [name for name in expected[0] if name.startswith(("total_", "perceiver_loss", "grad_norm"))]
    for wanted, got in zip(expected, found, strict=True):
        assert [got[name] for name in names] == pytest.approx([wanted[name] for name in names], rel=1e-3)


@needs_compiler
def test_compiling_ends_with_the_first_step_and_is_told_once(runs):
    compiled = runs["on"][0]
    # The 18 steps after the warm-up ran where compiling raises; this is what the steps before them cost.
    assert " graphs in " in compiled._compilation.news()
    assert compiled._compilation.news() is None
    assert runs["off"][0]._compilation is None


@needs_compiler
def test_validation_compiles_nothing_and_sees_the_same_model(runs):
    compiled = runs["on"][0]
    compiled._compilation.news()
    summary = compiled.fit(until=1)
    assert summary.best_psnr is None or summary.best_psnr > 0
    windows = list(compiled.validation_backend.evaluation_windows(4))
    with torch.no_grad(), compilation.uncompiled():
        outputs = compiled.engine.module(windows[0].observations.movedim(-1, 2), windows[0].actions)
        losses, _ = compiled.aggregator.compute_losses(outputs)
    assert losses["total_elbo"].isfinite()
    assert compiled._compilation.news() is None


def test_auto_compiles_on_a_gpu_only():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [compilation.wanted(word, cpu) for word in ("on", "auto", "off")] == [True, False, False]
    assert [compilation.wanted(word, gpu) for word in ("on", "auto", "off")] == [True, True, False]


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch, data, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"C\+\+ compiler .*install g\+\+"):
        DMCVBTrainer(**tiny_options(data, tmp_path / "run", compile="on"))
    assert not (tmp_path / "run").exists()


def test_compiled_code_is_kept_where_a_restart_does_not_clear_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert compilation.cache_folder() == tmp_path / "aime_fast" / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert compilation.cache_folder() == tmp_path / "mine"
