"""Put runs side by side on the same held-out windows, with intervals of their differences."""

from typing import TYPE_CHECKING, Any

from aime_fast.commands.shared import add_held_out, count, new_file, note
from aime_fast.errors import PlainParser, UserError

if TYPE_CHECKING:
    from aime_fast.evaluation.evaluation import Evaluation
    from aime_fast.training.checkpoint.opening import OpenedRun


def add_arguments(parser: PlainParser) -> None:
    """The options of `compare`."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of runs, checkpoints or exported folders; the first is the base"
    )
    add_held_out(parser)
    add = parser.add_argument
    add("--stride", type=count, metavar="N", help="frames between two windows [10; 4 for the reconstruction]")
    add("--json", metavar="FILE", help="also write the results and the differences to this new file")


def run(
    runs: list[str],
    data: str | None,
    actions: str | None,
    context: int,
    horizon: int,
    stride: int | None,
    json: str | None,
) -> int:
    """Print the table. What `evaluate` kept in a run's folder is used where it answers the same question."""
    file = new_file("--json", json) if json else None
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise UserError("name at least two different runs to compare")
    from aime_fast.evaluation.comparison import Comparison
    from aime_fast.evaluation.evaluation import Evaluation, Questions
    from aime_fast.evaluation.kept import write_named
    from aime_fast.evaluation.windows import OPEN_LOOP_STRIDE, PROTOCOL_STRIDE
    from aime_fast.training.checkpoint.opening import open_run

    opened = {name: open_run(name, note) for name in runs}
    questions = Questions(
        context=context,
        horizon=horizon,
        stride=stride or OPEN_LOOP_STRIDE,
        reconstruction_stride=stride or PROTOCOL_STRIDE,
    )
    path = _common_data(opened, data)
    evaluation = Evaluation(path, questions, actions=_common_reading(opened, path, actions))
    for name, found in opened.items():
        found.check_data(evaluation.held_out, lambda line, name=name: note(f"{name}: {line}"))  # type: ignore[misc]
    comparison = Comparison({name: _result(name, found, evaluation) for name, found in opened.items()})
    if file:
        write_named("--json", file, comparison.to_json())
    print(comparison)
    return 0


def _common_data(opened: "dict[str, OpenedRun]", asked: str | None) -> str | None:
    """`asked`, or the data that all runs were trained on; `UserError` if these are not the same."""
    from aime_fast.data.identity import fingerprint

    own = {name: found.data_path(asked) for name, found in opened.items()}
    (first, path), *others = own.items()
    for name, other in others:
        if fingerprint(other) != fingerprint(path) or (fingerprint(path) is None and other != path):
            raise UserError(
                f"{first} and {name} were trained on different data, {path or 'the shipped sample'} and "
                f"{other or 'the shipped sample'}; judge all on one with --data"
            )
    note(f"data: {path or 'the shipped sample'}" + (" by --data" if asked else ", on which the runs were trained"))
    return path


def _common_reading(opened: "dict[str, OpenedRun]", path: str | None, asked: str | None) -> str | None:
    """How all runs read the actions of a recording; `UserError` if they differ."""
    readings = {name: found.reading_of_actions(path, asked) for name, found in opened.items()}
    if len(set(readings.values())) > 1:
        known = ", ".join(f"{name} {reading or 'by content'}" for name, reading in readings.items())
        raise UserError(f"the runs read the actions of {path} differently ({known}); name one way with --actions")
    return next(iter(readings.values()))


def _result(name: str, opened: "OpenedRun", evaluation: "Evaluation") -> dict[str, Any]:
    """The kept evaluation of a run, or a new one if that is of other weights, other windows or another version."""
    import json
    from pathlib import Path

    from aime_fast.data.backends.backend import training_device
    from aime_fast.evaluation.kept import FILE, read_result
    from aime_fast.training.checkpoint.finding import hash_of_weights

    kept, weights = read_result(Path(name) / FILE), hash_of_weights(opened.folder)
    wanted = evaluation.facts(str(opened.folder), opened.step, weights)
    same = set(wanted) - {"checkpoint", "data"}  # these are how things were named
    if kept and all(kept["facts"].get(fact) == wanted[fact] for fact in same) and wanted["fingerprint"]:
        return kept
    note(f"{name}: evaluating")
    report = evaluation.of(opened.model().to(training_device()), str(opened.folder), opened.step, weights)
    result: dict[str, Any] = json.loads(report.to_json())
    return result
