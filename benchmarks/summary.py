"""The rows of a run as plain text."""

import os
from collections.abc import Iterable, Sequence
from itertools import groupby

from comparing import Comparison
from rows import Row
from targets import Targets

SCALES = {"bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))}
SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
HEAD = ("form", "shape", "dtype", "p20", "p50", "p80", "unit", "n", "ratio (p20 to p80)", "to", "target")
MOST_NAMES = 12
"""Rows without a comparison that are named."""


def table(rows: Iterable[Row], targets: Targets) -> list[str]:
    """A block for each subject, its forms below one another; columns are aligned over all blocks."""
    ordered = sorted(rows, key=lambda row: row.what)
    blocks = {what: [_cells(row, targets) for row in group] for what, group in groupby(ordered, key=lambda r: r.what)}
    lines = [HEAD, *(cells for block in blocks.values() for cells in block)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_aligned(HEAD, widths)]
    for what, block in blocks.items():
        text += [what, *(_aligned(cells, widths) for cells in block)]
    machines = sorted({f"{row.machine}; {row.versions}" for row in ordered})
    load = f"load of the last minute on {cores()} cores: {os.getloadavg()[0]:.1f}"
    enforced = "; limits of wall-clock time are not enforced while it is this busy" if busy() else ""
    return [*text, *(f"machine: {machine}" for machine in machines), load + enforced]


def busy() -> bool:
    """Whether twice as many threads as cores want to run: then seconds say little of the program."""
    return os.getloadavg()[0] > 2 * cores()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def comparison_lines(found: Comparison, path: str) -> list[str]:
    """What `--compare` says; the last line is the verdict."""
    lines = [*(f"worse: {line}" for line in found.worse), *(f"better: {line}" for line in found.better)]
    if found.not_compared:
        more = len(found.not_compared) - MOST_NAMES
        names = "; ".join(found.not_compared[:MOST_NAMES]) + (f"; and {more} more" if more > 0 else "")
        lines.append(f"not compared, no baseline or too few samples: {names}")
    verdict = f"{len(found.worse)} worse, {len(found.better)} better, {found.alike} alike"
    return [*lines, f"against {path}: {verdict}, {found.absent} not measured in this run"]


def _cells(row: Row, targets: Targets) -> tuple[str, ...]:
    scale, unit = _scale(row)
    values = [f"{value / scale:.3g}" if scale != 1 else _plain(value) for value in (row.p20, row.p50, row.p80)]
    ratio = f"{row.ratio:.3g} ({row.ratio_p20:.3g} to {row.ratio_p80:.3g})" if row.ratio is not None else ""
    limit = targets.limit_of(row)
    target = f"{limit.words}: {'met' if limit.met(row) else 'MISSED'}" if limit else ""
    return (row.form, row.shape, row.dtype, *values, unit, str(row.samples), ratio, row.baseline or "", target)


def _scale(row: Row) -> tuple[float, str]:
    """The factor and the name of the unit that leaves one to three digits before the point."""
    steps = SECONDS if row.unit in ("s", "CPU s") else SCALES.get(row.unit, ())
    factor, name = next(((f, n) for f, n in steps if row.p50 >= f), steps[-1] if steps else (1.0, row.unit))
    return factor, f"CPU {name}" if row.unit == "CPU s" else name


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return ("  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))).rstrip()
