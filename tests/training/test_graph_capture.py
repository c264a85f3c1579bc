"""The step as a CUDA graph equals the step as written; what cannot be captured runs as written and says so."""

import inspect
import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from fake_graph import captured_trainer
from recording import tiny_options, write_recording
from torch.autograd.graph import get_gradient_edge

from aime_fast.errors import UserError
from aime_fast.training.compile.graph_capture import WARM_UP
from aime_fast.training.engines.engine import Engine
from aime_fast.training.nest import copied, copy_tensors, form, tensors
from aime_fast.training.step import Inputs
from aime_fast.training.trainer import DMCVBTrainer

STEPS = 12
ON_A_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
DEEPSPEED = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what DeepSpeed imports


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.engine.module.parameters()])


def spoiled(inputs):
    """The inputs with an action that is not a number."""
    actions = inputs.batch.actions.clone()
    actions[0, 1, 0] = torch.nan
    return Inputs(replace(inputs.batch, actions=actions), inputs.draws)


def half(inputs):
    """The first window alone: a short batch."""
    return Inputs(inputs.batch.rows(0, 1), inputs.draws.rows(0, 1))


def train(trainer, change=None, steps=range(STEPS)):
    """Losses of each step, whether it was finite, and the weights after it; learning rate and beta move."""
    rows = []
    for step in steps:
        inputs = trainer.step.fetch(step)
        inputs = change[step](inputs) if change and step in change else inputs
        trainer.engine.set_lr(trainer.schedules.lr(step))
        result = trainer.step(inputs, trainer.schedules.beta(step))
        values = {name: value.item() for name, value in result.values.items()}
        rows.append((values, bool(result.finite), weights(trainer).clone()))
    return rows


def assert_equal(one, two):
    """Equal to rounding, which the device's form of beta may change."""
    assert [finite for _, finite, _ in one] == [finite for _, finite, _ in two]
    for (values, _, after), (others, _, also) in zip(one, two, strict=True):
        assert values == pytest.approx(others, rel=1e-5, abs=1e-6, nan_ok=True)
        torch.testing.assert_close(after, also, rtol=1e-5, atol=1e-6)


CASES = {
    "plain": ({}, {}),
    "accumulation": ({"optim": {"accumulation": 2}}, {}),
    "skipped": ({}, {1: spoiled, WARM_UP: spoiled, 8: spoiled}),
    "short": ({}, {5: half, 9: half}),
    "groups": ({"balancing": {"groups": "module"}, "losses": {"beta_warmup_steps": 3}}, {}),
    "uncertainty": ({"balancing": {"solver": "uncertainty"}}, {}),
    "zero0": ({"ds_config": "zero0"}, {}),
    "zero1": ({"ds_config": "zero1"}, {}),
    "zero2": ({"ds_config": "zero2", "optim": {"accumulation": 2}}, {7: spoiled}),
}


def options_of(data, folder, changes):
    return tiny_options(data, folder, steps=STEPS, compile="off", **changes)


@DEEPSPEED
@pytest.mark.parametrize("name", CASES)
def test_captured_equals_as_written(data, tmp_path, monkeypatch, name):
    options, change = CASES[name]
    written = DMCVBTrainer(**options_of(data, tmp_path / "one", options), cuda_graph="off")
    expected = train(written, change)
    written.close()
    trainer, recorder = captured_trainer(monkeypatch, options_of(data, tmp_path / "two", options))
    found = train(trainer, change)
    trainer.close()
    assert_equal(found, expected)
    graphs = 2 if name in ("zero1", "zero2") else 1
    as_written = sum(change[step] is half for step in change)
    replays = graphs * (STEPS - WARM_UP - as_written)
    assert {call: recorder.calls.count(call) for call in ("warm up", "capture", "replay")} == {
        "warm up": WARM_UP,
        "capture": graphs,
        "replay": replays,
    }
    assert trainer.capture.take_message() is None


