"""The published rows against ours: a quarter of the time of an epoch, half of the memory of a GPU.

    make bench ARGS="-s benchmarks/test_targets.py"

On a machine with cards both are measured there and scaled to the published cards; without, they are predicted. `-s`
shows every assumption. `--epoch` says what an epoch is; targets.toml has the default and the source of every target.
"""

import pytest
import torch
from published import measured, predicted
from targets import read_targets

TARGETS = read_targets()


@pytest.mark.quick
@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", TARGETS.published, ids=lambda row: row.name)
def test_published_row(row, epoch, record):
    found = (measured if torch.cuda.is_available() else predicted)(row, epoch)
    options = {"shape": row.name, "dtype": "float32", "machine": f"{row.gpus} x {row.card}, {found.kind}"}
    published = 60 * row.epoch_minutes
    time = record(
        f"published epoch, {found.kind}",
        "ours",
        found.epoch_seconds,
        unit="s",
        baseline=("published", [published]),
        **options,
    )
    memory = [found.memory_bytes]
    against = None if row.memory_gb is None else ("published", [1e9 * row.memory_gb])
    space = record(f"published memory, {found.kind}", "ours", memory, unit="bytes", baseline=against, **options)
    print(f"\n{row.name} ({row.source})")
    limit = f"published {published:.0f} s, ours at most {TARGETS.ours.time:g} of it"
    print(f"  {found.kind} epoch: {time.p50:.1f} s; {limit}: {time.ratio:.3f}")
    shown = "none published" if space.ratio is None else f"published {row.memory_gb:g} GB: {space.ratio:.3f} of it"
    print(f"  {found.kind} memory of a GPU: {space.p50 / 1e9:.2f} GB; {shown}, ours at most {TARGETS.ours.memory:g}")
    print(*(f"  assumed: {line}" for line in found.assumptions), sep="\n")
    assert time.ratio <= TARGETS.ours.time
    assert space.ratio is None or space.ratio <= TARGETS.ours.memory
