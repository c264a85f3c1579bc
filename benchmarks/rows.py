"""The one form of a measurement, the file of a run, and how a run is compared with an earlier one.

A `Row` says what one form of a computation costs, and how many times the cost of its baseline that is. Both were
measured in the same run, so the ratio means the same on another machine, and it is what is compared.
"""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from aime_fast.errors import UserError

SCHEMA = "aime-fast benchmarks, schema 1"
LEAST_SAMPLES = 5
"""With fewer, the 20th and 80th percentiles say nothing of the spread, and a ratio is not compared."""
EXACT = ("calls", "launches")
"""Units of numbers that do not depend on the machine. Such a value is compared itself."""
MORE_IS_BETTER = ("dB",)
MARGIN = 1.05
"""What the ratio of one form in two runs of one commit may differ by beyond the spread within a run."""

Number = Annotated[float, PlainSerializer(lambda value: float(f"{value:.5g}"))]
Unit = Literal["s", "CPU s", "bytes", "calls", "launches", "dB"]
Key = tuple[str, str, str, str, str, str | None]


class Row(BaseModel):
    """What one form of a computation costs: percentiles over the samples of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    form: str
    """Which way of doing it: ours, a peer's, or plain torch."""
    shape: str
    dtype: str
    unit: Unit
    machine: str
    versions: str
    samples: int = Field(ge=1)
    p20: Number
    p50: Number
    p80: Number
    baseline: str | None = None
    """The form that `ratio` divides by; None for a form without one."""
    ratio: Number | None = None
    """The median cost over the baseline's. In rounds that alternate: the median of the rounds' ratios."""
    ratio_p20: Number | None = None
    ratio_p80: Number | None = None

    @property
    def key(self) -> Key:
        """What makes it the same measurement in another run."""
        return self.what, self.form, self.shape, self.dtype, self.unit, self.baseline

    @property
    def name(self) -> str:
        return " ".join(filter(None, (f"{self.what}: {self.form}", self.shape, self.dtype)))


class Results(BaseModel):
    """The file of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_name: Literal["aime-fast benchmarks, schema 1"] = Field(SCHEMA, alias="schema")
    date: str
    rows: list[Row]

    def write(self, path: Path) -> Path:
        """Write to a file, or to a dated file in a folder; a row a line. Returns the file."""
        path = path / f"bench-{self.date}.json" if path.is_dir() else path
        head = self.model_dump_json(by_alias=True, exclude={"rows"}).removesuffix("}")
        lines = ",\n".join(row.model_dump_json(exclude_none=True) for row in self.rows)
        path.write_text(f'{head},"rows":[\n{lines}\n]}}\n')
        return path


def read_results(path: str | Path) -> Results:
    """The results in a file. `UserError` in one line if there are none, or those of another schema."""
    try:
        return Results.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--compare {path}: {error.strerror}; give a file that --write made") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"--compare {path}: not a file of '{SCHEMA}' ({where}: {first['msg']}); make one with --write FILE"
        ) from None


def make_row(
    what: str,
    form: str,
    values: Sequence[float],
    *,
    unit: Unit,
    shape: str = "",
    dtype: str = "",
    machine: str | None = None,
    baseline: tuple[str, Sequence[float]] | None = None,
    paired: bool = False,
) -> Row:
    """The row of `values`, all of one run. `baseline` is the name of another form and its values.

    `paired`: value i of both was measured in round i, so each round has its own ratio. Otherwise the ratio's
    percentiles are those of the form over the opposite ones of its baseline, which is the wider spread.
    """
    p20, p50, p80 = percentiles(values)
    ratios: dict[str, float | str] = {}
    if baseline is not None:
        name, base = baseline
        b20, b50, b80 = percentiles(base)
        if paired:
            low, middle, high = percentiles([value / other for value, other in zip(values, base, strict=True)])
        else:
            low, middle, high = p20 / b80, p50 / b50, p80 / b20
        ratios = {"baseline": name, "ratio": middle, "ratio_p20": low, "ratio_p80": high}
    numbers = {"samples": len(values), "p20": p20, "p50": p50, "p80": p80, **ratios}
    names = {"what": what, "form": form, "shape": shape, "dtype": dtype, "unit": unit}
    return Row.model_validate({**names, **numbers, "machine": machine or this_machine(), "versions": versions()})


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile."""
    low, middle, high = np.percentile(np.asarray(values, dtype=float), [20, 50, 80])
    return float(low), float(middle), float(high)


@cache
def this_machine() -> str:
    """The processor and the number of cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{len(os.sched_getaffinity(0))} cores of {next(names, platform.machine())}"


@cache
def versions() -> str:
    """Of Python and torch."""
    return f"Python {platform.python_version()}, torch {version('torch')}"


def results_of(rows: Iterable[Row]) -> Results:
    """The results of a run that ends today."""
    return Results(date=date.today().isoformat(), rows=list(rows))


class Comparison(BaseModel):
    """What became of the rows of an earlier run."""

    worse: list[str]
    better: list[str]
    alike: int
    not_compared: list[str]
    """Of both runs, with too few samples or nothing to divide by."""
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
    for key, row in measured.items():
        old = earlier[key]
        pair = _interval(old), _interval(row)
        if pair[0] is None or pair[1] is None:
            not_compared.append(row.name)
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
