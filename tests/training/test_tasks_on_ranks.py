"""Every task alone and all together, on one rank and on two under every ZeRO stage, equal one process to rounding."""

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
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_task_alone_and_all_together_equal_one_process(tmp_path, ranks):
    data = write_recording(tmp_path / "recording.pt")
    sets = {name: [name] for name in TASKS} | {"all": list(TASKS)}

    def options(out, tasks, **changes):
        changes |= {"keep_checkpoints": 9, "checkpoint_every": PAUSE}
        # SGD: AdamW's first steps divide by the noise of near-zero gradients, which turns rounding into steps.
        optim = {"name": "sgd", "lr": 0.005, "warmup_steps": 0}
        return tiny_options(data, tmp_path / out, tasks=tasks, steps=STEPS, optim=optim, **changes)

    for name, tasks in sets.items():
        DMCVBTrainer(**options(name, tasks)).fit()
    cases = [(name, stage) for name in sets for stage in range(4)]
    jobs = [options(f"{name}-{stage}", sets[name], ds_config=f"zero{stage}") | {"until": None} for name, stage in cases]
    for printed, code in run_ranks(ranks, "resume_worker.py", json.dumps(jobs), timeout=1500, DEEPSPEED_TIMEOUT="10"):
        assert code == 0, printed
    for name, stage in cases:
        pause, wanted = weights(tmp_path / name, PAUSE), weights(tmp_path / name, STEPS)
        found = weights(tmp_path / f"{name}-{stage}", STEPS)
        assert found.keys() == wanted.keys()
        apart, way = (sum((a[n] - wanted[n]).square().sum() for n in wanted) for a in (found, pause))
        assert float((apart / way).sqrt()) <= 1e-4, (name, stage)
