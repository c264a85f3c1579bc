"""Record training steps: a table of phases, a trace for Perfetto, a picture, and what to do."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aime_fast.commands.shared import count, note
from aime_fast.errors import PlainParser, UserError

if TYPE_CHECKING:
    from aime_fast.config import TrainConfig
    from aime_fast.planning.cards import Card
    from aime_fast.profiling.report import Peak


def add_arguments(parser: PlainParser) -> None:
    """The options of `profile`."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", nargs="?", help="folder of a run, whose settings are taken")
    add("--preset", metavar="NAME", help="or a preset with its defaults: debug, small, paper")
    add("--data", metavar="PATH", help="as in `train`")
    add("--batch-size", type=count, metavar="N", help="as --loader.batch-size in `train`")
    add("--threads", type=count, metavar="N", help="as in `train`")
    add("--compile", metavar="WHEN", help="as in `train`")
    add("--cuda-graph", metavar="WHEN", help="as in `train`; off shows the phases of a step")
    add("--steps", type=count, default=5, metavar="N", help="steps to record [%(default)s]")
    add("--warm-up", type=count, default=5, metavar="K", help="steps before them [%(default)s]")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train [%(default)s]")
    add("--out", metavar="DIR", help="new folder of the results [runs/profile-N]")
    tool = parser.add_mutually_exclusive_group()
    tool.add_argument("--under", choices=("nsys", "ncu"), help="record with Nsight Systems or Nsight Compute instead")
    tool.add_argument("--marks", action="store_true", help="only mark the steps with NVTX, for a tool around this")


def run(
    run_folder: str | None,
    steps: int,
    warm_up: int,
    device: str,
    out: str | None,
    under: str | None,
    marks: bool,
    **options: str | int | None,
) -> int:
    """Record, write the results to a new folder, and print the table."""
    from aime_fast.config.command_line import parse_train_args

    config = parse_train_args(_flags(run_folder, options))
    _use(device, under)
    from aime_fast.training.run.host_memory import keep_freed_memory

    keep_freed_memory()
    folder = _new_folder(out)
    try:
        if under:
            given = [] if run_folder is None else [str(Path(run_folder).resolve())]
            print(_under(under, [*given, *_own(options)], steps, warm_up, device, folder))
        elif marks:
            from aime_fast.training.profiled import marked

            marked(config, steps, warm_up, folder)
        else:
            print(_profile(config, steps, warm_up, folder))
    except BaseException:
        _remove_if_empty(folder)
        raise
    note(f"results in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


def _flags(run_folder: str | None, options: dict[str, str | int | None]) -> list[str]:
    """The options of `train` that describe the run."""
    flags = []
    if run_folder is not None:
        if not (Path(run_folder) / "config.yaml").is_file():
            raise UserError(f"{run_folder} has no config.yaml; give the folder of a run, or --preset")
        flags = ["--config", str(Path(run_folder) / "config.yaml")]
    elif options["preset"] is None:
        raise UserError("give the folder of a run or --preset debug, small or paper")
    named = {("loader.batch-size" if name == "batch_size" else name): value for name, value in options.items()}
    return [*flags, *(f"--{name}={value}" for name, value in named.items() if value is not None)]


def _own(options: dict[str, str | int | None]) -> list[str]:
    """The same options as this verb takes them."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]


def _use(device: str, under: str | None) -> None:
    """Hide the cards from a run on the CPU; `UserError` where a card is asked for and there is none."""
    # Else torch's profiler prints a line when it starts and when it stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if device == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    import torch

    if torch.cuda.is_available() or (device != "cuda" and under != "ncu"):
        return
    from aime_fast.doctor.probes import cuda

    asked = "--under ncu measures kernels of a GPU" if under == "ncu" else "--device cuda"
    raise UserError(f"{asked}, but there is none here ({cuda().found}); leave it out to profile the CPU")


def _new_folder(out: str | None) -> Path:
    """An empty folder for the results; `UserError` where `out` holds something."""
    if out is None:
        numbers = (Path(f"runs/profile-{number}") for number in range(1, sys.maxsize))
        folder = next(path for path in numbers if not path.exists())
    else:
        folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--out {folder} is not empty; give a new folder")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error}); give another folder with --out") from error
    return folder


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _profile(config: "TrainConfig", steps: int, warm_up: int, folder: Path) -> str:
    """Record the steps; the table and the advice, which `folder` gets too, as text and as JSON."""
    import json

    from aime_fast.profiling.advice import advice
    from aime_fast.profiling.report import table
    from aime_fast.profiling.timeline import draw_timeline
    from aime_fast.training.profiled import recorded

    profile, trace, setting = recorded(config, steps, warm_up, folder, peak_of)
    text = f"{table(profile)}\n\n{advice(profile, setting)}"
    (folder / "profile.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "profile.json").write_text(json.dumps(profile.to_dict(), indent=1), encoding="utf-8")
    draw_timeline(trace, folder / "timeline.png", f"one step of {profile.title.partition(';')[0]}")
    return text


def peak_of(device: str, precision: str) -> "Peak | None":
    """The published peak of a card by the name that its driver gives it; None for one that is not known.

    precision: of products, as `Engine.precision` says it.
    """
    from aime_fast.planning.cards import cards
    from aime_fast.profiling.report import Peak

    name = device.lower().replace("rtx ", "rtx")
    for card in cards().values():
        model, _, memory = card.name.partition("-")
        # Other forms of a card, such as `H100 PCIe` and `RTX 3090 Ti`, have other peaks.
        known = re.search(rf"(?<![a-z0-9]){model}(?![a-z0-9])(?!.*(pcie|nvl|mig| ti| super| d\b))", name)
        if known and (not memory or f"{memory}gb" in name):
            return Peak(card.title, _products(card, precision), card.bandwidth)
    return None


def _products(card: "Card", precision: str) -> float:
    if precision.startswith("bf16"):
        return card.bf16
    return card.tf32 if precision.startswith("TF32") else card.fp32


def _under(tool: str, options: list[str], steps: int, warm_up: int, device: str, folder: Path) -> str:
    """Run this command again with `--marks` under a tool; what the tool says."""
    import torch

    from aime_fast.profiling.nsight import under_ncu, under_nsys

    own = [f"--steps={steps}", f"--warm-up={warm_up}", f"--device={device}", f"--out={folder / 'marked'}"]
    program = [sys.executable, "-m", "aime_fast", "profile", *options, "--marks", *own]
    if tool == "ncu":
        return under_ncu(program, folder)
    return under_nsys(program, folder, torch.cuda.is_available())
