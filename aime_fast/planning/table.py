"""Plans in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from aime_fast.planning.memory import Memory
from aime_fast.planning.network import GPUS_PER_MACHINE
from aime_fast.planning.plan import Plan
from aime_fast.planning.scaling import Scaled


def as_table(found: Plan, price: float | None = None, epochs: float = 1.0) -> str:
    """The plan as lines. price: of one GPU an hour, in any currency."""
    return "\n".join(_lines(found, price, epochs))


def as_scaling(rows: Sequence[Scaled]) -> str:
    """The table of step times, and what breaks first past one machine."""
    lines = [
        "the same batch a GPU on more GPUs, predicted",
        "  GPUs  link       ms a step  ms waiting  GB sent  efficiency",
    ]
    lines += [
        f"  {row.gpus:4d}  {row.link:9s} {row.step_seconds * 1e3:10.1f} {row.waiting * 1e3:11.1f} "
        f"{row.sent / 1e9:8.3f} {row.efficiency:11.0%}"
        for row in rows
    ]
    if beyond := [row for row in rows if row.gpus > GPUS_PER_MACHINE]:
        first = beyond[0]
        lines.append(
            f"  past one machine the network breaks first: on {first.gpus} GPUs over {first.link} a step waits "
            f"{first.waiting * 1e3:.0f} of {first.step_seconds * 1e3:.0f} ms for it; memory does not grow with the GPUs"
        )
    return "\n".join(lines)


def _lines(found: Plan, price: float | None, epochs: float) -> Iterator[str]:
    each = found.batch_size // found.gpus
    yield (
        f"predicted, not measured: {found.gpus} x {found.card.title}, {found.link}; {each} windows of "
        f"{found.sequence_length} frames a GPU, {found.batch_size} in all; ZeRO-{found.stage}"
    )
    yield "  phase                     ms  bound by  kernels    GFLOP   GB moved  GB sent"
    for phase in found.phases:
        yield (
            f"  {phase.name:20s} {phase.seconds * 1e3:8.2f}  {phase.bound:8s} {phase.launches:8d} "
            f"{phase.flops / 1e9:8.1f} {phase.bytes / 1e9:10.2f} {phase.sent / 1e9:8.3f}"
        )
    frames = found.batch_size * found.sequence_length / found.step_seconds
    yield f"step       {found.step_seconds * 1e3:.1f} ms, {frames:,.0f} frames/s on all GPUs"
    yield f"epoch      {found.steps_per_epoch:,} steps, {_duration(found.epoch_seconds)}"
    if price is not None:
        cost = found.cost(price, epochs)
        yield f"cost       {cost:,.2f} for {epochs:g} epochs at {price:g} a GPU and hour"
    yield f"memory     {found.memory.total / 1e9:.2f} of {found.card.memory / 1e9:.1f} GB a GPU: {_kinds(found.memory)}"
    yield f"batch      {_largest(found)}"
    yield f"ZeRO       take stage {found.recommended_stage}: {found.reason}"
    yield f"disk       {found.disk / 1e9:.1f} GB of frames and actions, as raw shards"
    yield from (f"assumed    {line}" for line in found.assumptions)


def _largest(found: Plan) -> str:
    if found.largest_batch == 0:
        return "not even one window a GPU fits; take shorter windows or a smaller preset"
    fits = "" if found.fits else f", so {found.batch_size // found.gpus} do not"
    return f"at most {found.largest_batch} windows a GPU fit{fits}"


def _kinds(memory: Memory) -> str:
    named = ((field.name.replace("_", " "), getattr(memory, field.name)) for field in fields(memory))
    return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in named if size)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
