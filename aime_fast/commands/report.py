"""Write one HTML page about a run, or several side by side."""

from pathlib import Path

from aime_fast.errors import PlainParser, UserError


def add_arguments(parser: PlainParser) -> None:
    """The options of `report`."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run, finished or not")
    add("--out", metavar="HTML", help="page to write; replaced if it is a report [RUN/report.html]")


def run(runs: list[str], out: str | None) -> int:
    """Write the page and print its path."""
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: name a .html file")
    from aime_fast.reporting.page.page import write_report

    print(f"wrote {write_report(runs, out or Path(runs[0]) / 'report.html')}")
    return 0
