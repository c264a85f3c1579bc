"""Data from which little can be learnt, and the smallest sizes: runs train, nothing becomes NaN, and they say why."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import driven_square

from aime_fast.data.packing.inspection import inspect
from aime_fast.errors import UserError
from aime_fast.evaluation.evaluation import Evaluation, Questions
from aime_fast.training.checkpoint.loading import load_model
from aime_fast.training.trainer import DMCVBTrainer

STILL = "frames never change within an episode: no motion can be learnt"
ONE_COLOUR = "every frame has only one colour: no shapes can be learnt"
CONSTANT = "the actions are constant: the model can't learn what they do"
NO_ACTIONS = "there are no actions: only what happens by itself can be learnt"
ONE_FRAME = "windows have one frame: what comes next can't be learnt; raise --loader.sequence-length"
ALL = (STILL, ONE_COLOUR, CONSTANT, NO_ACTIONS, ONE_FRAME)


def still(made):
    return replace(made, frames=made.frames[:, :1].repeat(made.frames.shape[1], axis=1))


def one_colour(made):
    colours = np.random.default_rng(0).integers(0, 256, (*made.frames.shape[:2], 1, 1, 3), dtype=np.uint8)
    return replace(made, frames=np.broadcast_to(colours, made.frames.shape))


def black(made):
    return replace(made, frames=np.zeros_like(made.frames))


def constant_actions(made):
    return replace(made, actions=np.full_like(made.actions, 0.5))


def no_actions(made):
    return replace(made, actions=made.actions[..., :0])


CASES = {
    "as made": (lambda made: made, {}, ()),
    "still images": (still, {}, (STILL,)),
    "frames of one colour": (one_colour, {}, (ONE_COLOUR,)),
    "black frames": (black, {}, (STILL, ONE_COLOUR)),
    "constant actions": (constant_actions, {}, (CONSTANT,)),
    "actions of no width": (no_actions, {}, (NO_ACTIONS,)),
    "nothing at all": (lambda made: no_actions(black(made)), {}, (STILL, ONE_COLOUR, NO_ACTIONS)),
    "windows of two frames": (lambda made: made, {"loader": {"sequence_length": 2}}, ()),
    "windows of one frame": (lambda made: made, {"loader": {"sequence_length": 1}}, (ONE_FRAME,)),
    "one component": (lambda made: made, {"model": {"max_components": 1}}, ()),
    "one slot": (lambda made: made, {"model": {"num_slots": 1}}, ()),
    "the smallest of all": (
        lambda made: no_actions(black(made)),
        {"loader": {"sequence_length": 1}, "model": {"max_components": 1, "num_slots": 1}},
        (STILL, ONE_COLOUR, NO_ACTIONS, ONE_FRAME),
    ),
    "one Gaussian, no actions": (no_actions, {"model": {"prior": "gaussian"}}, (NO_ACTIONS,)),
}


def trained(data, out, **changes):
    """A run of three steps of the `debug` preset; its folder, with finite losses, parameters and buffers."""
    loader = {"batch_size": 2, "sequence_length": 4, "windows_per_epoch": 2} | changes.pop("loader", {})
    logging = {"log_every": 1, "tracker": "none"}
    options = {"preset": "debug", "data": data, "out": str(out), "steps": 3, "loader": loader, "logging": logging}
    trainer = DMCVBTrainer(**options, **changes)
    summary = trainer.fit()
    assert summary.steps == 3 and summary.skipped == 0
    for name, tensor in trainer.model.state_dict().items():
        assert torch.isfinite(tensor.float()).all(), name
    trainer.close()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "val"}
    assert [row["nonfinite"] for row in rows if "nonfinite" in row] == []
    return out


def judged(data, run, context, horizon):
    return Evaluation(data, Questions(context=context, horizon=horizon, stride=2)).of(load_model(run), str(run))


@pytest.mark.parametrize(("change", "options", "expected"), CASES.values(), ids=CASES.keys())
def test_a_run_trains_and_says_what_cannot_be_learnt(tmp_path, capfd, change, options, expected):
    data = change(driven_square(6, 12)).write(tmp_path / "data")
    run = trained(data, tmp_path / "run", **options)
    said = capfd.readouterr().err
    assert [line for line in ALL if line in said] == [line for line in ALL if line in expected]
    report = judged(data, run, context=3, horizon=2)
    assert all(math.isfinite(value.mean) for values in report.psnr.values() for value in values)
    assert math.isfinite(report.reconstruction["psnr"].mean)
    remarks, known = "\n".join(report.remarks), [line for line in expected if line != ONE_FRAME]
    assert all(f"held-out episodes: {line}" in remarks for line in known)
    moves = STILL not in expected
    assert math.isfinite(report.reconstruction["moving"].mean) == moves
    assert ("over moving pixels: nan, no pixel moves" in remarks) != moves
    table = inspect(data)
    assert [line for line in ALL if line in table] == [line for line in ALL if line in known]


def test_episodes_of_two_frames(tmp_path):
    data = driven_square(6, 2).write(tmp_path / "data")
    with pytest.raises(UserError, match=r"longest of 4 episodes has 2; lower it to 2 or less"):
        DMCVBTrainer(preset="debug", data=data, out=str(tmp_path / "refused"))
    run = trained(data, tmp_path / "run", loader={"sequence_length": 2})
    report = judged(data, run, context=1, horizon=1)
    assert all(math.isfinite(values[0].mean) for values in report.psnr.values())
    with pytest.raises(UserError, match="lower --context or --horizon"):
        judged(data, run, context=2, horizon=1)
