"""The table, made from the rows of a file of results alone."""

from collections.abc import Iterable, Mapping, Sequence

from gpu_check.plan import PUBLISHED, STAGES
from gpu_check.records import Row

_MOST = 40
"""Rows of a stage that are shown: failed tests can be many."""
_MOST_NAMES = 6
"""Jobs with one reason that are named."""
EPISODES, EPISODE_LENGTH, STRIDE = 2000, 500, 16
"""An epoch of the published DMC-VB subset: every window that starts at a multiple of the stride."""


def report(rows: Sequence[Row]) -> str:
    """A section per stage, in the order of `STAGES`."""
    parts = [f"run: {_line({k: v for k, v in row.items() if v})}" for row in rows if row.get("stage") == "run"]
    for stage in STAGES:
        jobs = _jobs(row for row in rows if row.get("stage") == stage)
        shown, text = _measured(jobs), _troubles(jobs)
        more = [f"  ... and {len(shown) - _MOST} more rows in the file"] if len(shown) > _MOST else []
        if stage == "targets":
            shown = targets(merged(rows))
        if shown or text:
            parts.append("\n".join([f"== {stage}: {STAGES[stage]}", *table(shown[:_MOST]), *more, *text]))
    return "\n\n".join(parts)


def merged(rows: Sequence[Row]) -> list[Row]:
    """One row for each configuration of `steps`."""
    return _measured(_jobs(row for row in rows if row.get("stage") == "steps"))


def targets(steps: Sequence[Row]) -> list[Row]:
    """Memory and seconds an epoch of the published sizes, from the fastest step that was measured."""
    found: list[Row] = []
    for batch, length in PUBLISHED:
        sizes = f"paper B={batch} T={length}"
        measured = [row for row in steps if str(row["what"]).startswith(sizes + " ") and "pipelined_ms" in row]
        if not measured:
            continue
        best = min(measured, key=lambda row: float(str(row["pipelined_ms"])))
        count = EPISODES * ((EPISODE_LENGTH - length) // STRIDE + 1) // batch
        found.append(
            {
                "what": sizes,
                "measured": str(best["what"]).removeprefix(sizes + " "),
                "allocated_gb": best.get("allocated_gb"),
                "card_gb": best.get("card_gb"),
                "steps_an_epoch": count,
                "seconds_an_epoch": count * float(str(best["pipelined_ms"])) / 1000,
            }
        )
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """Lines with aligned columns; the columns are the keys of all rows, in the order in which they first appear."""
    keys = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], list | dict)))
    keys.sort(key=lambda key: key != "what")
    if not any(row["what"] for row in rows):
        return [f"  {key}: {_text(row[key])}" for row in rows for key in keys if key != "what" and key in row]
    cells = [keys, *([_text(row.get(key)) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [any(isinstance(row.get(key), int | float) for row in rows) for key in keys]
    lines = (
        (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        )
        for line in cells
    )
    return ["  " + "  ".join(line).rstrip() for line in lines]


def _jobs(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by job. A job that ran several times, in a continued file, has those of the last time it was started."""
    tries: dict[str, list[list[Row]]] = {}
    for row in rows:
        of_job = tries.setdefault(str(row.get("job", "")), [[]])
        if of_job[-1] and "status" in of_job[-1][-1]:
            of_job.append([])
        of_job[-1].append(row)
    return {
        job: next((found for found in reversed(of_job) if found[-1].get("status") != "skipped"), of_job[-1])
        for job, of_job in tries.items()
    }


def _measured(jobs: Mapping[str, Sequence[Row]]) -> list[Row]:
    """What was measured. A job's rows become one, except those that say by "row" what they are about."""
    found: dict[tuple[str, str], Row] = {}
    for job, rows in jobs.items():
        for row in rows:
            if "status" not in row:
                of = str(row.get("row", ""))
                values = {key: value for key, value in row.items() if key not in ("stage", "job", "row")}
                found.setdefault((job, of), {"what": f"{job} {of}".strip()}).update(values)
    return list(found.values())


def _troubles(jobs: Mapping[str, Sequence[Row]]) -> list[str]:
    """How those jobs ended that did not end well; skipped ones with the same reason share a line."""
    lines, skipped = [], {}
    for job, rows in jobs.items():
        ends = [row for row in rows if "status" in row]
        if not ends or ends[-1]["status"] == "ok":
            continue
        end = ends[-1]
        if end["status"] in ("skipped", "interrupted"):
            skipped.setdefault(f"{end['status']}: {end.get('why')}", []).append(job)
            continue
        lines.append(f"  {job + ': ' if job else ''}{end['status']} ({end.get('seconds')} s): {end.get('why')}")
        lines += [f"    | {line}" for line in end.get("last_lines", [])]
    for reason, names in skipped.items():
        several = "; ".join(names) if len(names) <= _MOST_NAMES else f"{len(names)} jobs, {names[0]} first"
        lines.append(f"  {reason}{': ' + several if any(names) else ''}")
    return lines


def _line(row: Row) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in row.items() if key not in ("stage", "job"))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
