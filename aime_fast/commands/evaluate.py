"""Judge a run on held-out episodes: reconstruction, open loop, use of the actions, worth of the parts."""

from pathlib import Path

from aime_fast.commands.shared import add_held_out, add_run, count, new_file, note
from aime_fast.errors import PlainParser, UserError


def add_arguments(parser: PlainParser) -> None:
    """The options of `evaluate`."""
    add_run(parser)
    add_held_out(parser)
    add = parser.add_argument
    add("--stride", type=count, metavar="N", help="frames between two windows [10; 4 for the reconstruction]")
    add("--simulator", action="store_true", help="share of the actions' effect, and probe; for collected data")
    add("--parts", action="store_true", help="replace each part by its trivial counterpart and print what it costs")
    add("--json", metavar="FILE", help="also write all values to this new file")


def run(
    run_folder: str,
    data: str | None,
    actions: str | None,
    context: int,
    horizon: int,
    stride: int | None,
    simulator: bool,
    parts: bool,
    json: str | None,
) -> int:
    """Print the tables (docs/learning.md)."""
    result = new_file("--json", json) if json else None
    from aime_fast.data.backends.backend import training_device
    from aime_fast.evaluation.evaluation import Evaluation, Questions
    from aime_fast.training.checkpoint.opening import open_run

    opened = open_run(run_folder, note)
    strides = {} if stride is None else {"stride": stride, "reconstruction_stride": stride}
    questions = Questions(context=context, horizon=horizon, simulator=simulator, parts=parts, **strides)
    progress = note if simulator or parts else lambda line: None
    path = opened.data_path(data, note)
    evaluation = Evaluation(path, questions, progress, opened.reading_of_actions(path, actions))
    opened.check_data(evaluation.held_out, note)
    report = evaluation.of(opened.model().to(training_device()), run_folder)
    if result:
        _write(report.to_json(), result)
    print(report)
    return 0


def _write(text: str, path: Path) -> None:
    """Under another name until it is complete: whoever finds the file finds all of it."""
    draft = path.with_name(f"{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UserError(f"cannot write --json {path} ({error.strerror}); name another file") from error
