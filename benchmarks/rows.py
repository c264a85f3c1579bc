"""The one form of a measurement, and the file of a run.

A `Row` says what one form of a computation costs, and how many times the cost of its baseline that is. Both were
measured in the same run, so the ratio means the same on another machine, and it is what is compared.
"""

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cache
from importlib.metadata import distributions, version
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from aime_fast.errors import UserError

SCHEMA = "aime-fast benchmarks, schema 1"
ROOT = Path(__file__).parents[1]
PEERS = ("h5py", "numpy", "pylance", "torchjd", "webdataset")

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

    schema_name: Literal[SCHEMA] = Field(SCHEMA, alias="schema")
    date: str
    commit: str
    packages: dict[str, str]
    """Versions of the peers, of those that are installed."""
    rows: list[Row]

    def write(self, path: Path) -> Path:
        """Write to a file, or to a new dated file in a folder; a row a line. Returns the file."""
        if path.is_dir():
            names = (path / f"bench-{self.date}{f'-{number}' * (number > 1)}.json" for number in count(1))
            path = next(name for name in names if not name.exists())
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
    """The results of a run of this checkout that ends today."""
    return Results(date=date.today().isoformat(), commit=commit(), packages=peers(), rows=list(rows))


@cache
def commit() -> str:
    """Of this checkout, with `-dirty` if files differ from it; empty without git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def peers() -> dict[str, str]:
    """Versions of the packages that rows are compared with, of those that are installed."""
    installed = {found.name.lower(): found.version for found in distributions() if found.name}
    return {name: installed[name] for name in PEERS if name in installed}
