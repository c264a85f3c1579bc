"""Draw the frames that a run imagines after a few context frames, above the recorded ones."""

from aime_fast.commands.shared import add_held_out, add_run, new_file, note
from aime_fast.errors import PlainParser, UserError


def add_arguments(parser: PlainParser) -> None:
    """The options of `imagine`."""
    add_run(parser)
    add_held_out(parser)
    parser.add_argument("--out", required=True, metavar="PNG", help="picture to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the imagined future [%(default)s]")


def run(run_folder: str, data: str | None, actions: str | None, context: int, horizon: int, out: str, seed: int) -> int:
    """Imagine the first held-out window and write the picture."""
    picture = new_file("--out", out, ".png")
    import numpy as np
    import torch

    from aime_fast.data.store import open_store
    from aime_fast.evaluation.windows import make_windows
    from aime_fast.reporting.figures import save_rollout_grid
    from aime_fast.training.checkpoint.opening import open_run

    opened = open_run(run_folder, note)
    path = opened.data_path(data, note)
    held_out = open_store(path, "val", actions=opened.reading_of_actions(path, actions))
    opened.check_data(held_out, note)
    batch = make_windows(held_out, context + horizon, 1, limit=1).batch(np.arange(1))
    model, truth = opened.model(), batch.frames()
    with torch.no_grad():
        state = model.observe(truth[:, :context], batch.actions[:, :context])
        # One future, because the mean of many is blurred where they differ.
        future = model.imagine(state, batch.actions[:, context - 1 : -1], key=seed)
        frames = torch.cat([model.decode(part).mean()[0] for part in (state, future)])
    title = f"{context} context frames, then {horizon} frames imagined from actions alone"
    try:
        save_rollout_grid(picture, truth[0], frames, context, title)
    except OSError as error:
        raise UserError(f"cannot write --out {out} ({error.strerror}); name another .png file") from error
    print(f"wrote {out}")
    return 0
