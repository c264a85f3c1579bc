"""The predictive task: attention maps and their motion one frame ahead, and maps that differ."""

from torch import Tensor
from torch.nn import functional as F

from aime_fast.config import LossConfig
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.parts.layers import unit
from aime_fast.tasks.task import Task, Values


class Predictive(Task):
    """Trains the top-down prior, and the diversity of the slots' maps."""

    name, total = "predictive", "total_predictive"
    # Maps are seeded by the context. What it holds is for the next frame to decide, not for the maps' diversity; and a
    # gradient here would cost a backward pass through the perceiver, and a reduction of it on several ranks.
    spares = frozenset({"perceiver"})

    def terms(self, outputs: SequenceOutputs, weights: LossConfig, targets: Values) -> Values:
        """The terms before their weights. Maps and their shifts are fixed targets; the diversity trains the maps."""
        return {
            "attention_kl": attention_kl(outputs),
            "attention_dynamics_loss": motion_loss(outputs),
            "attention_diversity": diversity_loss(outputs),
        }

    def weighted(self, terms: Values, beta: float | Tensor, weights: LossConfig) -> Tensor:
        """The sum of the weighted terms, 0-d."""
        kl, motion, diversity = terms.values()
        return beta * kl + weights.lambda_att_dyn * motion + diversity


def attention_kl(outputs: SequenceOutputs) -> Tensor:
    """KL(posterior map || prior map) in nats per slot, mean over slots and frames 1 .. T-1; 0-d.

    The posterior is a fixed target. With gradient balancing the task's gradient does not shrink with its loss, so
    pulling the posterior towards maps that are easy to predict would freeze the maps (docs/log.md).
    """
    maps = outputs.attention.maps[:, 1:].detach()
    if maps.shape[1] == 0:
        return outputs.prior_log_maps.sum()
    return (maps * (maps.clamp_min(1e-20).log() - outputs.prior_log_maps)).sum(-1).mean()


def motion_loss(outputs: SequenceOutputs) -> Tensor:
    """Smooth L1 between the shift of each slot's centre and the motion field under the slot, 0-d.

    Positions (x, y) are -1 at the centre of the grid's first cell and 1 at that of its last one, so a shift of one cell
    is 2 / (G - 1). The shift is a fixed target.
    """
    maps = outputs.attention.maps.detach()
    if maps.shape[1] < 2:
        return outputs.motion.sum()
    centres = outputs.attention.centres.detach()
    expected = maps[:, :-1] @ outputs.motion.transpose(-1, -2)
    return F.smooth_l1_loss(expected, centres[:, 1:] - centres[:, :-1], beta=0.1)


def diversity_loss(outputs: SequenceOutputs) -> Tensor:
    """Mean cosine similarity of the maps of two different slots, in [0, 1]; 0-d."""
    maps = unit(outputs.attention.maps, -1)
    slots = maps.shape[-2]
    overlap = (maps @ maps.transpose(-1, -2)).sum((-1, -2)) - slots
    return overlap.mean() / max(slots * (slots - 1), 1)
