"""All tasks of the registry together, on two ranks under every ZeRO stage, equal one process to rounding."""

import json

import pytest
from launching import run_ranks
from recording import tiny_options, write_recording
from safetensors.torch import load_file

from aime_fast.tasks.registry import TASKS
from aime_fast.training.trainer import DMCVBTrainer

STEPS, PAUSE = 4, 2


def weights(out, step):
    stored = load_file(out / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")
    return {name: tensor.double() for name, tensor in stored.items() if "codebook" not in name}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_tasks_on_two_ranks_equal_one_process(tmp_path):
    data = write_recording(tmp_path / "recording.pt")

    def options(out, **changes):
        changes |= {"keep_checkpoints": 9, "checkpoint_every": PAUSE}
        # SGD: AdamW's first steps divide by the noise of near-zero gradients, which turns rounding into steps.
        optim = {"name": "sgd", "lr": 0.005, "warmup_steps": 0}
        return tiny_options(data, tmp_path / out, tasks=list(TASKS), steps=STEPS, optim=optim, **changes)

    DMCVBTrainer(**options("alone")).fit()
    jobs = [options(f"zero{stage}", ds_config=f"zero{stage}") | {"until": None} for stage in range(4)]
    for printed, code in run_ranks(2, "resume_worker.py", json.dumps(jobs), timeout=800, DEEPSPEED_TIMEOUT="10"):
        assert code == 0, printed
    pause, wanted = weights(tmp_path / "alone", PAUSE), weights(tmp_path / "alone", STEPS)
    for stage in range(4):
        found = weights(tmp_path / f"zero{stage}", STEPS)
        assert found.keys() == wanted.keys()
        apart, way = (sum((a[n] - wanted[n]).square().sum() for n in wanted) for a in (found, pause))
        assert float((apart / way).sqrt()) <= 1e-4
