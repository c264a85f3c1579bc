"""PSNR of a run on held-out episodes: reconstruction and open loop."""

from aime_fast.commands.shared import add_run_arguments, open_run
from aime_fast.config import LoaderConfig
from aime_fast.errors import PlainParser


def add_arguments(parser: PlainParser) -> None:
    """The options of `evaluate`."""
    add_run_arguments(parser)


def run(checkpoint: str, data: str | None, context: int, horizon: int) -> int:
    """Print the reconstruction PSNR and the table of open-loop prediction by horizon."""
    from aime_fast.data.backends import open_backend
    from aime_fast.evaluation.metrics import PROTOCOL_STRIDE, reconstruction_psnr
    from aime_fast.evaluation.open_loop import OPEN_LOOP_STRIDE, PARTNERS, open_loop_psnr
    from aime_fast.tasks.registry import evaluable

    model, backend = open_run(checkpoint, data, LoaderConfig())
    longer = LoaderConfig(batch_size=PARTNERS, sequence_length=context + horizon)
    episodes = open_backend("auto", data, longer, "val", 0)  # first, because the horizon may be too long
    value = reconstruction_psnr(model, backend.evaluation_windows(PROTOCOL_STRIDE))
    print(f"reconstruction PSNR {value:.2f} dB, held-out windows at stride {PROTOCOL_STRIDE}")
    tasks = evaluable(model.heads, episodes.has_rewards)
    result = open_loop_psnr(model, episodes.evaluation_windows(OPEN_LOOP_STRIDE), context, tasks=tasks)
    windows = f"{result.windows} held-out windows at stride {OPEN_LOOP_STRIDE}"
    print(f"open loop from {context} frames, {windows}, PSNR in dB")
    print(result)
    return 0