def log(folder):
    """Numbers of all rows of metrics by (step, split), without those of the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("frames_per_second", "data_wait", "step_seconds", "memory_gb", "time", "seconds", "split")
    return {(row["step"], row["split"]): {k: v for k, v in row.items() if k not in clock} for row in rows}


def test_a_run_with_validation_figures_and_a_resumption_equals_one_as_written(data, tmp_path, monkeypatch):
    """Through the loop: a validation every third step, a pause after step 5, and a new process's trainer."""
    logging = {"log_every": 2, "tracker": "none", "figures_every": 2}
    changes = {"steps": STEPS, "compile": "off", "logging": logging}
    written = DMCVBTrainer(**tiny_options(data, tmp_path / "one", **changes), cuda_graph="off")
    written.fit()
    out = tmp_path / "two"
    for resume, until in ((None, 5), ("auto", None)):
        trainer, recorder = captured_trainer(monkeypatch, tiny_options(data, out, resume=resume, **changes))
        trainer.fit(until)
        assert recorder.calls.count("replay") == (2 if until else 4)
    expected, found = log(tmp_path / "one"), log(out)
    # The pause logs a row of its own, which shortens the interval of the next one.
    both = expected.keys() & found.keys() - {(6, "train")}
    assert {step for step, _ in both} == {2, 3, 4, 6, 8, 9, 10, 12}
    for key in both:
        assert found[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6, nan_ok=True)
    torch.testing.assert_close(weights(trainer), weights(written), rtol=1e-5, atol=1e-6)


@DEEPSPEED
@pytest.mark.parametrize(("ds_config", "fails"), [(None, {1}), ("zero2", {1}), ("zero2", {2})])
def test_a_capture_that_fails_loses_and_repeats_nothing(data, tmp_path, monkeypatch, ds_config, fails):
    written = DMCVBTrainer(**options_of(data, tmp_path / "one", {"ds_config": ds_config}), cuda_graph="off")
    expected = train(written)
    written.close()
    options = options_of(data, tmp_path / "two", {"ds_config": ds_config})
    trainer, recorder = captured_trainer(monkeypatch, options, fails=fails)
    found = train(trainer)
    assert_equal(found, expected)
    assert recorder.calls.count("capture") == max(fails)
    message = trainer.capture.take_message()
    part = "follow" if fails == {2} else "compute" if ds_config else "step"
    assert message.startswith("the step runs as written, because capturing it as a CUDA graph failed: " + part)
    assert message.endswith("RuntimeError: Cannot copy between CPU and CUDA tensors")
    assert trainer.capture.take_message() is None
    trainer.close()


def test_a_capture_that_is_demanded_and_fails_ends_the_run(data, tmp_path, monkeypatch):
    trainer, _ = captured_trainer(monkeypatch, options_of(data, tmp_path / "run", {}), "on", fails={1})
    train(trainer, steps=range(WARM_UP))
    before = weights(trainer).clone()
    with pytest.raises(UserError, match=r"graph on: the step cannot be captured .*Cannot copy .*graph auto") as raised:
        train(trainer, steps=[WARM_UP])
    assert torch.equal(weights(trainer), before)
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize("converted", [False, True])
def test_a_failed_capture_names_the_line_of_ours_that_failed(data, tmp_path, monkeypatch, converted):
    """Also where a library raises another error from the first one, which then has no frame of ours."""
    trainer, _ = captured_trainer(monkeypatch, options_of(data, tmp_path / "run", {}), "on")
    train(trainer, steps=range(WARM_UP))

    def grad(*_args, **_options):
        try:
            raise ValueError("not while capturing")
        except ValueError as error:
            if converted:
                raise RuntimeError("converted") from error
            raise

    monkeypatch.setattr(torch.autograd, "grad", grad)
    lines, first = inspect.getsourcelines(Engine._gradients)
    line = first + next(number for number, text in enumerate(lines) if "autograd.grad(" in text)
    place = f"step at aime_fast/training/engines/engine.py:{line}: ValueError: not while capturing"
    with pytest.raises(UserError, match=re.escape(f"cannot be captured ({place})")):
        train(trainer, steps=[WARM_UP])


@DEEPSPEED
@pytest.mark.parametrize("ds_config", [None, "zero0", "zero1", "zero2"])
def test_no_autograd_node_of_a_parameter_outlives_a_step(data, tmp_path, ds_config):
    """It would belong to another stream than the capture's, which waits for that one: CUDA does not allow it."""
    trainer = DMCVBTrainer(**options_of(data, tmp_path / "run", {"ds_config": ds_config}))
    parameters = [parameter for parameter in trainer.engine.module.parameters() if parameter.requires_grad]

    def outlived():
        """How many nodes are still there after nobody here has held them."""
        for parameter in parameters:
            get_gradient_edge(parameter).node.metadata["seen"] = True
        return sum("seen" in get_gradient_edge(parameter).node.metadata for parameter in parameters)

    held = parameters[0].exp()
    assert outlived() == 1, "a graph that is there is found"
    del held
    assert outlived() == 0
    result = trainer.step(trainer.step.fetch(0), 0.5)
    assert result.finite and outlived() == 0
    trainer.engine.load_weights(trainer.engine.weights())
    assert outlived() == 0
    trainer.close()


