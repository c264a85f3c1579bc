"""Write every figure of a run for a paper or a talk, one file each."""

from pathlib import Path

from aime_fast.commands.shared import note
from aime_fast.errors import PlainParser, UserError


def add_arguments(parser: PlainParser) -> None:
    """The options of `figures`."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="folder of a run, finished or not")
    add("--out", metavar="DIR", help="folder for the files [RUN/figures/step-N]")
    add("--format", dest="kind", choices=("pdf", "svg", "png"), default="pdf", help="of the files [%(default)s]")


def run(run_folder: str, out: str | None, kind: str) -> int:
    """Draw what the run has data for, and print the folder."""
    from aime_fast.reporting.charts.style import save
    from aime_fast.reporting.page.drawings import drawings
    from aime_fast.reporting.page.run_record import read_run

    record = read_run(run_folder)
    for remark in record.remarks:
        note(f"{run_folder}: {remark}")
    found = drawings(record)
    if not found:
        raise UserError(f"{run_folder} has nothing to draw yet; wait for its first row of metrics")
    folder = Path(out) if out else record.folder / "figures" / f"step-{record.history.step:08d}"
    paths = [folder / f"{drawing.name}.{kind}" for drawing in found]
    if existing := [path for path in paths if path.exists()]:
        raise UserError(f"{existing[0]} exists; name another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for drawing, path in zip(found, paths, strict=True):
            save(drawing.draw(), path)
    except OSError as error:
        raise UserError(f"cannot write into {folder} ({error.strerror}); name another folder with --out") from error
    print(f"wrote {len(paths)} figures into {folder}")
    return 0
