"""Draw the frames that a run imagines after a few context frames, above the recorded ones."""

from pathlib import Path

from aime_fast.commands.shared import add_run_arguments, open_run
from aime_fast.config import LoaderConfig
from aime_fast.errors import PlainParser, UserError


def add_arguments(parser: PlainParser) -> None:
    """The options of `imagine`."""
    add_run_arguments(parser)
    parser.add_argument("--out", required=True, metavar="PNG", help="picture to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the imagined future [%(default)s]")


def run(checkpoint: str, data: str | None, context: int, horizon: int, out: str, seed: int) -> int:
    """Imagine the first held-out window and write the picture."""
    if Path(out).suffix.lower() != ".png" or Path(out).exists():
        raise UserError(f"--out {out}: name a new .png file")
    import torch

    from aime_fast.reporting.figures import save_rollout_grid

    model, backend = open_run(checkpoint, data, LoaderConfig(batch_size=1, sequence_length=context + horizon))
    batch = next(backend.evaluation_windows(context + horizon))
    truth = batch.frames()
    with torch.no_grad():
        state = model.observe(truth[:, :context], batch.actions[:, :context])
        # One future, because the mean of many is blurred where they differ.
        future = model.imagine(state, batch.actions[:, context - 1 : -1], key=seed)
        frames = torch.cat([model.decode(part).mean()[0] for part in (state, future)])
    title = f"{context} context frames, then {horizon} frames imagined from actions alone"
    try:
        save_rollout_grid(out, truth[0], frames, context, title)
    except OSError as error:
        raise UserError(f"cannot write --out {out} ({error.strerror}); name a .png file") from error
    print(f"wrote {out}")
    return 0
