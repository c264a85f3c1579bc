"""A run at, or moved to, another number of processes and another ZeRO stage: the same data, the weights to rounding."""

import json

import pytest
import torch
from launching import run_ranks
from recording import tiny_options, write_recording
from safetensors.torch import load_file

from aime_fast.training.trainer import DMCVBTrainer

pytestmark = pytest.mark.long

STEPS, PAUSE, BATCH = 6, 3, 6
# SGD: AdamW's first steps divide by the noise of near-zero gradients, which turns rounding into steps.
OPTIM = {"name": "sgd", "lr": 0.005, "warmup_steps": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


def options(data, out, **changes):
    loader = {"batch_size": BATCH, "sequence_length": 4, "windows_per_epoch": 18}
    return (
        tiny_options(data, out, steps=STEPS, loader=loader, optim=OPTIM, resume="auto", checkpoint_every=PAUSE)
        | changes
    )


def alone(data, out, until=None, **changes):
    """Train in this process."""
    trainer = DMCVBTrainer(**options(data, out, **changes))
    try:
        return trainer.fit(until)
    finally:
        trainer.close()


def together(world_size, *jobs):
    """Train each job, options with `until`, on so many processes."""
    for printed, code in run_ranks(world_size, "resume_worker.py", json.dumps(jobs)):
        assert code == 0, printed


def weights(out, step=STEPS):
    """All numbers of the model at a checkpoint by name, codebook and teacher among them."""
    stored = load_file(out / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")
    return {name: tensor.double() for name, tensor in stored.items()}


def assert_near(out, whole):
    """The runs end at the same weights to rounding: 1e-4 of the way that they made since the pause.

    By rounding, a token on the border of two codes may go to the other one, which moves two codes' sums.
    """
    found, wanted, pause = weights(out), weights(whole), weights(whole, PAUSE)
    codebook = {name for name in wanted if "codebook" in name}
    for names, least in ((codebook, 2e-2), (set(wanted) - codebook, 1e-4)):
        apart, way = (sum((a[n] - wanted[n]).square().sum() for n in names) for a in (found, pause))
        assert float((apart / way).sqrt()) <= least


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """One process without DeepSpeed from beginning to end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    alone(data, out)
    return out


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what DeepSpeed imports
def test_from_one_process_to_two_and_back(data, whole, tmp_path):
    alone(data, tmp_path / "1-2", PAUSE)
    together(
        2,
        options(data, tmp_path / "1-2", ds_config="zero2") | {"until": None},
        options(data, tmp_path / "2-1", ds_config="zero1") | {"until": PAUSE},
        options(data, tmp_path / "3-0", ds_config="zero3") | {"until": PAUSE},
    )
    names = {path.name for path in (tmp_path / "2-1" / "checkpoints" / f"step-{PAUSE:08d}").iterdir()}
    assert {"rank-0-of-2.safetensors", "rank-1-of-2.safetensors"} <= names
    alone(data, tmp_path / "2-1", ds_config="zero2")
    alone(data, tmp_path / "3-0")
    for out in ("1-2", "2-1", "3-0"):
        assert_near(tmp_path / out, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((2, "zero2"), (3, "zero1")),
        ((3, "zero1"), (2, "zero0")),
        ((2, "zero0"), (3, "zero3")),
        ((3, "zero3"), (2, "zero2")),
    ],
)
def test_between_two_and_three_processes(data, whole, tmp_path, first, then):
    together(first[0], options(data, tmp_path / "run", ds_config=first[1]) | {"until": PAUSE})
    together(then[0], options(data, tmp_path / "run", ds_config=then[1]) | {"until": None})
    assert_near(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_eight_processes_to_two(data, tmp_path):
    """The layout of the largest node that the project names, resumed on a small one."""
    loader = {"batch_size": 8, "sequence_length": 4, "windows_per_epoch": 24}
    alone(data, tmp_path / "whole", loader=loader)
    together(8, options(data, tmp_path / "run", ds_config="zero2", loader=loader) | {"until": PAUSE})
    together(2, options(data, tmp_path / "run", ds_config="zero2", loader=loader) | {"until": None})
    assert_near(tmp_path / "run", tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what DeepSpeed imports
def test_from_stage_to_stage_in_one_process(data, tmp_path):
    """With AdamW, whose moments change their layout each time."""
    adam = {"optim": {"warmup_steps": 0}}
    alone(data, tmp_path / "whole", **adam)
    for until, stage in ((2, "zero1"), (3, None), (4, "zero3"), (None, "zero2")):
        alone(data, tmp_path / "run", until, ds_config=stage, **adam)
    assert_near(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what DeepSpeed imports
def test_twenty_steps_equal_one_process_with_the_whole_batch(data, tmp_path):
    """All of a run, codebook and teacher included, under each stage and at both world sizes."""
    run = {"steps": 20, "optim": OPTIM | {"lr": 0.05}}
    alone(data, tmp_path / "whole", **run)
    stages = ("zero0", "zero1", "zero2", "zero3")
    for stage in stages:
        alone(data, tmp_path / f"1-{stage}", ds_config=stage, **run)
    together(2, *(options(data, tmp_path / f"2-{stage}", ds_config=stage, **run) | {"until": None} for stage in stages))
    wanted = weights(tmp_path / "whole", 20)
    for world_size in (1, 2):
        for stage in stages:
            found = weights(tmp_path / f"{world_size}-{stage}", 20)
            for name, tensor in wanted.items():
                # The codebook holds sums over hundreds of encodings; all else is a parameter or its average.
                bounds = {"rtol": 1e-5 if "codebook" in name else 0, "atol": 1e-5 if "codebook" in name else 1e-6}
                torch.testing.assert_close(found[name], tensor, **bounds)
