"""Findings while a run trains: said once, kept, over resumptions too, and able to stop it on all ranks."""

import json
import re

import pytest
from findings_worker import FOUND_AT, watch_for
from launching import run_ranks
from recording import tiny_options, write_recording

from aime_fast import DMCVBTrainer
from aime_fast.errors import UserError
from aime_fast.reporting.metrics_log import read_metrics
from aime_fast.training import reporter

EACH = {"log_every": 1, "tracker": "none"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


def kept(folder):
    """(name, step) of each line of findings.jsonl."""
    return [(row["name"], row["step"]) for row in map(json.loads, (folder / "findings.jsonl").read_text().splitlines())]


def trained(options, **changes):
    """The summary of a run, or of its next part."""
    trainer = DMCVBTrainer(**(options | changes))
    try:
        return trainer.fit()
    finally:
        trainer.close()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_finding_stops_all_ranks_at_the_next_step_with_a_checkpoint(data, tmp_path, ranks):
    logging = EACH | {"stop_on": "dead-codes,starved-loop"}
    options = tiny_options(data, tmp_path / "run", steps=50, logging=logging)
    if ranks > 1:
        options["ds_config"] = "zero2"
    for printed, code in run_ranks(ranks, "findings_worker.py", json.dumps(options)):
        assert code == 2, printed
        last = printed.strip().splitlines()[-1]
        assert last.startswith(
            f"error: stopped after step {FOUND_AT + 1} by --logging.stop-on: finding starved-loop at step {FOUND_AT}: "
            "something broke; it waits; change --optim.lr (docs/findings.md); saved. Go on with: "
        )
        assert "Traceback" not in printed
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == f"step-{FOUND_AT + 1:08d}"
    assert kept(tmp_path / "run") == [("starved-loop", FOUND_AT)]


def test_without_stop_on_a_finding_is_said_once_and_kept(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        reporter, "Watch", watch_for("mean-frame", lambda run: "grey" if run.step >= FOUND_AT else None)
    )
    assert trained(tiny_options(data, tmp_path / "run", logging=EACH)).steps == 7
    assert len(re.findall("finding mean-frame at step 3: something broke; grey", capsys.readouterr().err)) == 1
    assert kept(tmp_path / "run") == [("mean-frame", FOUND_AT)]


def test_a_run_that_stopped_goes_on_and_does_not_stop_again(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        reporter, "Watch", watch_for("mean-frame", lambda run: "grey" if run.step >= FOUND_AT else None)
    )
    options = tiny_options(data, tmp_path / "run", logging=EACH | {"stop_on": "all"})
    with pytest.raises(UserError, match=r"stopped after step 4 .*finding mean-frame at step 3"):
        trained(options)
    assert trained(options, resume="auto").steps == 7
    assert kept(tmp_path / "run") == [("mean-frame", FOUND_AT)]


def test_a_resumed_run_remembers_its_rows(data, tmp_path, monkeypatch):
    rows = watch_for("mean-frame", lambda run: "six" if len(run.values("lr")) >= 6 else None)
    monkeypatch.setattr(reporter, "Watch", rows)
    options = tiny_options(data, tmp_path / "run", logging=EACH)
    trainer = DMCVBTrainer(**options)
    trainer.fit(until=4)
    trainer.close()
    trained(options, resume="auto")
    assert kept(tmp_path / "run") == [("mean-frame", 6)]
    assert [row["step"] for row in read_metrics(tmp_path / "run") if row["split"] == "train"] == [1, 2, 3, 4, 5, 6, 7]


def test_a_finding_of_the_last_step_is_an_error_too(data, tmp_path, monkeypatch):
    monkeypatch.setattr(reporter, "Watch", watch_for("mean-frame", lambda run: "grey" if run.step >= 7 else None))
    with pytest.raises(UserError, match="stopped after step 7 "):
        trained(tiny_options(data, tmp_path / "run", logging=EACH | {"stop_on": ("mean-frame",)}))


@pytest.mark.parametrize(
    ("logging", "message"),
    [
        ({"stop_on": "kl-colapse"}, "unknown finding 'kl-colapse'; did you mean 'kl-collapse'? choose from"),
        ({"stop_on": ("al",)}, "unknown finding 'al'; did you mean 'all'? choose from"),
        ({"tracker": "tensorbord"}, "unknown tracker 'tensorbord'; did you mean 'tensorboard'? choose from"),
    ],
)
def test_a_wrong_name_is_one_line_and_nothing_is_written(data, tmp_path, logging, message):
    with pytest.raises(UserError, match=re.escape(message)):
        trained(tiny_options(data, tmp_path / "run", logging=logging))
    assert not (tmp_path / "run").exists()
