"""The model's small predictors of the next frame next to copying: tokens, attention maps and their motion."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from aime_fast.evaluation.metrics import evaluating
from aime_fast.evaluation.windows import Windows
from aime_fast.evaluation.worth.counterparts import filtering_draws
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.elbo import latent_terms
from aime_fast.tasks.perceiver import next_token_loss
from aime_fast.tasks.predictive import attention_kl, motion_loss

SHARES = torch.linspace(0.01, 0.99, 99)
"""Tried shares of the copy in a mixture of copying and the mean."""
USED = 0.02
"""A component is used if its share of the responsibilities is above this."""


@dataclass(frozen=True)
class Predictors:
    """Errors of the model's predictors and of copying, by name; means over held-out windows."""

    against_copying: dict[str, tuple[float, float]]
    """(the model's, copying's)."""
    figures: dict[str, float]
    """Divergences of the prior's own in nats a frame, and the number of components in use."""

    def __str__(self) -> str:
        lines = [f"{'predictor of the next frame':46}{'model':>10}{'copying':>10}"]
        lines += [f"{name:46}{model:10.4f}{copy:10.4f}" for name, (model, copy) in self.against_copying.items()]
        figures = {name: round(value, 4) + 0.0 for name, value in self.figures.items()}  # never -0.0000
        return "\n".join([*lines, *(f"{name:46}{value:10.4f}" for name, value in figures.items())])


@torch.no_grad()
def compare_predictors(model: WorldModel, train: Windows, held_out: Windows) -> Predictors:
    """Next tokens, maps and motion against copying the frame before.

    A copy is never certain: for tokens it is mixed with the frequencies of tokens, for maps with the mean map, both of
    `train`, in the share that is best there. Zero motion is the copy of motion. The model keeps its mode.
    """
    tokens, maps = _Tokens(), _Maps()
    for outputs in _passes(model, train):
        tokens.count(outputs)
        maps.count(outputs)
    tokens.choose()
    maps.choose(_passes(model, train))
    totals: dict[str, list[Tensor]] = {}
    usage = list[Tensor]()
    for outputs in _passes(model, held_out):
        cost, hit = tokens.copying(outputs)
        guess = outputs.next_token_logits.argmax(-1) == outputs.token_info.ids[:, 1:]
        still = replace(outputs, motion=torch.zeros_like(outputs.motion))
        copied = replace(outputs, prior_log_maps=maps.copying(outputs, maps.share))
        values = {
            "next token, cross-entropy in nats": (next_token_loss(outputs), cost),
            "next token, accuracy": (guess.float().mean(), hit),
            "attention map, KL in nats a slot": (attention_kl(outputs), attention_kl(copied)),
            "attention motion, smooth L1, grid from -1 to 1": (motion_loss(outputs), motion_loss(still)),
        }
        for name, pair in values.items():
            totals.setdefault(name, []).append(len(outputs.observations) * torch.stack(pair))
        for name, kl in outputs.prior.kl_terms().items():
            totals.setdefault(name, []).append(kl.mean(1).sum()[None])
        usage.append(latent_terms(outputs)["usage"] * len(outputs.observations))
    means = {name: (torch.stack(parts).sum(0) / len(held_out)).tolist() for name, parts in totals.items()}
    figures = {f"{name} in nats a frame": value[0] for name, value in means.items() if len(value) == 1}
    used = torch.stack(usage).sum(0) / len(held_out) > USED
    figures[f"components with a share above {USED:.0%}"] = float(used.sum())
    return Predictors({name: (value[0], value[1]) for name, value in means.items() if len(value) == 2}, figures)


def _passes(model: WorldModel, windows: Windows) -> Iterable[SequenceOutputs]:
    with evaluating(model) as device:
        for rows, batch in windows.parts():
            on_device = batch.to(device)
            draws = filtering_draws(model, int(rows[0]), *on_device.actions.shape[:2])
            yield model(on_device.frames(), on_device.actions, draws)


class _Tokens:
    """Copying a token, or drawing one by its frequency."""

    def __init__(self) -> None:
        self.frequency, self.share = torch.ones(1), 0.5
        self._pairs: list[Tensor] = []
        self._codes = 1

    def count(self, outputs: SequenceOutputs) -> None:
        ids = outputs.token_info.ids
        self._codes = outputs.next_token_logits.shape[-1]
        self._pairs.append(torch.stack([ids[:, :-1].flatten(), ids[:, 1:].flatten()]))

    def choose(self) -> None:
        before, after = torch.cat(self._pairs, 1)
        self.frequency = F.normalize(torch.bincount(after, minlength=self._codes).double() + 1, p=1, dim=0)
        same, chance = before == after, self.frequency[after]
        costs = [-(share * same + (1 - share) * chance).log().mean() for share in SHARES.tolist()]
        self.share = float(SHARES[int(torch.stack(costs).argmin())])

    def copying(self, outputs: SequenceOutputs) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats a token, and accuracy."""
        before, after = outputs.token_info.ids[:, :-1], outputs.token_info.ids[:, 1:]
        same = before == after
        chance = self.share * same + (1 - self.share) * self.frequency[after]
        return -chance.log().mean().float(), same.float().mean()


class _Maps:
    """Copying a map, mixed with the mean map of its slot."""

    def __init__(self) -> None:
        self.mean, self.share = torch.zeros(()), 0.9
        self._count = 0

    def count(self, outputs: SequenceOutputs) -> None:
        maps = outputs.attention.maps
        self.mean, self._count = self.mean + maps.double().mean(1).sum(0), self._count + len(maps)

    def choose(self, passes: Iterable[SequenceOutputs]) -> None:
        self.mean = self.mean / self._count
        tried = SHARES[::10].tolist()
        costs = torch.zeros(len(tried))
        for outputs in passes:
            costs += torch.stack(
                [attention_kl(replace(outputs, prior_log_maps=self.copying(outputs, share))) for share in tried]
            ).cpu() * len(outputs.observations)
        self.share = tried[int(costs.argmin())]

    def copying(self, outputs: SequenceOutputs, share: float) -> Tensor:
        """Log of the copied maps [B, T-1, S, P]."""
        mixed = share * outputs.attention.maps[:, :-1].double() + (1 - share) * self.mean
        return mixed.clamp_min(1e-20).log().float()
