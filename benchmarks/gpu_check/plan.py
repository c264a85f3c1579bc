"""The jobs in the order of their worth: what would be missed most comes first, and what is cheap before the slow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product

from gpu_check.packages import COMMAND_LINE, CORE, DEEPSPEED, TESTS, TRITON

STAGES = {
    "machine": "card, driver, versions, missing packages, copy and product rates",
    "agree": "losses of the first steps of `debug`, relative to those on a CPU",
    "tests": "the tests for a GPU, with the first line of each failure",
    "steps": "what a training step costs: each configuration in a process of its own",
    "kernels": "each kernel against eager and compiled references, and its bytes a second",
    "resident": "windows a second of the loader that keeps all frames on the device",
    "deepspeed": "some steps under ZeRO-2 in one process",
    "train": "training with validation",
    "targets": "steps whose sizes were published: memory, and seconds an epoch",
}
PUBLISHED = ((8, 16), (16, 16), (8, 32))
"""Batch sizes and lengths of windows of the published rows, with preset `paper`."""

Sizes = tuple[str, int, int]
"""Preset, batch size and length of windows."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of a stage."""

    stage: str
    name: str = ""
    """Which part of the stage; empty if the stage is one job."""
    call: str
    """`module:function` for the worker."""
    options: dict[str, object] = field(default_factory=dict)
    limit: float
    """Seconds after which it is killed."""
    least: float = 15.0
    """With fewer seconds left it is not started."""
    needs: tuple[str, ...] = ()
    """Modules that must be there."""
    card: bool = False
    """Whether it means nothing without a GPU."""
    also: tuple[str, ...] = ()
    """Other stages that show its figures."""


def plan(device: str) -> list[Job]:
    """All jobs for `cuda`, or small ones for `cpu`."""
    on_card = device == "cuda"
    steps, command = step_jobs(device), (*CORE, *COMMAND_LINE)

    def job(stage: str, limit: float, needs: Iterable[str], call: str, least: float = 15.0, **options: object) -> Job:
        call, options = f"gpu_check.stages.{call}", {"device": device, **options}
        return Job(stage=stage, call=call, options=options, limit=limit, least=least, needs=tuple(needs))

    return [
        job("machine", 40, (), "machine:run", least=0),
        job("agree", 60, CORE, "agree:run", steps=20 if on_card else 4),
        *steps["captured"],
        *steps["as written"],
        *steps["published"],
        job("deepspeed", 60, (*command, *DEEPSPEED), "launched:zero2", steps=10 if on_card else 2),
        job("tests", 120, (*CORE, *TRITON, *TESTS), "suite:run", least=30),
        *steps["captured and compiled"],
        job("kernels", 90, (*CORE, *TRITON, "pytest"), "kernels:run"),
        job("resident", 30, CORE, "resident:run"),
        job("train", 110, command, "launched:train", least=80 if on_card else 30, seconds=60 if on_card else 5),
        *steps["rest"],
    ]


def step_jobs(device: str) -> dict[str, list[Job]]:
    """The configurations of `steps`, each under the first heading that has it; the headings in the order of worth."""
    on_card = device == "cuda"
    small, paper = (("small", 8, 16), ("paper", 8, 16)) if on_card else (("debug", 2, 4), ("debug", 4, 8))
    published = [("paper", *sizes) for sizes in PUBLISHED] if on_card else []
    big = [("paper", 64, 16)] if on_card else []
    grid = product(("paper", "small"), (8, 64, 16), (16, 32)) if on_card else ()
    usual, precisions = ("tf32", ("tf32", "bf16", "fp32")) if on_card else ("fp32", ("fp32", "bf16"))
    modes = ("captured", "as written", "captured and compiled", "compiled")
    headings: dict[str, Iterable[tuple[Sizes, str, str]]] = {
        "captured": product((small, paper), (usual,), ("captured",)),
        "as written": product((small, paper), (usual,), ("as written",)),
        "published": product((*published, *big), (usual,), ("captured",)),
        "captured and compiled": product((small, paper), (usual,), ("captured and compiled",)),
        "rest": (
            *product((paper, *big, small), precisions, ("captured",)),
            *product((small, *big), precisions[:2], ("compiled", "captured and compiled")),
            *((sizes, precision, mode) for mode, precision, sizes in product(modes, precisions, list(grid))),
        ),
    }
    seen: set[str] = set()
    return {heading: list(_steps(configurations, device, seen)) for heading, configurations in headings.items()}


def _steps(configurations: Iterable[tuple[Sizes, str, str]], device: str, seen: set[str]) -> Iterator[Job]:
    for sizes, precision, mode in configurations:
        preset, batch, length = sizes
        name = f"{preset} B={batch} T={length} {precision} {mode}"
        if name in seen:
            continue
        seen.add(name)
        options = {"preset": preset, "batch_size": batch, "length": length, "precision": precision, "mode": mode}
        on_card = device == "cuda"
        published = preset == "paper" and (batch, length) in PUBLISHED and (precision, mode) == ("tf32", "captured")
        slow = "compiled" in mode
        yield Job(
            stage="steps",
            name=name,
            call="gpu_check.stages.step:run",
            options={"device": device, **options},
            limit=150 if slow else 45,
            least=(60 if on_card else 120) if slow else 15,
            needs=tuple(CORE),
            card="captured" in mode,
            also=("targets",) if published else (),
        )
