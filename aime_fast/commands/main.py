"""The command `aime-fast`: one verb a task."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aime_fast import __version__
from aime_fast.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from aime_fast.config import LoaderConfig
    from aime_fast.data.backends import Backend
    from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as Model


def main(argv: list[str] | None = None) -> int:
    """Run `aime-fast VERB ...`; the process's exit code (2 for a mistake of the user)."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["train"]:
        from aime_fast.train import main as train

        return train(arguments[1:])
    return exit_on_user_error(lambda: _run(arguments))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; `{self.prog} --help` lists what there is")


def _run(arguments: list[str]) -> int:
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command: Callable[..., int] | None = options.pop("command", None)
    if command is None:
        parser.print_help()
        return 2
    return command(**options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="aime-fast", description="Train AIME, the Adaptive Infinite Mixture Engine.")
    parser.add_argument("--version", action="version", version=f"aime-fast {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    verbs.add_parser("train", help="train a model; `aime-fast train --help` lists its options")

    record = verbs.add_parser("collect", help="record episodes of a dm_control task as shards")
    record.add_argument("--env", required=True, metavar="NAME", help="domain_task, such as cheetah_run")
    record.add_argument("--out", required=True, metavar="DIR", help="the folder to write; must not exist")
    record.add_argument("--episodes", type=_count, default=10, metavar="N", help="episodes to record [10]")
    record.add_argument("--length", type=_count, default=500, metavar="T", help="frames in an episode, at most [500]")
    record.add_argument("--policy", default="ou", metavar="NAME", help="ou, random or your module:function [ou]")
    record.add_argument("--action-repeat", type=_count, default=2, metavar="N", help="steps an action lasts [2]")
    record.add_argument("--camera", type=int, default=0, metavar="N", help="the camera that looks on [0]")
    record.add_argument("--seed", type=int, default=0, metavar="N", help="decides every episode [0]")
    record.add_argument("--val-episodes", type=int, metavar="N", help="the last N are held out [a fifth, at least one]")
    record.add_argument("--processes", type=_count, metavar="N", help="how many record side by side [one per core]")
    record.add_argument("--force", action="store_true", help="replace the folder if it exists")
    record.set_defaults(command=_collect)

    pack = verbs.add_parser("pack", help="turn a recording into shards")
    pack.add_argument("source", help="a recording: a file, a folder of files, or a folder of shards to pack again")
    pack.add_argument("--out", required=True, metavar="DIR", help="the folder to write; must not exist")
    pack.add_argument(
        "--codec", choices=["raw", "png", "jpg"], default="raw", help="how frames are stored; jpg is lossy"
    )
    pack.add_argument("--format", metavar="NAME", help="layout of the source [found by its content]")
    pack.add_argument("--camera", metavar="NAME", help="the pictures to take, where a recording has several")
    pack.add_argument("--workers", type=_count, metavar="N", help="processes that write [one a core]")
    pack.add_argument("--val-episodes", type=int, metavar="N", help="episodes held out [a fifth, at least one]")
    pack.add_argument("--seed", type=int, metavar="N", help="draw the held-out episodes [the last ones]")
    pack.add_argument("--environment", metavar="NAME", help="name of the task, recorded in the manifest")
    pack.add_argument("--force", action="store_true", help="replace the folder if it exists")
    pack.set_defaults(command=_pack)

    look = verbs.add_parser("inspect", help="say what is in a data set")
    look.add_argument("path", nargs="?", metavar="DIR", help="shards or a recording [the shipped sample]")
    look.add_argument("--deep", action="store_true", help="read everything and verify every checksum")
    look.add_argument("--sheet", dest="contact_sheet", metavar="FILE", help="write a PNG with frames of the episodes")
    look.set_defaults(command=_inspect)

    judge = verbs.add_parser("evaluate", help="PSNR of a run on held-out episodes: reconstruction and open loop")
    judge.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or one checkpoint")
    judge.add_argument("--data", metavar="PATH", help="shards or a recording [the shipped sample]")
    judge.add_argument("--context", type=_count, default=5, metavar="N", help="frames the open loop sees [5]")
    judge.add_argument("--horizon", type=_count, default=15, metavar="N", help="frames it goes on for [15]")
    judge.set_defaults(command=_evaluate)

    dream = verbs.add_parser("imagine", help="draw what a run expects beyond the frames it saw, above the truth")
    dream.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or one checkpoint")
    dream.add_argument("--out", required=True, metavar="PNG", help="the picture to write")
    dream.add_argument("--data", metavar="PATH", help="shards or a recording [the shipped sample]")
    dream.add_argument("--context", type=_count, default=5, metavar="N", help="frames the model sees [5]")
    dream.add_argument("--horizon", type=_count, default=15, metavar="N", help="frames it imagines from actions [15]")
    dream.add_argument("--seed", type=int, default=0, metavar="N", help="decides which of its futures is drawn [0]")
    dream.set_defaults(command=_imagine)

    check = verbs.add_parser("doctor", help="say whether this machine can train, and what to install")
    check.add_argument("--json", action="store_true", help="print the checks as JSON")
    check.set_defaults(command=_doctor)

    give = verbs.add_parser("export", help="write a run's model as safetensors and json")
    give.add_argument("run", metavar="RUN", help="a run's folder (its best checkpoint) or one checkpoint")
    give.add_argument("--out", required=True, metavar="DIR", help="the folder to write; must not exist")
    give.set_defaults(command=_export)
    return parser


def _collect(**options: Any) -> int:
    from aime_fast.data.collect.collect import collect

    print(f"recorded into {collect(**options)}")
    return 0


def _pack(workers: int | None, **options: object) -> int:
    from aime_fast.data.packing.pack import pack

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options["workers"] = workers or cores or 1
    options["report"] = lambda line: print(line, file=sys.stderr)
    print(f"packed into {pack(**options)}")  # type: ignore[arg-type]
    return 0


def _inspect(path: str | None, deep: bool, contact_sheet: str | None) -> int:
    from aime_fast.data.inspect import inspect

    print(inspect(path, deep=deep, contact_sheet=contact_sheet))
    return 0


def _doctor(json: bool) -> int:
    from aime_fast.doctor import as_json, as_table, can_train, examine
    from aime_fast.kernel_mode import check_kernel_mode

    check_kernel_mode()
    results = examine()
    print(as_json(results) if json else as_table(results))
    return 0 if can_train(results) else 1


def _evaluate(checkpoint: str, data: str | None, context: int, horizon: int) -> int:
    from aime_fast.config import LoaderConfig
    from aime_fast.data.backends import open_backend
    from aime_fast.evaluation.open_loop import OPEN_LOOP_STRIDE, PARTNERS, open_loop_psnr
    from aime_fast.evaluation.reconstruction import PROTOCOL_STRIDE, reconstruction_psnr
    from aime_fast.tasks.registry import evaluable

    model, backend = _open(checkpoint, data, LoaderConfig())
    longer = LoaderConfig(batch_size=PARTNERS, sequence_length=context + horizon)
    ahead_of = open_backend("auto", data, longer, "val", 0)  # before anything is computed: it may be too long
    value = reconstruction_psnr(model, backend.evaluation_windows(PROTOCOL_STRIDE))
    print(f"reconstruction PSNR {value:.2f} dB, held-out windows at stride {PROTOCOL_STRIDE}")
    tasks = evaluable(model.heads, getattr(ahead_of, "has_rewards", True))
    ahead = open_loop_psnr(model, ahead_of.evaluation_windows(OPEN_LOOP_STRIDE), context, tasks=tasks)
    print(f"open loop from {context} frames, {ahead.windows} held-out windows at stride {OPEN_LOOP_STRIDE}, PSNR in dB")
    print(ahead)
    return 0


def _imagine(checkpoint: str, out: str, data: str | None, context: int, horizon: int, seed: int) -> int:
    import torch

    from aime_fast.config import LoaderConfig
    from aime_fast.reporting.figures import save_rollout_grid

    model, backend = _open(checkpoint, data, LoaderConfig(batch_size=1, sequence_length=context + horizon))
    batch = next(backend.evaluation_windows(context + horizon))
    truth = batch.observations.movedim(-1, 2)
    with torch.no_grad():
        seen = model.reconstruct(model(truth[:, :context], batch.actions[:, :context]))
        state = model.observe(truth[:, :context], batch.actions[:, : context - 1])
        future = model.decode(model.imagine(state, batch.actions[:, context - 1 : -1], key=seed)).mean()
    # One future, not the mean of many: a mean blurs where futures part.
    imagined = torch.cat([seen[0], future[0]])
    title = f"the first {context} frames seen, the next {horizon} imagined from actions alone"
    try:
        save_rollout_grid(out, truth[0].float() / 127.5 - 1, imagined, context, title)
    except OSError as error:
        raise UserError(f"cannot write --out {out} ({error.strerror}); name a .png file") from error
    print(f"wrote {out}")
    return 0


def _export(run: str, out: str) -> int:
    from aime_fast.training.checkpoint.export import export

    print(f"exported to {export(run, out, lambda line: print(line, file=sys.stderr))}")
    return 0


def _open(checkpoint: str, data: str | None, loader: "LoaderConfig") -> tuple["Model", "Backend"]:
    """A run's model and the held-out episodes to try it on; `UserError` when their actions differ in size."""
    from aime_fast.data.backends import open_backend
    from aime_fast.training.checkpoint.loading import load_model

    model = load_model(checkpoint, lambda line: print(line, file=sys.stderr))
    backend = open_backend("auto", data, loader, "val", 0)
    if backend.action_dim != model.config.action_dim:
        raise UserError(
            f"the data's actions have {backend.action_dim} numbers and the model's {model.config.action_dim}; "
            "name the data it was trained on with --data"
        )
    return model, backend


def _count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)
