"""How long a checkpoint stops the training loop, compared with a step, and how soon a resumed run goes on."""

import pytest
from measuring import run_json


@pytest.mark.timeout(600)
def test_checkpoint_and_resume(record):
    found = run_json("benchmarks/recovery.py", "--stall", "small")
    options = {"unit": "s", "shape": "small B=8 T=16", "dtype": "float32"}
    record("checkpoint, stall of the loop", "ours", found["saves"], **options, baseline=("a step", found["steps"]))
    record("first step after the start", "new run", found["new"], **options)
    record("first step after the start", "resumed", found["resumed"], **options, baseline=("new run", found["new"]))
