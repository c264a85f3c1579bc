"""What training costs on two CPU threads, and what `small` reaches in twenty minutes.

Each measurement is a process of its own. A step's baseline is its own products: convolutions and matrix products in the
profile of the next step. `-m slow` adds the compiled `paper` and the twenty minutes.
"""

import json
import re

import pytest
from launches import launches_of
from measuring import apart, run, run_json

SIZES = [pytest.param("small", 8, 5, id="small", marks=pytest.mark.quick), pytest.param("paper", 2, 8, id="paper")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset, batch_size, steps", SIZES)
def test_step_as_written(record, preset, batch_size, steps):
    found = run_json("benchmarks/step_cost.py", preset, batch_size, steps, 2, "off")
    samples, options = found["samples"], {"shape": f"{preset} B={batch_size} T=16", "dtype": "float32"}
    products = "its products", samples["products"]
    record(
        "step over its products", "as written", samples["seconds"], unit="s", **options, baseline=products, paired=True
    )
    record("step, CPU time a sequence", "as written", samples["cpu_seconds"], unit="CPU s", **options)
    record("step, peak memory of the process", "as written", [1e9 * found["peak_memory_gb"]], unit="bytes", **options)
    record("step, operator calls", "as written", [found["operator_calls"]], unit="calls", **options)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("preset, batch_size", [("small", 8), pytest.param("paper", 2, marks=pytest.mark.slow)])
def test_compiled_step(record, preset, batch_size):
    """Compiling takes most of the time."""
    found = run_json("benchmarks/step_cost.py", preset, batch_size, 8, 2, "on")
    samples, options = found["samples"], {"shape": f"{preset} B={batch_size} T=16", "dtype": "float32", "unit": "s"}
    products, written = ("its products", samples["products"]), ("as written", samples["as_written"])
    record("step over its products", "compiled", samples["seconds"], **options, baseline=products, paired=True)
    form = "step, compiled over as written", "compiled"
    record(*form, samples["compiled"], **options, baseline=written, paired=True)
    record("step, the first one, with compiling", "compiled", [found["first_step_seconds"]], **options)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", [pytest.param("debug", marks=pytest.mark.quick), "small", "paper"])
def test_launches_of_a_step(record, preset):
    """As a GPU would make them; counted, the same on every machine."""
    counts = launches_of(preset, 2).counts
    record("step, launches", "as written", [sum(counts.values())], unit="launches", shape=preset, dtype="float32")


@pytest.mark.timeout(600)
def test_debug_run(record, tmp_path):
    """50 steps of `debug` with training and validation, start-up included."""
    runs = iter(range(10))
    flags = ["--preset", "debug", "--steps", 50, "--threads", 2]
    seconds = apart(lambda: run("aime_fast/train.py", *flags, "--out", tmp_path / str(next(runs))), 2, warm_up=0)
    record("training run of debug, 50 steps", "ours", seconds, unit="s", shape="two threads", dtype="float32")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_twenty_minutes_of_small(record, tmp_path):
    """Held-out reconstruction by the documented protocol; the mean training frame is the baseline."""
    out = tmp_path / "run"
    run("aime_fast/train.py", "--preset", "small", "--minutes", 20, "--threads", 2, "--out", out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] > 100
    printed = run("-m", "aime_fast", "evaluate", out)
    found = float(re.search(r"PSNR ([\d.]+) dB", printed)[1])
    record("training run of small, 20 minutes", "ours", [found], unit="dB", shape="two threads", dtype="float32")
