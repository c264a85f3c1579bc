"""The ELBO task: the evidence lower bound, and terms that shape the latent space."""

import math
from typing import ClassVar

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from aime_fast.config import LossConfig
from aime_fast.data.batch import Batch
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.parts.layers import unit
from aime_fast.tasks.task import Task, Values

FAINT = 1.0
"""Least length of a cell's features in the Gram loss; those of a cell that moves are several times as long."""


class Elbo(Task):
    """The negative evidence lower bound with auxiliary terms.

    `recon_loss` is in nats per data dimension (3*H*W per frame). `kl_z`, `hierarchical_kl` and `cluster_entropy` are in
    nats per frame and enter the total divided by the data dimensions. `total_elbo` is what is minimised: at beta =
    lambda_recon = 1, all other weights 0, no recalled windows and no single frames it is the negative ELBO in nats per
    dimension.
    `bits_per_dim` is the negative ELBO in bits per dimension whatever the weights. `kl_z` is the KL itself; only the
    total has it clamped at `free_bits`. `recon_loss` and `mean_error` are figures without a gradient; `decoder_loss`,
    their weighted sum, has it. `recalled_nats`, of latents of earlier windows, is for dynamics and prior alone.
    """

    name, total = "elbo", "total_elbo"
    # The pixel likelihood: by default Inductor splits its work on a pixel into more loops.
    compile_options: ClassVar[dict[str, int]] = {
        "realize_opcount_threshold": 10**6,
        "realize_reads_threshold": 10**6,
        "max_fusion_size": 10**5,
    }

    def shown(self) -> dict[str, str]:
        """The negative ELBO in bits per dimension, which the weighted `total` is not, and the KL of z."""
        return {"bits/dim": "bits_per_dim", "kl_z": "kl_z"}

    def terms(self, outputs: SequenceOutputs, weights: LossConfig, targets: Values) -> Values:
        """Terms of this rank's batch; `nats` [B, T] and `usage` [K] are vectors.

        `decoder_loss` is weighted, by the frames' weights in `targets` too; the other terms are not.
        """
        of_nats = weights.lambda_recon / targets["frames"].numel() * targets["frames"]
        decoder_loss, nats, mean_error = pixel_terms(outputs, of_nats, weights.lambda_mean)
        divergences = {name: kl.mean() for name, kl in outputs.prior.kl_terms().items()}
        first, *others = divergences.values() or (decoder_loss.new_zeros(()),)
        return {
            "decoder_loss": decoder_loss,
            "mean_error": mean_error,
            **divergences,
            "hierarchical_kl": sum(others, first),
            "gram_enc_loss": gram_loss(outputs.features, outputs.teacher_features),
            "nats": nats,
            **latent_terms(outputs),
        }

    def losses(
        self, outputs: SequenceOutputs, beta: float | Tensor, weights: LossConfig, batch: Batch | None
    ) -> Values:
        """See `Task.losses`. Collective while training: two terms are not linear in means over the ranks' batches."""
        frames = frame_weights(outputs, weights.precision_weight)
        terms = self.terms(outputs, weights, {"frames": frames})
        nats, usage = terms.pop("nats"), global_mean(terms.pop("usage"))
        terms["recon_loss"] = (nats * frames).mean()
        terms["cluster_entropy"] = cluster_entropy(usage, terms["responsibility_entropy"])
        kl_z, share = terms["kl_z"], 0.0
        if outputs.singles is not None and outputs.single_kl is not None:  # each frame that is drawn counts alike
            terms["single_kl"], share = outputs.single_kl.mean(), outputs.singles.share
            kl_z = torch.lerp(kl_z, terms["single_kl"], share)
        kl = above(kl_z, weights.free_bits) + terms["hierarchical_kl"]
        if outputs.recalled_nats is not None and outputs.recalled_weight is not None:
            terms["recalled_nats"] = outputs.recalled_nats.mean()
            kl = kl + (1 - share) * outputs.recalled_weight * terms["recalled_nats"]
        entropy = terms["cluster_entropy"]
        divergence = beta * kl - weights.entropy_weight * entropy
        dimensions = outputs.observations[0, 0].numel()
        total = terms["decoder_loss"] + divergence / dimensions + weights.lambda_gram * terms["gram_enc_loss"]
        usage_entropy = (entropy + terms["responsibility_entropy"]).detach()
        figures = {
            "bits_per_dim": bits_per_dim(nats, kl_z + terms["hierarchical_kl"], dimensions),
            "effective_components": usage_entropy.exp(),
            "top_component_mass": usage.detach().max(),
            "usage_entropy": usage_entropy,
        }
        return terms | {self.total: total} | figures


