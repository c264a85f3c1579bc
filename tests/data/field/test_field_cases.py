"""Inputs that people report trouble with: read right, or refused in one line; `../field_cases.md` lists them."""

import re
from pathlib import Path

import pytest
from cases_of_actions import ACTIONS
from cases_of_files import FILES
from cases_of_videos import VIDEOS
from field_case import READ, REFUSED, Case, outcome, run

TABLE = (Path(__file__).parents[1] / "field_cases.md").read_text(encoding="utf-8")
CASES = [*FILES, *VIDEOS, *ACTIONS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_from_the_field(case: Case, tmp_path):
    (tmp_path / "in").mkdir()
    path = case.make(tmp_path / "in")
    came, line = outcome(case, path, tmp_path / "out")
    assert (came, case.words in line) == (case.comes, True), line
    assert came != READ or not line
    if came == REFUSED:
        assert line.startswith("error: ") and re.search(r"; |\. ", line), f"no advice: {line}"
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["inspect", "train"])
@pytest.mark.parametrize("case", [c for c in CASES if c.comes == REFUSED and not c.options], ids=lambda case: case.name)
def test_other_verbs_refuse_it_alike(case: Case, verb, tmp_path):
    """Nothing that `pack` refuses is read another way without a word."""
    (tmp_path / "in").mkdir()
    path, run_folder = case.make(tmp_path / "in"), tmp_path / "run"
    train = ("train", "--preset", "debug", "--steps", "1", "--data", str(path), "--out", str(run_folder))
    came = run("inspect", "--deep", str(path)) if verb == "inspect" else run(*train)
    assert (came.code, came.traceback, len(came.lines)) == (2, "", 1), came
    assert case.words in came.said and not run_folder.exists()


def test_the_table_has_every_case():
    rows = {
        cells[1]: cells for line in TABLE.splitlines() if (cells := [cell.strip() for cell in line.split("|")])[1:2]
    }
    for case in CASES:
        assert f"`{case.name}`" in rows, case.name
        cells = rows[f"`{case.name}`"]
        assert case.source in cells[2] and cells[4] == case.comes, cells
