"""The table of all variants of a budget: one block a data set, variants next to each other, intervals over episodes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aime_fast.evaluation.evaluation import RIDGE
from aime_fast.evaluation.intervals import Estimate, ratio_of
from aime_fast.evaluation.open_loop import CONSTANT, COPY, MEAN, ONE, OTHER
from aime_fast.evaluation.report import AT_REFERENCE

from .plan import Budget, DataSet, Variant, known_variants, seeds_of
from .stages import read

HORIZONS = (1, 2, 5, 10, 15)
NAME, CELL = 52, 14


@dataclass
class Row:
    """One figure of one variant: the reconstruction, then by horizon; None where there is none."""

    variant: str
    name: str
    cells: list[Estimate | None]

    def __str__(self) -> str:
        shown = "".join(f"{'' if cell is None else _cell(cell):>{CELL}}" for cell in self.cells)
        return f"{f'{self.variant}: {self.name}':{NAME}}{shown}"


def _cell(value: Estimate) -> str:
    return str(value) if np.isfinite(value.mean) else "nan"


def table(out: Path, budget: Budget, sets: list[DataSet]) -> str:
    """Every finished result; the first variant is the one that others are compared with."""
    variants = known_variants(out, budget)
    blocks = [block(out, budget, variants, data) for data in sets]
    if not any(blocks):
        return f"no finished result of {budget.name} in {out}"
    described = [_described(out, budget, variant, sets) for variant in variants]
    return "\n\n".join(["\n".join([f"budget {budget.name}, B={budget.batch_size}", *described]), *filter(None, blocks)])


def _described(out: Path, budget: Budget, variant: Variant, sets: list[DataSet]) -> str:
    """A variant's options, and the commits that trained it."""
    options = ", ".join(f"{name}={value}" for name, value in variant.changes.items()) or "the defaults"
    files = [seed.commit for data in sets for seed in seeds_of(out, budget, variant, data) if seed.commit.exists()]
    commits = sorted({path.read_text().strip() for path in files})
    return f"{variant.name}: {options}" + (f" (trained at commit {', '.join(commits)})" if commits else "")


def block(out: Path, budget: Budget, variants: list[Variant], data: DataSet) -> str:
    """The rows of one data set; empty if no run is finished."""
    found = {variant.name: _results(out, budget, variant, data) for variant in variants}
    found = {name: results for name, results in found.items() if results}
    if not found:
        return ""
    first = next(iter(found.values()))
    facts = first[0]["facts"]
    seeds = ", ".join(f"{name} {len(results)}" for name, results in found.items())
    title = f"{data.name}: {facts['windows']} windows of {facts['episodes']} episodes; seeds: {seeds}"
    head = f"{'PSNR in dB, ± half of the 95 % interval':{NAME}}" + "".join(
        f"{h:>{CELL}}" for h in ("reconstruction", *HORIZONS)
    )
    rows: list[str] = [title, head, *_seeds_apart(found)]
    for name, cells in _figures(first[0]).items():
        per_variant = {variant: combined(results, cells) for variant, results in found.items()}
        rows += [str(Row(variant, name, values)) for variant, values in per_variant.items()]
        base, *others = per_variant
        rows += [str(Row(f"{v} - {base}", name, difference(per_variant[v], per_variant[base]))) for v in others]
    for name in (COPY, CONSTANT, RIDGE, f"{RIDGE}, another's actions"):
        if name in first[0]["psnr"]:
            rows.append(str(Row("no model", name, combined(first, [None, *_at(("psnr", name))]))))
    return "\n".join([*rows, *_probes(found), *_parts(found)])


def _seeds_apart(found: dict[str, list[dict]]) -> list[str]:
    """How far the seeds of a variant lie apart: intervals over episodes do not know it."""
    cells = [("reconstruction", "psnr"), *_at(("psnr", MEAN))]
    lines = []
    for variant, results in found.items():
        if len(results) > 1:
            means = np.array([[_look_up(result, where)["mean"] for where in cells] for result in results])
            shown = "".join(f"{apart:>{CELL}.2f}" for apart in np.ptp(means, axis=0))
            lines.append(f"{f'{variant}: largest difference of two seeds':{NAME}}{shown}")
    return lines