def latent_terms(outputs: SequenceOutputs) -> Values:
    """Monte Carlo estimates over the posterior's samples of this rank's batch.

    `kl_z`, E_q[log q(z) - log p(z)] in nats per frame, 0-d; `usage`, share of each component, [K], sums to 1;
    `responsibility_entropy`, mean entropy of the responsibilities r_k(z) in nats, 0-d.
    """
    mean, log_var = outputs.posterior_mean.float()[:, :, None], outputs.posterior_log_var.float()[:, :, None]
    # A sample is mean + deviation * noise: its distance in deviations is the noise, which has no gradient.
    distance = ((outputs.samples - mean).square() * torch.exp(-log_var)).detach()
    log_q = -0.5 * ((distance + log_var).sum(-1) + mean.shape[-1] * math.log(2 * math.pi))
    log_p, log_r = outputs.prior.log_prob_and_responsibilities(outputs.samples)
    responsibilities = log_r.exp()
    return {
        "kl_z": (log_q - log_p).mean(),
        "usage": responsibilities.mean((0, 1, 2)),
        "responsibility_entropy": -(responsibilities * log_r).sum(-1).mean(),
    }


def bits_per_dim(nats: Tensor, kl: Tensor, dimensions: int) -> Tensor:
    """The negative ELBO in bits per data dimension, 0-d, without a gradient.

    nats: -log p(x | z) per dimension of each frame, [B, T]. kl: all KL terms in nats per frame, 0-d.
    """
    return (nats.mean() + kl.detach() / dimensions) / math.log(2.0)


def above(kl: Tensor, free_nats: float) -> Tensor:
    """`kl`, 0-d, not penalised while its mean over all ranks is below `free_nats`."""
    return global_mean(kl).clamp_min(free_nats) if free_nats > 0 else kl


def cluster_entropy(usage: Tensor, responsibility_entropy: Tensor) -> Tensor:
    """Mutual information of component and z in nats, in [0, log K]: entropy of `usage` [K] less the conditional one."""
    return torch.special.entr(usage.clamp_min(1e-12)).sum() - responsibility_entropy


def global_mean(local: Tensor) -> Tensor:
    """Mean over the ranks, with the gradient of the local part.

    The mean of the ranks' gradients is then the gradient of a function of the global mean: each rank contributes
    f'(global) times its own derivative. Without gradients it returns the local mean: in validation the ranks have
    different numbers of batches, so a collective would hang.
    """
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if not (several and torch.is_grad_enabled()):
        return local
    total = local.detach().clone()
    distributed.all_reduce(total)
    return local + (total / distributed.get_world_size() - local).detach()


def pixel_terms(outputs: SequenceOutputs, of_nats: Tensor, lambda_mean: float) -> tuple[Tensor, Tensor, Tensor]:
    """The decoder's loss, 0-d; and without a gradient the nats of each frame [B, T] and the mean's error, 0-d.

    The loss is sum_n of_nats_n * nats_n + lambda_mean * error. Nats are -log p(x | z) per data dimension. The
    error is the mean squared error of the decoder's expectation, frames in [-1, 1]. The gradient of a logistic is
    bounded, so the few pixels of a moving body have little effect on the likelihood early in training; the squared
    error weights them by their error (docs/log.md).
    """
    dimensions = outputs.pixels[0, 0].numel()
    of_error = lambda_mean / outputs.pixels.numel()
    loss, nats, error = outputs.likelihood.loss(outputs.pixels, of_nats / dimensions, of_error)
    return loss, nats / dimensions, error.mean() / dimensions


def frame_weights(outputs: SequenceOutputs, precision_weight: float) -> Tensor:
    """Weight of each frame's nats, [B, T], with mean 1 over all ranks.

    With `precision_weight` w the weight is proportional to 1 + w * surprise. Surprise, in [0, 1], is the total
    variation distance between predicted and observed attention, so errors count more where the schema was wrong.
    """
    if precision_weight <= 0:
        return outputs.pixels.new_ones(outputs.pixels.shape[:2])
    observed, predicted = outputs.attention.maps[:, 1:].detach(), outputs.prior_log_maps.detach().exp()
    surprise = 0.5 * (observed - predicted).abs().sum(-1).mean(-1)
    weight = 1 + precision_weight * F.pad(surprise, (1, 0))
    if outputs.singles is not None:
        weight = outputs.singles.with_own(weight, weight.new_ones(outputs.singles.frames.shape[:2]))
    return weight / global_mean(weight.mean())


def gram_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference between the cosine similarity matrices of two feature maps [B, T, F, G, G], 0-d.

    Features shorter than `FAINT` count as that long: cells that look as in the mean frame have almost none, and their
    direction would be rounding.
    """
    live, target = (unit(x.flatten(3).flatten(0, 1), 1, FAINT) for x in (features, teacher))
    return F.mse_loss(live.transpose(1, 2) @ live, target.transpose(1, 2) @ target)
