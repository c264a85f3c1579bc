"""The jobs in the order of their worth: what would be missed most comes first, and what is cheap before the slow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product

from gpu_check.packages import COMMAND_LINE, CORE, DEEPSPEED, TESTS, TRITON

STAGES = {
    "machine": "card, driver, versions, missing packages, copy and product rates",
    "agree": "losses of 20 `debug` steps, CPU against GPU",
    "tests": "the tests for a GPU, with the first line of each failure",
    "steps": "what a training step costs: each configuration in a process of its own",
    "kernels": "each kernel against eager and compiled references, and its bytes a second",
    "resident": "windows a second of the loader that keeps all frames on the device",
    "deepspeed": "10 steps under ZeRO-2 on one card",
    "train": "60 s of training with validation",
    "targets": "steps whose sizes were published: memory, and seconds an epoch",
}
PUBLISHED = ((8, 16), (16, 16), (8, 32))
"""Batch sizes and lengths of windows of the published rows, with preset `paper`."""


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
    train, first = (*CORE, *COMMAND_LINE), first_steps(on_card)

    def stage(
        name: str, limit: float, needs: Iterable[str], call: str = "", least: float = 15.0, **options: object
    ) -> Job:
        call, options = f"gpu_check.stages.{call or name + ':run'}", {"device": device, **options}
        return Job(stage=name, call=call, options=options, limit=limit, least=least, needs=tuple(needs))

    return [
        stage("machine", 40, (), "machine:run", least=0),
        stage("agree", 60, CORE),
        *first["captured"],
        *first["as written"],
        stage("tests", 120, (*CORE, *TESTS), "suite:run", least=30),
        *first["published"],
        stage("deepspeed", 60, (*train, *DEEPSPEED), "launched:zero2"),
        *first["both"],
        stage("kernels", 90, (*CORE, *TRITON, "pytest")),
        stage("resident", 30, CORE),
        stage("train", 110 if on_card else 60, train, "launched:train", least=80 if on_card else 25),
        *first["rest"],
    ]


def first_steps(on_card: bool) -> dict[str, list[Job]]:
    """Jobs of `steps`, each once, under the heading where it is worth most."""
    small, paper = (("small", 8, 16), ("paper", 8, 16)) if on_card else (("debug", 2, 4), ("debug", 4, 8))
    published = [("paper", *sizes) for sizes in PUBLISHED] if on_card else []
    big = [("paper", 64, 16)] if on_card else []
    sizes = [(preset, batch, length) for preset in ("paper", "small") for batch in (8, 64, 16) for length in (16, 32)]
    headings: dict[str, Iterable[tuple[tuple[str, int, int], str, str]]] = {
        "captured": product([small, paper], ["tf32"], ["captured"]),
        "as written": product([small, paper], ["tf32"], ["as written"]),
        "published": product([*published, *big], ["tf32"], ["captured"]),
        "both": product([small, paper], ["tf32"], ["captured and compiled"]),
        "rest": [
            *product([paper, *big, small], ["bf16", "fp32"], ["captured"]),
            *product([small, paper], ["tf32"], ["compiled"]),
            *product(big, ["tf32", "bf16"], ["captured and compiled"]),
            *product(sizes if on_card else [], ["tf32", "bf16", "fp32"], ["captured", "as written"]),
            *product(sizes if on_card else [], ["tf32", "bf16", "fp32"], ["captured and compiled", "compiled"]),
        ],
    }
    seen: set[str] = set()
    return {heading: list(_jobs(configurations, on_card, seen)) for heading, configurations in headings.items()}


def _jobs(
    configurations: Iterable[tuple[tuple[str, int, int], str, str]], on_card: bool, seen: set[str]
) -> Iterator[Job]:
    for (preset, batch, length), precision, mode in configurations:
        name = f"{preset} B={batch} T={length} {precision} {mode}"
        if name in seen:
            continue
        seen.add(name)
        target = on_card and preset == "paper" and (batch, length) in PUBLISHED and precision == "tf32"
        options = {"preset": preset, "batch_size": batch, "length": length, "precision": precision, "mode": mode}
        slow = "compiled" in mode
        yield Job(
            stage="steps",
            name=name,
            call="gpu_check.stages.step:run",
            options=options,
            limit=150 if slow else 45,
            least=60 if slow else 15,
            needs=tuple(CORE),
            card="captured" in mode,
            also=("targets",) if target and mode == "captured" else (),
        )
