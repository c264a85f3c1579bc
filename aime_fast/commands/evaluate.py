"""Judge a run on held-out episodes: reconstruction, open loop, use of the actions, worth of the parts."""

from pathlib import Path

from aime_fast.commands.shared import add_run_arguments, check_sizes, count, note
from aime_fast.errors import PlainParser, UserError


def add_arguments(parser: PlainParser) -> None:
    """The options of `evaluate`."""
    add_run_arguments(parser)
    add = parser.add_argument
    add("--stride", type=count, metavar="N", help="frames between two windows [10; 4 for the reconstruction]")
    add("--simulator", action="store_true", help="share of the actions' effect, and probe; for collected data")
    add("--parts", action="store_true", help="replace each part by its trivial counterpart and print what it costs")
    add("--json", metavar="FILE", help="also write all values to this new file")


def run(
    checkpoint: str,
    data: str | None,
    context: int,
    horizon: int,
    stride: int | None,
    simulator: bool,
    parts: bool,
    json: str | None,
) -> int:
    """Print the tables (docs/learning.md)."""
    if json and (Path(json).exists() or not Path(json).resolve().parent.is_dir()):
        raise UserError(f"--json {json}: name a new file in a folder that exists")
    from aime_fast.data.backends.backend import training_device
    from aime_fast.evaluation.evaluation import Evaluation, Questions
    from aime_fast.training.checkpoint.loading import load_model

    model = load_model(checkpoint, note)
    strides = {} if stride is None else {"stride": stride, "reconstruction_stride": stride}
    questions = Questions(context=context, horizon=horizon, simulator=simulator, parts=parts, **strides)
    evaluation = Evaluation(data, questions, note if simulator or parts else lambda line: None)
    check_sizes(model, evaluation.held_out.action_dim, evaluation.held_out.image_size)
    report = evaluation.of(model.to(training_device()), checkpoint)
    if json:
        # Under another name until it is complete: whoever finds the file finds all of it.
        draft = Path(f"{json}.part")
        draft.write_text(report.to_json(), encoding="utf-8")
        draft.replace(json)
    print(report)
    return 0