def _results(out: Path, budget: Budget, variant: Variant, data: DataSet) -> list[dict]:
    read_all = (read(seed) for seed in seeds_of(out, budget, variant, data))
    return [result for result in read_all if result is not None]


Place = tuple[str | int, ...]


def _at(where: Place) -> list[Place | None]:
    return [(*where, h - 1) for h in HORIZONS]


def _figures(result: dict) -> dict[str, list[Place | None]]:
    """Where the cells of each row are in a result."""
    figures: dict[str, list[Place | None]] = {
        MEAN: [("reconstruction", "psnr"), *_at(("psnr", MEAN))],
        ONE: [None, *_at(("psnr", ONE))],
        OTHER: [None, *_at(("psnr", OTHER))],
        "moving pixels": [("reconstruction", "moving"), *_at(("moving", MEAN))],
    }
    if result["share"]:
        figures["share of the actions' effect"] = [None, *_at(("share", AT_REFERENCE))]
    return figures


def combined(results: list[dict], cells: list[Place | None]) -> list[Estimate | None]:
    """Each cell as the mean over seeds: windows and episodes are the same for all of them."""
    return [None if where is None else _mean([_look_up(result, where) for result in results]) for where in cells]


def _look_up(result: dict, where: Place) -> dict | None:
    """The estimate there; None for a horizon that was not judged."""
    value = result
    for key in where:
        if isinstance(value, list) and isinstance(key, int) and key >= len(value):
            return None
        value = value[key]
    return value


def _mean(found: list[dict | None]) -> Estimate | None:
    known = [value for value in found if value is not None]
    if not known:
        return None
    sums, counts = (np.mean([value[name] for value in known], axis=0) for name in ("sums", "counts"))
    return ratio_of(sums, counts)


def difference(cells: list[Estimate | None], base: list[Estimate | None]) -> list[Estimate | None]:
    """Cell by cell, paired over episodes."""
    pairs = zip(cells, base, strict=True)
    return [None if a is None or b is None else _minus(a, b) for a, b in pairs]


def _minus(a: Estimate, b: Estimate) -> Estimate | None:
    if a.counts != b.counts:  # other windows
        return None
    return ratio_of(np.subtract(a.sums, b.sums), np.array(a.counts))


def _probes(found: dict[str, list[dict]]) -> list[str]:
    lines = []
    for variant, results in found.items():
        known = [result["probe"]["r2"] for result in results if result["probe"]]
        if known:
            pairs = [(source, kind) for source in known[0] for kind in known[0][source]]
            cells = [f"{kind} from {source} {_r2(known, source, kind):.2f}" for source, kind in pairs]
            lines.append(f"{f'{variant}: mean R2 of a linear probe':{NAME}}  {', '.join(cells)}")
    return lines


def _r2(known: list[dict], source: str, kind: str) -> float:
    values = [x for r2 in known for x in r2[source][kind].values() if x is not None]
    return float(np.mean(values)) if values else np.nan


def _parts(found: dict[str, list[dict]]) -> list[str]:
    """What parts cost, mean over seeds."""
    tables = {v: [result["parts"] for result in results if result["parts"]] for v, results in found.items()}
    tables = {variant: parts for variant, parts in tables.items() if parts}
    if not tables:
        return []
    columns = list(next(iter(tables.values()))[0]["whole"])
    heads = [column if column == "nats" else f"{column} dB" for column in columns]
    lines = [f"{'parts, what their counterparts cost':{NAME}}" + "".join(f"{head:>{CELL}}" for head in heads)]
    for variant, parts in tables.items():
        for place, row in enumerate(parts[0]["rows"]):
            cells = [_mean([part["rows"][place]["costs"].get(column) for part in parts]) for column in columns]
            lines.append(str(Row(variant, row["name"], cells)))
    return lines
