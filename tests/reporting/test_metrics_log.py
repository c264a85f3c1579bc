"""The metrics file: valid JSON whatever the values, whole after a kill, cut where a resumed run begins."""

import json
import math
from contextlib import closing

import numpy as np
import pytest
import torch

from aime_fast.reporting.metrics_log import MetricsLog, read_metrics


def forbid(constant):
    raise AssertionError(f"{constant} is not JSON")


def rows(folder):
    """Every line of the file by a parser that accepts JSON and nothing more."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=forbid) for line in lines]


def test_a_row_holds_what_was_written(tmp_path):
    with closing(MetricsLog(tmp_path / "new" / "run")) as log:
        log.write(3, "train", {"total": 1.5, "numpy": np.float32(0.25), "torch": torch.tensor(2.0), "whole": 4})
        log.write(3, "val", {})
    first, second = rows(tmp_path / "new" / "run")
    assert first.pop("time") > 1.7e9
    assert first == {"step": 3, "split": "train", "total": 1.5, "numpy": 0.25, "torch": 2.0, "whole": 4.0}
    assert second.keys() == {"step", "split", "time"}
    assert [row["split"] for row in read_metrics(tmp_path / "new" / "run")] == ["train", "val"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_valid_json(tmp_path, value):
    with closing(MetricsLog(tmp_path)) as log:
        log.write(1, "train", {"bad": value, "good": 1.0})
    (row,) = rows(tmp_path)
    assert row["bad"] is None
    assert row["good"] == 1.0
    assert row["nonfinite"] == {"bad": str(value)}


@pytest.mark.parametrize("name", ["step", "split", "time", "nonfinite"])
def test_a_metric_cannot_take_the_rows_own_names(tmp_path, name):
    with closing(MetricsLog(tmp_path)) as log, pytest.raises(ValueError, match=name):
        log.write(1, "train", {name: 1.0})
    assert rows(tmp_path) == []


def test_a_row_is_in_the_file_before_the_next(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 4):
        log.write(step, "train", {"total": step})
        assert len(rows(tmp_path)) == step
    log.close()
    log.close()


def test_resuming_drops_later_rows_and_a_torn_line(tmp_path):
    with closing(MetricsLog(tmp_path)) as log:
        for step in (10, 20, 20, 30):
            log.write(step, "train", {"total": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "spl')
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 20, 30]
    with closing(MetricsLog(tmp_path, resume_step=20)) as log:
        log.write(30, "train", {"total": 2.0})
    assert [(row["step"], row["total"]) for row in rows(tmp_path)] == [(10, 1.0), (20, 1.0), (20, 1.0), (30, 2.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_without_a_step_to_resume_from_only_the_torn_line_goes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 9, "split": "train"}\n{"st')
    with closing(MetricsLog(tmp_path)) as log:
        log.write(1, "train", {})
    assert [row["step"] for row in rows(tmp_path)] == [9, 1]
