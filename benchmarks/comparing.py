"""How a run is compared with an earlier one: by the ratios of its rows to their baselines, and by exact counts."""

from collections.abc import Mapping

from pydantic import BaseModel
from rows import Key, Results, Row

from aime_fast.errors import UserError

LEAST_SAMPLES = 5
"""With fewer, the 20th and 80th percentiles say nothing of the spread, and a ratio is not compared."""
EXACT = ("calls", "launches")
"""Units of numbers that do not depend on the machine. Such a value is compared itself."""
MORE_IS_BETTER = ("dB",)
MARGIN = 1.05
"""What the ratio of one form in two runs of one commit may differ by beyond the spread within a run."""


class Comparison(BaseModel):
    """What became of the rows of an earlier run."""

    worse: list[str]
    better: list[str]
    alike: int
    not_compared: list[str]
    """Of both runs, with too few samples or nothing to divide by. What others are divided by is left out."""
    absent: int
    """Rows of the earlier run that this run has not measured."""


def compare(before: Results, now: Results) -> Comparison:
    """Each row that both runs have, by its ratio. `UserError` if no row can be compared.

    A form is worse if all but a fifth of its ratios lie above all but a fifth of the earlier ones: its 20th percentile
    exceeds the earlier 80th by `MARGIN`. Better is the same the other way round.
    """
    earlier: Mapping[Key, Row] = {row.key: row for row in before.rows}
    worse, better, not_compared, alike = [], [], [], 0
    measured = {row.key: row for row in now.rows if row.key in earlier}
    baselines = {(row.what, row.shape, row.dtype, row.baseline) for row in now.rows}
    for key, row in measured.items():
        old = earlier[key]
        pair = _interval(old), _interval(row)
        if pair[0] is None or pair[1] is None:
            not_compared += [row.name] * ((row.what, row.shape, row.dtype, row.form) not in baselines)
            continue
        (old_low, old_high), (low, high) = pair
        margin = 1.0 if row.unit in EXACT else MARGIN
        above, below = low > margin * old_high, high * margin < old_low
        if row.unit in MORE_IS_BETTER:
            above, below = below, above
        line = f"{row.name}: {_cost(old)} before, {_cost(row)} now"
        worse += [line] * above
        better += [line] * below
        alike += not (above or below)
    if not (worse or better or alike):
        raise UserError("--compare: no row of the file was measured in this run with a ratio; choose other benchmarks")
    absent = len(earlier) - len(measured)
    return Comparison(worse=worse, better=better, alike=alike, not_compared=not_compared, absent=absent)


def _interval(row: Row) -> tuple[float, float] | None:
    """Where the compared number lies; None if it can't be compared."""
    if row.unit in EXACT:
        return row.p50, row.p50
    if row.ratio_p20 is None or row.ratio_p80 is None or row.samples < LEAST_SAMPLES:
        return None
    return row.ratio_p20, row.ratio_p80


def _cost(row: Row) -> str:
    if row.ratio is None:
        return f"{row.p50:.5g} {row.unit}"
    return f"{row.ratio:.3g} ({row.ratio_p20:.3g} to {row.ratio_p80:.3g}) times {row.baseline}"
