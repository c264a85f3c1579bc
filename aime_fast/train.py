"""Entry point of the main job, on one process or under a launcher.

    python aime_fast/train.py --preset debug --steps 50
    deepspeed aime_fast/train.py --ds_config ds_configs/zero2.json

Exit codes: 0 at the end of the run, 2 for a mistake of the user (one line on standard error), 130 and 143 where SIGINT
or SIGTERM ended it early with a checkpoint.
"""

import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Train as `argv` asks (default: the command line's arguments); the process's exit code."""
    from aime_fast.errors import exit_on_user_error

    return exit_on_user_error(lambda: _train(sys.argv[1:] if argv is None else argv))


def _train(argv: list[str]) -> int:
    from aime_fast.config.command_line import parse_train_args

    config = parse_train_args(argv)
    # Only now: `--help` and a misspelt option need not wait for torch.
    from aime_fast.errors import UserError
    from aime_fast.training.run.host_memory import keep_freed_memory
    from aime_fast.training.trainer import DMCVBTrainer

    keep_freed_memory()
    trainer = DMCVBTrainer(config)
    try:
        summary = trainer.fit()
    except UserError:
        # All processes come by here; after a crash of one, closing could wait for the others for ever.
        trainer.close()
        raise
    trainer.close()
    return 128 + summary.signal if summary.signal else 0


def _import_from_here() -> None:
    """Let a bare checkout find its packages, and keep modules of this folder from standing in for others by name."""
    folder = Path(__file__).resolve().parent
    kept = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder]
    sys.path[:] = [str(folder.parent), str(folder.parent / "kernels"), *kept]


if __name__ == "__main__":
    _import_from_here()
    sys.exit(main())
