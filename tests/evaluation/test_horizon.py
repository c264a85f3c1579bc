"""The protocol goes on where it was interrupted, and its table says what the results say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from horizon import __main__ as horizon
from horizon import stages
from horizon.plan import Budget, DataSet, Variant, claim, data_sets, known_variants, seeds_of
from horizon.table import table

from aime_fast.errors import UserError
from aime_fast.evaluation.intervals import ratio_of
from aime_fast.evaluation.open_loop import CONSTANT, COPY, MEAN, ONE, OTHER
from aime_fast.evaluation.report import AT_REFERENCE

ROOT = Path(__file__).parents[2]
QUICK = ["--quick", "--sets", "cheetah_run,walker_walk", "--seeds", "2"]


def estimate(*values):
    """An estimate of as many episodes, of two windows each."""
    return vars(ratio_of(2 * np.array(values), np.full(len(values), 2.0)))


def result(level=30.0, shift=(0.0, 1.0)):
    """A result in which everything is a number above `level`; two episodes that lie apart."""
    ahead = [estimate(*(level - h + np.array(shift))) for h in range(15)]
    rows = [{"name": "slots: their mean", "costs": {"0": estimate(1.0, 2.0), "nats": estimate(3.0, 3.0)}}]
    return {
        "facts": {"windows": 4, "episodes": 2},
        "reconstruction": {"psnr": estimate(level, level), "moving": estimate(level - 5, level - 5)},
        "psnr": {name: ahead for name in (MEAN, ONE, OTHER, COPY, CONSTANT)},
        "moving": {MEAN: ahead},
        "share": {AT_REFERENCE: ahead},
        "probe": {"r2": {"z": {"position": {"a": 0.5, "b": 0.7, "c": None}, "velocity": {"a": None}}}},
        "parts": {"whole": {"0": estimate(30.0, 30.0), "nats": estimate(80.0, 80.0)}, "rows": rows},
    }


class Machine:
    """Stands in for the processes: writes what each stage leaves, and is interrupted at chosen calls."""

    def __init__(self, monkeypatch, interrupted_at=()):
        self.calls, self.interrupted_at = [], set(interrupted_at)
        monkeypatch.setattr(stages, "run", self.run)

    def run(self, verb, *flags):
        options = dict(zip(flags[::2], flags[1::2], strict=False))
        self.calls.append((verb, *flags))
        if len(self.calls) in self.interrupted_at:
            raise KeyboardInterrupt
        if verb == "collect":
            folder = Path(options["--out"])
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
            (folder / "states.npy").write_text("")
        if verb == "train":
            Path(options["--out"]).mkdir(parents=True)
        if verb == "evaluate":
            place = next(i for i, flag in enumerate(flags) if flag == "--json")
            assert Path(flags[0]).is_dir(), "the run"
            Path(flags[place + 1]).write_text(json.dumps(result()))


def test_the_stages_and_what_they_are_told(tmp_path, monkeypatch, capsys):
    machine = Machine(monkeypatch)
    assert horizon.main([*QUICK, "--out", str(tmp_path), "--set", "losses.beta-warmup-steps=0", "--variant", "b"]) == 0
    verbs = [call[0] for call in machine.calls]
    assert verbs == ["collect"] * 2 + ["train", "evaluate"] * 4
    recorded = " ".join(machine.calls[0])
    assert "--env cheetah_run --episodes 60 --length 500 --seed 100 --val-episodes 6" in recorded
    trained = " ".join(machine.calls[4])
    assert "--preset small --steps 600 --seed 1" in trained
    assert "--resume auto" in trained and "--loader.batch_size 8" in trained
    assert trained.endswith("--losses.beta_warmup_steps 0")
    judged = " ".join(machine.calls[3])
    assert judged.startswith(f"evaluate {tmp_path}/small-600/b/cheetah_run/seed-0/run --json")
    assert "--stride 25 --simulator" in judged and "--parts" not in judged
    out = capsys.readouterr()
    assert "[3/4] b, walker_walk, seed 0: training, 600 steps" in out.err
    assert "b: losses.beta_warmup_steps=0 (trained at commit " in out.out


@pytest.mark.parametrize("place", range(1, 11))
def test_an_interruption_at_any_stage_costs_nothing_that_was_finished(tmp_path, monkeypatch, capsys, place):
    machine = Machine(monkeypatch, interrupted_at=[place])
    assert horizon.main([*QUICK, "--out", str(tmp_path)]) == 130
    before = list(machine.calls)
    assert len(before) == place
    assert horizon.main([*QUICK, "--out", str(tmp_path)]) == 0
    assert machine.calls[place] == before[-1], "the interrupted stage is what comes next, with the same arguments"
    assert len(machine.calls) == 11, "and nothing else is done twice"
    table_first = capsys.readouterr().out
    assert horizon.main([*QUICK, "--out", str(tmp_path)]) == 0
    assert len(machine.calls) == 11
    assert capsys.readouterr().out == table_first


def test_a_stage_that_fails_ends_with_its_code(tmp_path, monkeypatch, capsys):
    def run(verb, *flags):
        if verb == "train":
            raise stages.StageFailed(2)

    monkeypatch.setattr(stages, "run", run)
    assert horizon.main(["--quick", "--sets", "sample", "--out", str(tmp_path)]) == 2


def test_without_a_simulator_the_sample_stands_in(tmp_path, monkeypatch, capsys):
    machine = Machine(monkeypatch)
    real = machine.run

    def run(verb, *flags):
        if verb == "collect":
            raise stages.StageFailed(2)
        real(verb, *flags)

    monkeypatch.setattr(stages, "run", run)
    assert horizon.main(["--quick", "--out", str(tmp_path)]) == 0
    assert [call[0] for call in machine.calls] == ["train", "evaluate"]
    out = capsys.readouterr()
    assert out.err.count("is left out: it could not be collected") == 2
    assert "sample: 4 windows" in out.out
    assert horizon.main(["--quick", "--sets", "cheetah_run", "--out", str(tmp_path)]) == 2, "asked for by name"


def test_a_child_is_interrupted_once_and_waited_for(tmp_path, monkeypatch):
    """The child interrupts this process when it is ready, and needs a while to save what it has."""
    saved = tmp_path / "saved"
    code = (
        "import os, signal, sys\n"
        "count = 0\n"
        "def save(*_):\n"
        "    global count\n"
        "    count += 1\n"
        "signal.signal(signal.SIGINT, save)\n"
        f"os.kill({os.getpid()}, signal.SIGINT)\n"
        "while not count: signal.pause()\n"
        "sum(range(10**6))\n"
        f"open({str(saved)!r}, 'w').write(str(count))\n"
    )
    monkeypatch.setattr(stages, "COMMAND", [sys.executable, "-c", code])
    with pytest.raises(KeyboardInterrupt):
        stages.run()
    assert saved.read_text() == "1"


def test_the_exit_code_of_a_child_is_kept(monkeypatch):
    monkeypatch.setattr(stages, "COMMAND", [sys.executable, "-c", "import sys; sys.exit(len(sys.argv))"])
    with pytest.raises(stages.StageFailed) as failure:
        stages.run("a", "b")
    assert failure.value.code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "cheetah"], "unknown data set 'cheetah'; choose from sample, cheetah_run"),
        (["--data", "/nowhere.h5"], "--data /nowhere.h5: no such file or folder"),
        (["--set", "losses.free_bits"], "write OPTION=VALUE"),
        (["--steps", "0"], "must be an integer of at least 1"),
    ],
)
def test_mistakes_are_one_line_and_start_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    machine = Machine(monkeypatch)
    assert horizon.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err
    assert machine.calls == []


def test_a_name_stands_for_one_variant(tmp_path):
    budget = Budget()
    claim(tmp_path, budget, Variant("a", {"optim.lr": "1e-3"}))
    claim(tmp_path, Budget(seeds=5, parts=False), Variant("a", {"optim.lr": "1e-3"}))
    with pytest.raises(UserError, match=r"is \{'optim.lr': '1e-3'\} already; choose another --variant"):
        claim(tmp_path, budget, Variant("a"))
    assert known_variants(tmp_path, budget) == [Variant("a", {"optim.lr": "1e-3"})]


def test_own_recordings_have_names_of_their_own(tmp_path):
    (tmp_path / "mine.h5").write_text("")
    sets = data_sets(tmp_path, ["sample"], [str(tmp_path / "mine.h5")], 60, 500)
    assert [(data.name, data.ready, data.collected) for data in sets] == [
        ("sample", True, False),
        ("mine", True, False),
    ]
    with pytest.raises(UserError, match="two data sets have the same name"):
        data_sets(tmp_path, [], [str(tmp_path / "mine.h5")] * 2, 60, 500)


def finish(out, budget, variant, data, results):
    claim(out, budget, variant)
    for seed, found in zip(seeds_of(out, budget, variant, data), results, strict=False):
        seed.folder.mkdir(parents=True)
        seed.result.write_text(json.dumps(found))


def test_variants_stand_next_to_each_other_with_paired_differences(tmp_path):
    budget, data = Budget(), DataSet("sample")
    finish(tmp_path, budget, Variant("base"), data, [result(30.0), result(32.0)])
    finish(tmp_path, budget, Variant("better", {"optim.lr": "1e-3"}), data, [result(33.0)])
    lines = {line[:52].strip(): line[52:].split("  ") for line in table(tmp_path, budget, [data]).splitlines()}

    def numbers(name):
        return [float(cell.split("±")[0]) for cell in lines[name] if cell.strip()]

    # The reconstruction, then 1, 2, 5, 10, 15 frames ahead, of which each costs a dB; episodes are 0 and 1 dB above.
    assert numbers(f"base: {MEAN}") == [31.0, 31.5, 30.5, 27.5, 22.5, 17.5]
    assert numbers(f"better - base: {MEAN}") == [2.0] * 6
    assert all("±0.00" in cell for cell in lines[f"better - base: {MEAN}"] if cell.strip()), "paired over episodes"
    assert any("±0.00" not in cell for cell in lines[f"base: {MEAN}"] if cell.strip()), "episodes lie 1 dB apart"
    assert numbers("base: largest difference of two seeds") == [2.0] * 6
    assert "better: largest difference of two seeds" not in lines
    assert numbers("base: slots: their mean") == [1.5, 3.0]
    text = table(tmp_path, budget, [data])
    assert "base 2, better 1" in text
    assert "position from z 0.60, velocity from z nan" in text
    assert re.search(r"^better: optim.lr=1e-3$", text, re.MULTILINE)


def test_a_table_of_nothing_says_so(tmp_path, capsys):
    assert horizon.main(["--table", "--out", str(tmp_path)]) == 0
    assert "no finished result of small-2000" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs(tmp_path):
    """The real thing at its smallest, twice: the second time nothing is left to do."""
    small = ["--preset", "debug", "--steps", "2", "--batch-size", "2", "--seeds", "1", "--sets", "sample", "--quick"]
    command = [sys.executable, "-m", "benchmarks.horizon", *small, "--out", str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    first, second = (
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
        for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, first.stderr
    assert "finished before" in second.stderr and "training" not in second.stderr
    assert second.stdout in first.stdout
