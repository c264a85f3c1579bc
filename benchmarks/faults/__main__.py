"""Trains with each fault, and healthy runs, and prints which findings are named and when.

    python -m benchmarks.faults [--preset debug] [--steps 300] [--data DATA ...] [--seeds 5] [--only WORD]

Healthy runs: every data set with every seed. The exit code is 1 unless nine of ten faults are named and no healthy run
has a finding.
"""

import argparse
import tempfile
import time
from contextlib import closing, suppress
from typing import Any

import yaml

from aime_fast.errors import UserError
from aime_fast.reporting.findings.watch import Finding, findings_of
from aime_fast.reporting.metrics_log import read_metrics
from aime_fast.training.trainer import DMCVBTrainer
from benchmarks.faults.injected import FAULTS, Fault


def trained(options: dict[str, Any], fault: Fault | None) -> tuple[list[Finding], float]:
    """The findings of one training, and its seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/run"
        trainer = DMCVBTrainer(**{**options, **(fault.options if fault else {})}, out=out, checkpoint_every=10**6)
        if fault:
            fault.spoil(trainer)
        with closing(trainer), suppress(UserError):  # a run may end by itself, which is no finding
            if signal := trainer.fit().signal:  # that ended this training, and is meant for all
                raise SystemExit(128 + signal)
        with open(f"{out}/config.yaml", encoding="utf-8") as file:
            config = yaml.safe_load(file)
        return findings_of(config, read_metrics(out)), time.perf_counter() - began


def main() -> int:
    """Print a line for each training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="debug")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", nargs="*", default=[None])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    # Looks at held-out frames every 50 steps, as short runs need.
    common = {
        "threads": 1,
        "preset": asked.preset,
        "steps": asked.steps,
        "logging": {"figures_every": 50, "tracker": "none"},
        "refit_steps": 0,
    }
    named = alarms = 0
    for fault in FAULTS:
        if asked.only not in fault.what:
            continue
        found, seconds = trained(common | {"data": asked.data[0]}, fault)
        hit = next((finding for finding in found if finding.name == fault.finding), None)
        named += hit is not None
        others = ", ".join(finding.name for finding in found if finding is not hit) or "-"
        when = f"step {hit.step}" if hit else "MISSED"
        print(f"{fault.what:50} {fault.finding:20} {when:10} others: {others} ({seconds:.0f} s)", flush=True)
    for data in asked.data:
        for seed in range(asked.seeds):
            found, seconds = trained(common | {"data": data, "seed": seed}, None)
            alarms += bool(found)
            lines = ", ".join(map(str, found)) or "no finding"
            print(f"healthy: {data or 'the sample'}, seed {seed}: {lines} ({seconds:.0f} s)", flush=True)
    print(f"{named} of {len(FAULTS)} faults named, {alarms} healthy runs with a finding")
    return int(named < len(FAULTS) - 1 or alarms > 0)


if __name__ == "__main__":
    raise SystemExit(main())
