"""Judge a run on held-out episodes: reconstruction, open loop, use of the actions, worth of the parts."""

from pathlib import Path

from aime_fast.commands.shared import add_held_out, add_run, count, new_file, note
from aime_fast.errors import PlainParser


def add_arguments(parser: PlainParser) -> None:
    """The options of `evaluate`."""
    add_run(parser)
    add_held_out(parser)
    add = parser.add_argument
    add("--stride", type=count, metavar="N", help="frames between two windows [10; 4 for the reconstruction]")
    add("--simulator", action="store_true", help="share of the actions' effect, and probe; for collected data")
    add("--parts", action="store_true", help="replace each part by its trivial counterpart and print what it costs")
    add("--lpips-weights", metavar="FILE", help="AlexNet or VGG-16 as torchvision saves it: also measure LPIPS")
    add("--fvd-weights", metavar="FILE", help="I3D as TorchScript: also measure the Frechet video distance")
    add("--json", metavar="FILE", help="also write all values to this new file")
    add("--csv", metavar="FILE", help="also write the table to this new file, one line a figure")


def run(
    run_folder: str,
    data: str | None,
    actions: str | None,
    context: int,
    horizon: int,
    stride: int | None,
    simulator: bool,
    parts: bool,
    lpips_weights: str | None,
    fvd_weights: str | None,
    json: str | None,
    csv: str | None,
) -> int:
    """Print the tables (docs/learning.md), and keep them as RUN/evaluation.json."""
    files = {option: new_file(option, path) for option, path in (("--json", json), ("--csv", csv)) if path}
    import json as codec

    from aime_fast.data.backends.backend import training_device
    from aime_fast.evaluation.evaluation import Evaluation, Questions
    from aime_fast.evaluation.kept import as_csv, write_named
    from aime_fast.evaluation.windows import OPEN_LOOP_STRIDE, PROTOCOL_STRIDE
    from aime_fast.training.checkpoint.finding import hash_of_weights
    from aime_fast.training.checkpoint.opening import open_run

    opened = open_run(run_folder, note)
    questions = Questions(
        context=context,
        horizon=horizon,
        stride=stride or OPEN_LOOP_STRIDE,
        reconstruction_stride=stride or PROTOCOL_STRIDE,
        simulator=simulator,
        parts=parts,
        lpips_weights=lpips_weights,
        fvd_weights=fvd_weights,
    )
    progress = note if simulator or parts else lambda line: None
    path = opened.data_path(data, note)
    evaluation = Evaluation(path, questions, progress, opened.reading_of_actions(path, actions))
    opened.check_data(evaluation.held_out, note)
    model = opened.model().to(training_device())
    report = evaluation.of(model, str(opened.folder), opened.step, hash_of_weights(opened.folder))
    text = report.to_json()
    for option, file in files.items():
        write_named(option, file, text if option == "--json" else as_csv(codec.loads(text)))
    print(report)
    if (Path(run_folder) / "checkpoints").is_dir():
        own = data is None or (opened.data is not None and report.facts["fingerprint"] == opened.data.fingerprint)
        _keep(Path(run_folder), text, own)
    return 0


def _keep(folder: Path, text: str, own_data: bool) -> None:
    """In the folder of a run, for its report; not what other data than the run's own say."""
    from aime_fast.evaluation.kept import FILE, write_whole

    if not own_data:
        note(f"not kept as {folder / FILE}: these are other data than the run's own")
        return
    try:
        write_whole(folder / FILE, text)
    except OSError as error:
        note(f"warning: cannot keep {folder / FILE} ({error.strerror})")
