"""The reward task: rewards and the end of the episode, read from the latent state."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import LossConfig, ModelConfig
from aime_fast.data.batch import Batch
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.parts.layers import mlp
from aime_fast.model.state import LatentState
from aime_fast.tasks.task import Task, Values

BINS, LIMIT = 255, 20.0
"""Bins of the reward's distribution, evenly spaced over [-LIMIT, LIMIT] after `symlog` (Hafner et al. 2023)."""


class RewardHead(nn.Module):
    """Reads z_t and h_{t-1} of every frame: logits of the reward's bins, and one of the continuation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = mlp(config.latent_dim + config.hidden_dim, config.mlp_dim, BINS + 1)

    def forward(self, state: LatentState) -> Tensor:
        """Logits [B, T, BINS + 1]."""
        return self.layers(torch.cat([state.latent, state.hidden], dim=-1))


class Reward(Task):
    """Trains reward and continuation heads on the recording's rewards and ends.

    The state of frame t knows a_{t-1} and its result, so it predicts rewards[t-1], which that action earned. The
    first frame of a window has no target. The continuation is 1 unless the task itself ended at frame t: where only the
    recording stopped, by a time limit for example, rewards would follow.
    """

    name, total, needs_rewards = "reward", "total_reward", True

    def head(self, config: ModelConfig) -> nn.Module:
        """See `RewardHead`."""
        return RewardHead(config)

    def targets(self, batch: Batch) -> Values:
        """The reward earned on the way to each frame, and whether the episode goes on after it."""
        earned = F.pad(batch.rewards[:, :-1], (1, 0), value=torch.nan)
        return {"reward": earned, "continuation": (~batch.terminated).float()}

    def predictions(self, read: Tensor) -> Values:
        """Expected reward, and probability in [0, 1] that the episode goes on."""
        expected = read[..., :-1].float().softmax(-1) @ bins(read)
        return {"reward": symexp(expected), "continuation": read[..., -1].float().sigmoid()}

    def terms(self, outputs: SequenceOutputs, weights: LossConfig, targets: Values) -> Values:
        """Cross-entropy of the two-hot rewards, and of the continuation, in nats per frame."""
        read = outputs.heads[self.name].float()
        wanted = two_hot(symlog(targets["reward"][:, 1:]))
        reward = -(wanted * read[:, 1:, :-1].log_softmax(-1)).sum() / max(wanted[..., 0].numel(), 1)
        continuation = F.binary_cross_entropy_with_logits(read[..., -1], targets["continuation"])
        return {"reward_loss": reward, "continuation_loss": continuation}


def bins(like: Tensor) -> Tensor:
    """Centres of the bins, float32 [BINS]."""
    return torch.linspace(-LIMIT, LIMIT, BINS, device=like.device)


def two_hot(x: Tensor) -> Tensor:
    """Weights [..., BINS] on the two nearest bins whose mean is x [...]; x outside of the bins is clipped."""
    distance = x.clamp(-LIMIT, LIMIT)[..., None] - bins(x)
    return (1 - distance.abs() * (BINS - 1) / (2 * LIMIT)).clamp_min(0)


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()