def test_graphs_end_before_the_engine(data, tmp_path, monkeypatch):
    """NCCL waits for ever for graphs that hold its reductions."""
    trainer, recorder = captured_trainer(monkeypatch, tiny_options(data, tmp_path / "run", steps=STEPS))
    train(trainer)
    alive = []
    monkeypatch.setattr(trainer.engine, "close", lambda: alive.append(len(trainer.capture._graphs)))
    trainer._closing.callback(trainer.engine.close)
    trainer._closing._exit_callbacks.rotate(1)  # the engine's own place: the first to open is the last to close
    trainer.close()
    assert alive == [0] and recorder.calls[-1] == "wait"


def test_the_run_says_once_why_it_goes_on_as_written(data, tmp_path, monkeypatch, capsys):
    trainer, _ = captured_trainer(monkeypatch, options_of(data, tmp_path / "run", {}), fails={1})
    trainer.fit()
    assert capsys.readouterr().err.count("step 4: the step runs as written, because capturing it") == 1


@ON_A_CPU
def test_a_cpu_has_no_graphs(data, tmp_path):
    with pytest.raises(UserError, match="--cuda-graph on: a CPU has no CUDA graphs; use --cuda-graph auto"):
        DMCVBTrainer(**tiny_options(data, tmp_path / "run", cuda_graph="on"))
    assert not (tmp_path / "run").exists()


@ON_A_CPU
def test_auto_says_nothing_about_graphs_on_a_cpu(data, tmp_path):
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run"))
    assert trainer.capture is None
    assert not any("graph" in note for note in trainer.notes)


@DEEPSPEED
def test_zero3_cannot_be_captured(data, tmp_path):
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run", ds_config="zero3"))
    assert "ZeRO-3 gathers the parameters into new memory" in trainer.engine.capture_obstacle
    trainer.close()


def test_inputs_are_copied_in_place_and_other_forms_are_told_apart(data, tmp_path):
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run"))
    inputs, others = trainer.step.fetch(0), trainer.step.fetch(1)
    held = copied(inputs)
    addresses = [tensor.data_ptr() for tensor in tensors(held)]
    assert form(held) == form(others) != form(half(inputs))
    assert form(inputs) != form(Inputs(inputs.batch, replace(inputs.draws, first_row=2)))
    copy_tensors(others, held)
    assert all(torch.equal(one, two) for one, two in zip(tensors(held), tensors(others), strict=True))
    assert addresses == [tensor.data_ptr() for tensor in tensors(held)]
    assert {tensor.data_ptr() for tensor in tensors(inputs)}.isdisjoint(addresses)


@pytest.mark.gpu
@DEEPSPEED
@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        *((name, "off") for name in ("plain", "accumulation", "skipped", "short", "groups", "zero0", "zero2")),
        ("plain", "on"),
    ],
)
def test_captured_equals_as_written_on_a_gpu(data, tmp_path, name, compiled):
    """With SGD, so that rounding stays rounding: the order of atomic sums is free."""
    options, change = CASES[name]
    if "ds_config" in options:
        pytest.importorskip("deepspeed")
    optim = {"name": "sgd", "lr": 0.005, "warmup_steps": 4, "tf32": False, **options.get("optim", {})}
    options = options | {"optim": optim}
    rows = []
    for choice in ("off", "on"):
        made = tiny_options(data, tmp_path / choice, steps=STEPS, **options)
        trainer = DMCVBTrainer(**made, compile=compiled, cuda_graph=choice)
        rows.append(train(trainer, change))
        trainer.close()
    assert [finite for _, finite, _ in rows[0]] == [finite for _, finite, _ in rows[1]]
    for (values, finite, after), (others, _, also) in zip(*rows, strict=True):
        if finite:
            assert others["total_elbo"] == pytest.approx(values["total_elbo"], rel=1e-4)
        torch.testing.assert_close(also, after, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_run_of_adamw_is_captured_by_default_on_a_gpu(data, tmp_path):
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run", steps=STEPS, compile="off"))
    rows = train(trainer)
    assert all(finite for _, finite, _ in rows)
    assert trainer.capture.take_message() is None
    moved = [(after - before).norm().item() for (_, _, before), (_, _, after) in pairwise(rows)]
    assert min(moved) > 0
    trainer.close()
