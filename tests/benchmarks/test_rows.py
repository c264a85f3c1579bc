"""The file of a run, and how a run is compared with an earlier one."""

import json

import numpy as np
import pytest
from comparing import EXACT, MARGIN, compare
from rows import SCHEMA, Row, make_row, read_results, results_of
from summary import comparison_lines, table
from targets import Limit, Targets, read_targets

from aime_fast.errors import UserError

ROUNDS = 9
RATIO = ["2.5", "(2.5", "to", "2.5)", "peer", "ratio", "<=", "2:", "MISSED"]


def made(values, base=(1.0,) * ROUNDS, what="subject", paired=True, unit="s"):
    values = np.broadcast_to(np.asarray(values, dtype=float), ROUNDS)
    return make_row(what, "ours", values, unit=unit, baseline=("peer", base), paired=paired)


def noisy(scale, seed, paired=True):
    """A form of `scale` times its baseline's cost on a machine whose speed changes from round to round by a third."""
    generator = np.random.default_rng(seed)
    machine, noise = generator.lognormal(0, 0.3, (2, ROUNDS)), generator.lognormal(0, 0.1, ROUNDS)
    return made(scale * machine[0] * noise, machine[0] if paired else machine[1], paired=paired)


def test_percentiles_are_numpys_and_a_paired_ratio_is_that_of_rounds():
    values, base = [3.0, 1.0, 8.0, 6.0, 5.0], [1.0, 1.0, 2.0, 2.0, 10.0]
    row = make_row("a", "b", values, unit="s", baseline=("c", base), paired=True)
    assert [row.p20, row.p50, row.p80] == pytest.approx(np.percentile(values, [20, 50, 80]))
    ratios = np.percentile([3, 1, 4, 3, 0.5], [20, 50, 80])
    assert [row.ratio_p20, row.ratio, row.ratio_p80] == pytest.approx(ratios)


def test_the_ratio_of_separate_rounds_has_the_wider_spread():
    row = make_row("a", "b", [2.0, 4.0, 6.0], unit="s", baseline=("c", [1.0, 2.0, 3.0, 4.0]))
    low, middle, high = np.percentile([2, 4, 6], [20, 50, 80]) / np.percentile([1, 2, 3, 4], [80, 50, 20])
    assert (row.ratio_p20, row.ratio, row.ratio_p80) == pytest.approx((low, middle, high))


def test_a_run_that_was_written_reads_back(tmp_path):
    rows = [made(2.0), make_row("calls", "ours", [5000], unit="calls", shape="B=8", dtype="float32")]
    written = results_of(rows)
    file = written.write(tmp_path)
    assert file.name == f"bench-{written.date}.json"
    again = read_results(file)
    assert again == written and len(file.read_text().splitlines()) == 2 + len(rows)
    assert json.loads(file.read_text())["schema"] == SCHEMA


