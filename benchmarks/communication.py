"""What a step sends, before and now: `python benchmarks/communication.py small paper`; nothing is run on several ranks.

Prints the ablation at eight ranks under ZeRO-2 and 0, and bytes by stage and number of ranks. With `--rounding` it says
what sending in bfloat16 does to the balance, and 8 bits to the update: eight ranks of one window each, three steps,
beside float32.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import torch

from aime_fast import RGB, DMCVBDataset
from aime_fast.balancing.layouts import reach as reaches
from aime_fast.balancing.layouts.communication import Traffic, all_reduce_bytes, traffic
from aime_fast.balancing.layouts.partitions import divide
from aime_fast.balancing.layouts.rounded import BLOCK, CODE, packed, unpacked
from aime_fast.config import preset_config
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.training.engines.engine import make_optimizer, trainable
from aime_fast.training.reach import tasks_reaching

ACTIONS, TASKS, FRAMES, RANKS = 6, 3, 8, 8


class Model:
    """A preset's parameters, and which tasks reach them."""

    def __init__(self, preset: str) -> None:
        config = preset_config(preset)
        torch.manual_seed(0)
        self.module = DPGMMVariationalRecurrentAutoencoder.from_config(replace(config.model, action_dim=ACTIONS))
        self.aggregator, self.optim = LossAggregator(config.losses), config.optim
        self.parameters = trainable(self.module)
        self.children = [name.partition(".")[0] for name, p in self.module.named_parameters() if p.requires_grad]
        self.sizes = [p.numel() for p in self.parameters]
        self.total = sum(self.sizes)
        self.reach = tasks_reaching(self.module, self.aggregator)
        self.frozen = sum(p.numel() for p in self.module.parameters() if not p.requires_grad)

    def buffers(self, smallest: int = reaches.SMALLEST) -> tuple[list[int], list[frozenset[int]]]:
        """Entries of each buffer under ZeRO, padding left out, and the tasks that reach it."""
        optimizer = make_optimizer(self.module, self.optim, torch.device("cpu"))
        with mock.patch.object(reaches, "SMALLEST", smallest):
            divide(optimizer, self.parameters, self.reach)
        position = {id(p): index for index, p in enumerate(self.parameters)}
        members = [[position[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        return [sum(self.sizes[i] for i in part) for part in members], [reaches.merged(self.reach, p) for p in members]

    def of_children(self) -> list[frozenset[int]]:
        """The tasks that reach any parameter of the same child."""
        by_child = {
            child: reaches.merged(self.reach, [i for i, other in enumerate(self.children) if other == child])
            for child in set(self.children)
        }
        return [by_child[child] for child in self.children]


def before(model: Model, world_size: int, stage: int) -> float:
    """Bytes when each task was reduced for all parameters, under ZeRO-0 by all-reduces."""
    if stage == 0:
        return TASKS * all_reduce_bytes(model.total, world_size)
    everything = [frozenset(range(TASKS))] * len(model.sizes)
    return traffic(model.sizes, everything, world_size, stage, groups=2, frozen=model.frozen).total


def ablation(model: Model) -> None:
    """Each measure after the other: eight ranks, ZeRO-2, and what ZeRO-0 alone can round."""
    one = all_reduce_bytes(model.total, RANKS)

    def row(
        what: str,
        sizes: Sequence[int],
        reach: reaches.Reach,
        dtype: torch.dtype = torch.float32,
        update: torch.dtype | None = None,
        stage: int = 2,
    ) -> None:
        sent = traffic(sizes, reach, RANKS, stage, dtype, update, groups=2)
        print(f"| {what} | {sent.reduced / 1e6:.1f} | {sent.gathered / 1e6:.1f} | {sent.total / one:.3f} |")

    everything = [frozenset(range(TASKS))] * len(model.sizes)
    print("| measure | MB reduced | MB gathered | of one all-reduce |\n|---|---|---|---|")
    row("every task for all parameters (before)", model.sizes, everything)
    row("each task for the modules that it reaches", model.sizes, model.of_children())
    row("each task for the parameters that it reaches: the least", model.sizes, model.reach)
    row("small parts in one buffer: what is sent now", *model.buffers())
    row("the same in bfloat16", *model.buffers(), dtype=torch.bfloat16)
    row("ZeRO-0, the update too", *model.buffers(), dtype=torch.bfloat16, stage=0)
    row("ZeRO-0, the update in 8 bits", *model.buffers(), dtype=torch.bfloat16, update=CODE, stage=0)


def stages(model: Model) -> None:
    """MB a rank and step, before and now."""
    sizes, reach = model.buffers()
    print("| ZeRO | ranks | MB before | now | in bfloat16 | update in 8 bits | of one all-reduce, in this order |")
    print("|---|---|---|---|---|---|---|")
    for stage in range(4):
        for world_size in (2, 4, 8):
            found: list[float] = [before(model, world_size, stage)]
            for dtype, update in ((torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, CODE)):
                sent: Traffic = traffic(sizes, reach, world_size, stage, dtype, update, groups=2, frozen=model.frozen)
                found.append(sent.total)
            one = all_reduce_bytes(model.total, world_size)
            megabytes = " | ".join(f"{value / 1e6:.1f}" for value in found)
            ratios = ", ".join(f"{value / one:.2f}" for value in found)
            print(f"| {stage} | {world_size} | {megabytes} | {ratios} |")


def rounding(model: Model, steps: int = 3) -> None:
    """Angles, cosines and update with contributions rounded to bfloat16, beside float32; the parameters tasks share.

    And the exact update after it was sent in 8 bits.
    """
    shared = [p for p, tasks in zip(model.parameters, model.reach, strict=True) if len(tasks) > 1]
    data = DMCVBDataset(sequence_length=FRAMES)
    exact, rounded = RGB(), RGB()
    for step in range(steps):
        sums = [[[torch.zeros_like(p) for p in shared] for _ in range(TASKS)] for _ in range(2)]
        for rank in range(RANKS):
            window = data[(step * RANKS + rank) * len(data) // (steps * RANKS)]
            frames, actions = window["observations"][None], window["actions"][None]
            outputs = model.module(frames, actions, model.module.draws(step * RANKS + rank, 1, FRAMES))
            losses = model.aggregator.compute_losses(outputs, beta=1.0)[1]
            for task, loss in enumerate(losses):
                for number, gradient in enumerate(
                    torch.autograd.grad(loss / RANKS, shared, retain_graph=True, allow_unused=True)
                ):
                    if gradient is not None:
                        sums[0][task][number] += gradient
                        sums[1][task][number] += gradient.bfloat16()
        reports = [rgb.balance(vectors) for rgb, vectors in zip((exact, rounded), sums, strict=True)]
        updates = [torch.cat([t.flatten() for t in report.update if t is not None]) for report in reports]
        apart = [(getattr(reports[1], name) - getattr(reports[0], name)).abs().max() for name in ("angles", "cosines")]
        distance = (updates[1] - updates[0]).norm() / updates[0].norm()
        exact_update = updates[0][: len(updates[0]) // BLOCK * BLOCK]
        eight = unpacked(packed(exact_update), 1)
        length, lost = exact_update.norm(), ((eight == 0) & (exact_update != 0)).float().mean()
        turned = torch.cosine_similarity(eight.double(), exact_update.double(), 0)
        print(
            f"step {step}: angles {[round(a, 4) for a in reports[0].angles.tolist()]}, apart by {apart[0]:.1e} rad; "
            f"cosines by {apart[1]:.1e}; update by {distance:.1e} of its length ({len(updates[0])} entries), in 8 bits "
            f"by {(eight - exact_update).norm() / length:.1e}, cosine {turned:.5f}, {lost:.1e} of entries became zero"
        )


if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    for name in names or ["small", "paper"]:
        chosen = Model(name)
        classes = {
            t: sum(s for s, r in zip(chosen.sizes, chosen.reach, strict=True) if r == t) for t in set(chosen.reach)
        }
        print(
            f"\n{name}: {chosen.total} parameters, by tasks { ({tuple(sorted(t)): n for t, n in classes.items()}) }\n"
        )
        if "--rounding" in sys.argv:
            rounding(chosen)
        else:
            ablation(chosen)
            print()
            stages(chosen)
