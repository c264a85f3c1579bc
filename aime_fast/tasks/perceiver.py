"""The perceiver task: the tokenizer's reconstruction and the tokens of the next frame."""

import torch
from torch import Tensor
from torch.nn import functional as F

from aime_fast.config import LossConfig
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.tasks.task import Task, Values

PIXEL = 100.0
"""Weight of the mean squared error of frames in [-1, 1]: that of a Gaussian with standard deviation 0.07."""
COMMITMENT = 0.25
"""Weight of the commitment loss (van den Oord et al. 2017, eq. 3)."""


class Perceiver(Task):
    """Trains the tokenizer and the causal perceiver."""

    name, total = "perceiver", "perceiver_loss"

    def terms(self, outputs: SequenceOutputs, weights: LossConfig, targets: Values) -> Values:
        """The terms, weighted."""
        tokens = outputs.token_info
        return {
            "perceiver_recon_loss": PIXEL * F.mse_loss(tokens.reconstruction, outputs.observations),
            "vq_loss": COMMITMENT * tokens.commitment,
            "perceiver_ce_loss": next_token_loss(outputs),
        }

    def figures(self, outputs: SequenceOutputs) -> Values:
        """Use of the codebook."""
        return {"perplexity": perplexity(outputs)}


def next_token_loss(outputs: SequenceOutputs) -> Tensor:
    """Cross-entropy of the tokens of frame t+1 given c_t, in nats per token, 0-d; zero for a single frame."""
    logits = outputs.next_token_logits
    if logits.shape[1] == 0:
        return logits.sum()
    return F.cross_entropy(logits.float().flatten(0, 2), outputs.token_info.ids[:, 1:].flatten())


@torch.no_grad()
def perplexity(outputs: SequenceOutputs) -> Tensor:
    """exp of the entropy of code usage in this batch, in [1, num_codes], 0-d."""
    ids = outputs.token_info.ids.flatten()
    # Not bincount: on a GPU it reads the largest id on the host.
    counts = torch.zeros(outputs.next_token_logits.shape[-1], device=ids.device)
    usage = counts.index_add_(0, ids, counts.new_ones(len(ids))) / len(ids)
    return torch.special.entr(usage).sum().exp()
