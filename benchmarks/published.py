"""Time of an epoch and memory of a GPU at the sizes that were published: measured on the cards there are, or predicted.

What is measured becomes a figure for the published cards by three rules, each of which is printed with its numbers:

1. The sample has the published row's batch size on each GPU that is there. Steps an epoch are those of the published
   number of GPUs.
2. The step's time is multiplied by the planner's time for the published cards over its time for those measured.
3. To the memory the planner's difference between the two is added.
"""

from dataclasses import dataclass, replace

import torch
from measuring import run_json
from targets import EpochTarget, Published

from aime_fast.config import TrainConfig, preset_config
from aime_fast.planning.cards import Card, card, cards
from aime_fast.planning.plan import Plan, plan

PRESET, STAGE, SAMPLES = "paper", "zero0-fp8", 20


@dataclass(frozen=True)
class Figures:
    """Of the published cards, and how they came about."""

    kind: str
    """MEASURED or PREDICTED."""
    epoch_seconds: list[float]
    memory_bytes: float
    """Tensors of torch on one GPU, without the CUDA context."""
    assumptions: tuple[str, ...]


def predicted(row: Published, epoch: EpochTarget) -> Figures:
    """From the planner's counts alone."""
    found = planned(row, card(row.card), row.gpus, epoch)
    assumptions = *_shared(epoch), bounds(found), *found.assumptions
    return Figures("PREDICTED", [found.epoch_seconds], found.memory.allocated, assumptions)


def measured(row: Published, epoch: EpochTarget) -> Figures:
    """From steps on all cards of this machine, by the rules above. `LookupError` if the planner does not know them."""
    here, count = card_here(torch.cuda.get_device_name()), torch.cuda.device_count()
    there = planned(row, card(row.card), row.gpus, epoch)
    mine = planned(row, here, count, epoch)
    sizes = ["--batch-size", row.batch_size * count, "--sequence-length", row.sequence_length]
    many = count > 1
    words = ["benchmarks/rank_cost.py", PRESET, SAMPLES, 4, STAGE if many else "", *sizes]
    found = run_json(*words, processes=count if many else 0, threads=4)
    factor = there.step_seconds / mine.step_seconds
    beyond = there.memory.allocated - mine.memory.allocated
    seconds = [value * factor * there.steps_per_epoch for value in found["samples"]["seconds"]]
    rules = (
        f"measured: {count} x {here.title}, {row.batch_size} windows a GPU, {len(seconds)} samples of five steps",
        f"rule 1: {there.steps_per_epoch:,} steps an epoch on {row.gpus} GPUs",
        f"rule 2: time x {factor:.3f}, the planner's {1e3 * there.step_seconds:.2f} ms on {row.gpus} x {row.card} over "
        f"its {1e3 * mine.step_seconds:.2f} ms on what was measured",
        f"rule 3: memory {beyond / 1e9:+.3f} GB, the planner's difference",
    )
    memory = found["memory_bytes"] + beyond
    return Figures("MEASURED", seconds, memory, (*_shared(epoch), *rules, *there.assumptions))


def planned(row: Published, kind: Card, gpus: int, epoch: EpochTarget) -> Plan:
    """The plan of the published sizes on `gpus` cards of a kind."""
    base = preset_config(PRESET)
    loader = replace(base.loader, batch_size=row.batch_size * gpus, sequence_length=row.sequence_length)
    config: TrainConfig = replace(base, loader=loader)
    return plan(config, kind, gpus, epoch=epoch.epoch, ds_config=STAGE if gpus > 1 else None)


def bounds(found: Plan) -> str:
    """The milliseconds of a step by what bounds them, the largest share first."""
    shares: dict[str, float] = {}
    for phase in found.phases:
        shares[phase.bound] = shares.get(phase.bound, 0.0) + 1e3 * phase.seconds
    words = (f"{share:.1f} by {bound}" for bound, share in sorted(shares.items(), key=lambda item: -item[1]))
    return f"{found.steps_per_epoch:,} steps an epoch of {1e3 * found.step_seconds:.1f} ms, bound: {', '.join(words)}"


def card_here(name: str) -> Card:
    """The planner's card that CUDA calls `name`; of several sizes of memory the one in the name, else the smallest."""
    letters = name.lower().replace(" ", "").replace("-", "")
    known = [kind for short, kind in cards().items() if _model(short) in letters]
    if not known:
        raise LookupError(f"the planner knows no card {name!r}, so its figures can't be scaled: {', '.join(cards())}")
    of_size = [kind for kind in known if f"{kind.name.partition('-')[2]}gb" in letters]
    return min(of_size or known, key=lambda kind: kind.memory)


def _model(short: str) -> str:
    """`a100-80` is an `a100`; CUDA writes `GeForce RTX 3090`."""
    return short.partition("-")[0]


def _shared(epoch: EpochTarget) -> tuple[str, ...]:
    return (
        f"an epoch: {epoch.words}",
        f"preset {PRESET}, its precision; the published batch size is that of one GPU; {STAGE} on several GPUs",
        "validation, checkpoints, start-up and waiting for data are left out",
    )
