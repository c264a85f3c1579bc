"""Entry point of training, for one process or under a launcher.

    python aime_fast/train.py --preset debug --steps 50
    deepspeed aime_fast/train.py --ds_config ds_configs/zero2.json

Exit codes: 0 at the end of the run, 2 for a mistake of the user (one line on standard error), 130 or 143 after SIGINT
or SIGTERM, which write a checkpoint first.
"""

import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Train with the options `argv` (default: those of the command line); returns the exit code."""
    from aime_fast.errors import exit_on_user_error
    from aime_fast.waiting import sleep_while_waiting

    sleep_while_waiting()
    return exit_on_user_error(lambda: _train(sys.argv[1:] if argv is None else argv))


def _train(argv: list[str]) -> int:
    from aime_fast.config.command_line import parse_train_args
    from aime_fast.errors import UserError, check_text

    check_text(argv)
    chosen: list[str] = []

    def preset_of_machine() -> str:
        from aime_fast.training.run.preset import suitable_preset

        chosen.append(suitable_preset())
        return chosen[0]

    config = parse_train_args(argv, preset_of_machine)
    # After the options, so that `--help` and a misspelt option do not wait for torch.
    from aime_fast.training.run.host_memory import keep_freed_memory
    from aime_fast.training.run.preset import expectation
    from aime_fast.training.trainer import DMCVBTrainer

    keep_freed_memory()
    trainer = DMCVBTrainer(config)
    if chosen and trainer.engine.device.type == "cpu":
        trainer.notes.append(expectation(trainer.config, trainer.schedules.total_steps))
    try:
        summary = trainer.fit()
    except UserError as mistake:
        # All processes raise it together, except where one has no memory left. After a crash of one process, closing
        # could wait for the others forever.
        if trainer.hosts.world_size == 1 or not isinstance(mistake.__cause__, RuntimeError):
            trainer.close()
        raise
    trainer.close()
    return 128 + summary.signal if summary.signal else 0


def _use_checkout() -> None:
    """Import from this checkout, and not modules of this folder by their bare names."""
    folder = Path(__file__).resolve().parent
    kept = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder]
    sys.path[:] = [str(folder.parent), str(folder.parent / "kernels"), *kept]


if __name__ == "__main__":
    _use_checkout()
    sys.exit(main())
