"""Task 3: foreseeing attention, its motion, and what z alone says of a frame."""

from torch import Tensor
from torch.nn import functional as F

from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.parts.attention_schema import centre_of_mass


def attention_kl(outputs: SequenceOutputs) -> Tensor:
    """KL(posterior map || prior map), nats a slot, mean over slots and frames 1 .. T-1; 0-d.

    The posterior is the fixed target: under gradient balancing a task's pull does not fade with its loss, and pulling
    the posterior towards what is easy to foresee freezes the maps (docs/log.md).
    """
    maps = outputs.attention.maps[:, 1:].detach()
    if maps.shape[1] == 0:
        return outputs.prior_log_maps.sum()
    return (maps * (maps.clamp_min(1e-20).log() - outputs.prior_log_maps)).sum(-1).mean()


def motion_loss(outputs: SequenceOutputs) -> Tensor:
    """Smooth L1 of each slot's shift of centre, the target, and the motion field under it, half grid widths; 0-d."""
    maps = outputs.attention.maps.detach()
    if maps.shape[1] < 2:
        return outputs.motion.sum()
    centres = centre_of_mass(maps)
    expected = maps[:, :-1] @ outputs.motion.transpose(-1, -2)
    return F.smooth_l1_loss(expected, centres[:, 1:] - centres[:, :-1], beta=0.1)


def diversity_loss(outputs: SequenceOutputs) -> Tensor:
    """Mean cosine of the maps of two different slots, in [0, 1]; 0-d."""
    maps = F.normalize(outputs.attention.maps, dim=-1)
    slots = maps.shape[-2]
    overlap = (maps @ maps.transpose(-1, -2)).sum((-1, -2)) - slots
    return overlap.mean() / max(slots * (slots - 1), 1)


def self_prediction_loss(outputs: SequenceOutputs) -> Tensor:
    """Mean squared error of the slots predicted from z alone, targets fixed; 0-d."""
    return F.mse_loss(outputs.predicted, outputs.attention.slots.detach())