REFUSED = {
    "another schema": '{"schema": "aime-fast benchmarks, schema 0", "date": "2026-01-01", "rows": []}',
    "pytest-benchmark's": '{"machine_info": {}, "benchmarks": []}',
    "half a file": '{"schema": "aime',
    "a row without its machine": f'{{"schema": "{SCHEMA}", "date": "2026-01-01", "rows": [{{"what": "a"}}]}}',
    "no object": "[]",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_another_schema_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"not a file of 'aime-fast benchmarks, schema 1'.*--write") as error:
        read_results(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file or directory; give a file that --write made"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize("paired", [True, False])
def test_the_same_code_is_rarely_worse(paired):
    """No more than one comparison in a hundred is wrong, on a machine whose speed varies by a third."""
    pairs = [(noisy(2.0, seed, paired), noisy(2.0, 10_000 + seed, paired)) for seed in range(300)]
    assert sum(len(compare(results_of([old]), results_of([new])).worse) for old, new in pairs) <= 3


def test_half_as_much_again_is_seen_through_the_noise():
    pairs = [(noisy(2.0, seed), noisy(3.0, 10_000 + seed)) for seed in range(100)]
    found = [compare(results_of([old]), results_of([new])) for old, new in pairs]
    assert sum(len(one.worse) for one in found) >= 95 and not any(one.better for one in found)


@pytest.mark.parametrize("factor, verdict", [(MARGIN * 1.01, "worse"), (0.99 / MARGIN, "better"), (1.02, "alike")])
def test_exactly_equal_rounds_leave_the_margin_alone(factor, verdict):
    found = compare(results_of([made(2.0)]), results_of([made(2.0 * factor)]))
    assert (len(found.worse), len(found.better), found.alike) == tuple(
        int(verdict == name) for name in ("worse", "better", "alike")
    )


def test_another_speed_of_the_whole_machine_changes_nothing():
    found = compare(results_of([made(2.0)]), results_of([made(20.0, base=[10.0] * ROUNDS)]))
    assert found.alike == 1


@pytest.mark.parametrize("unit", EXACT)
def test_counts_are_compared_themselves(unit):
    def counted(value):
        return results_of([make_row("step", "ours", [value], unit=unit)])

    assert compare(counted(5000), counted(5001)).worse and compare(counted(5000), counted(4999)).better
    assert compare(counted(5000), counted(5000)).alike == 1


def test_of_decibels_more_is_better():
    low, high = (results_of([made(value, unit="dB")]) for value in (27.0, 30.0))
    assert compare(low, high).better and compare(high, low).worse


def test_rows_that_cannot_be_compared_are_named_and_counted():
    single = make_row("few", "ours", [1.0] * 3, unit="s", baseline=("peer", [1.0] * 3))
    alone = make_row("alone", "ours", [1.0] * ROUNDS, unit="s")
    before = results_of([made(1.0), single, alone, made(1.0, what="absent")])
    found = compare(before, results_of([made(1.0), single, alone, made(1.0, what="new")]))
    assert (found.alike, found.absent, found.not_compared) == (1, 1, ["few: ours", "alone: ours"])
    assert comparison_lines(found, "old.json")[-1].endswith("0 worse, 0 better, 1 alike, 1 not measured in this run")


def test_a_comparison_of_nothing_does_not_pass():
    with pytest.raises(UserError, match="no row of the file was measured in this run"):
        compare(results_of([made(1.0, what="one")]), results_of([made(1.0, what="other")]))


def limited(**bound):
    real = read_targets()
    limit = Limit(what="subject", form="ours", source="made for a test", **bound)
    return Targets(epoch=real.epoch, published=real.published, ours=real.ours, limit=(limit,))


def test_a_limit_fails_only_beyond_the_spread():
    row = make_row("subject", "ours", [1.0, 2.0, 3.0, 4.0, 5.0], unit="s")
    for most, met, failed in [(3.0, True, False), (2.0, False, False), (1.0, False, True)]:
        limit = limited(of="p50", most=most).limit_of(row)
        assert (limit.met(row), limit.failed(row)) == (met, failed)
    assert limited(of="p50", least=5.0).limit_of(row).failed(row)


def test_a_limit_of_a_ratio_needs_a_baseline():
    row = make_row("subject", "ours", [1.0], unit="s")
    with pytest.raises(ValueError, match="its limit is of a ratio, and it has no baseline"):
        limited(of="ratio", most=1.0).limit_of(row).met(row)


def test_the_table_has_every_row_with_its_unit_ratio_and_target():
    rows: list[Row] = [
        made(0.0025, base=[0.001] * ROUNDS),
        make_row("memory", "ours", [3.21e9], unit="bytes", shape="B=8"),
        make_row("calls", "ours", [12345], unit="calls"),
    ]
    lines = [line.split() for line in table(rows, limited(of="ratio", most=2.0))]
    assert ["ours", *["2.5"] * 3, "ms", str(ROUNDS), *RATIO] in lines
    assert ["ours", "B=8", *["3.21"] * 3, "GB", "1"] in lines
    assert ["ours", *["12,345"] * 3, "calls", "1"] in lines
    assert ["subject"] in lines and any(line[0] == "machine:" for line in lines)
