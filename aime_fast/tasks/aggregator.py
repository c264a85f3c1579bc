"""All loss terms of a forward pass, summed into the tasks that RGB balances."""

import torch
from torch import Tensor

from aime_fast.config import ObjectiveConfig
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.tasks import elbo, predictive
from aime_fast.tasks import perceiver as perceptual

TASKS = ("total_elbo", "perceiver_loss", "total_predictive")
"""The tasks, in the order of `task_losses`."""


class LossAggregator:
    """Loss terms -> three tasks: ELBO, perceiver, predictive. No term is counted twice.

    Args:
        config: default weights; the arguments of `compute_losses` override them.
    """

    def __init__(self, config: ObjectiveConfig | None = None) -> None:
        self.config = config or ObjectiveConfig()

    def compute_losses(
        self,
        outputs: SequenceOutputs,
        beta: float | Tensor = 1.0,
        entropy_weight: float | None = None,
        lambda_recon: float | None = None,
        lambda_att_dyn: float | None = None,
        lambda_gram: float | None = None,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Every term as a 0-d tensor by name, and the tasks `TASKS` in order.

        Units: `recon_loss` is in nats a data dimension (3*H*W a frame); `kl_z`, `hierarchical_kl` and
        `cluster_entropy` are in nats a frame and enter the ELBO divided by the data dimensions, so that at
        beta = lambda_recon = 1 and no other weights `total_elbo` is the negative evidence lower bound in nats a
        dimension. `recon_loss` and `mean_error` are figures without a gradient: `decoder_loss`, their weighted sum, has
        it, because the gradient of both is made with the loss (`aime_kernels.logistic_mixture_loss`).

        Args:
            outputs: of `forward_sequence`.
            beta: weight of the KL terms, in [0, 1].
            entropy_weight: weight of the cluster entropy, which is maximised (default 0.1).
            lambda_recon: weight of the reconstruction (default 1).
            lambda_att_dyn: weight of the attention dynamics loss (default 0.1).
            lambda_gram: weight of the Gram loss (default 0.05).
        """
        config = self.config
        entropy_weight = config.entropy_weight if entropy_weight is None else entropy_weight
        lambda_recon = config.lambda_recon if lambda_recon is None else lambda_recon
        lambda_att_dyn = config.lambda_att_dyn if lambda_att_dyn is None else lambda_att_dyn
        lambda_gram = config.lambda_gram if lambda_gram is None else lambda_gram

        dimensions = outputs.observations[0, 0].numel()
        weights = elbo.frame_weights(outputs, config.precision_weight)
        losses, nats, latent = self.elbo_terms(outputs, lambda_recon / weights.numel() * weights)
        losses = losses | self.perceiver_terms(outputs) | self.predictive_terms(outputs)
        losses["recon_loss"] = (nats * weights).mean()
        latent = latent.over_ranks(config.free_bits)
        losses["kl_z"], losses["cluster_entropy"] = latent.kl_z, latent.cluster_entropy
        divergence = beta * (losses["kl_z"] + losses["hierarchical_kl"]) - entropy_weight * losses["cluster_entropy"]
        losses["total_elbo"] = losses["decoder_loss"] + divergence / dimensions + lambda_gram * losses["gram_enc_loss"]
        losses["perceiver_loss"] = losses["perceiver_recon_loss"] + losses["vq_loss"] + losses["perceiver_ce_loss"]
        losses["total_predictive"] = (
            beta * losses["attention_kl"]
            + lambda_att_dyn * losses["attention_dynamics_loss"]
            + losses["attention_diversity"]
            + losses["self_prediction_loss"]
        )
        tasks = [losses[name] for name in TASKS]
        return losses | self._figures(outputs, latent, losses), tasks

    def elbo_terms(
        self, outputs: SequenceOutputs, of_nats: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, elbo.LatentTerms]:
        """What the first task needs of this rank's batch: terms, nats a frame, latent terms.

        The decoder's loss is weighted, nats by `of_nats` [B, T]; the other terms are not yet.
        """
        decoder_loss, nats, mean_error = elbo.pixel_terms(outputs, of_nats, self.config.lambda_mean)
        divergences = {name: kl.mean() for name, kl in outputs.prior.kl_terms().items()}
        first, *others = divergences.values() or (decoder_loss.new_zeros(()),)
        terms = divergences | {
            "decoder_loss": decoder_loss,
            "mean_error": mean_error,
            "hierarchical_kl": sum(others, first),
            "gram_enc_loss": elbo.gram_loss(outputs.features, outputs.teacher_features),
        }
        return terms, nats, elbo.latent_terms(outputs)

    def perceiver_terms(self, outputs: SequenceOutputs) -> dict[str, Tensor]:
        """The terms of the second task, weighted."""
        return {
            "perceiver_recon_loss": perceptual.pixel_loss(outputs),
            "vq_loss": perceptual.COMMITMENT * outputs.token_info.commitment,
            "perceiver_ce_loss": perceptual.next_token_loss(outputs),
        }

    def predictive_terms(self, outputs: SequenceOutputs) -> dict[str, Tensor]:
        """The terms of the third task, each before its weight."""
        return {
            "attention_kl": predictive.attention_kl(outputs),
            "attention_dynamics_loss": predictive.motion_loss(outputs),
            "attention_diversity": predictive.diversity_loss(outputs),
            "self_prediction_loss": predictive.self_prediction_loss(outputs),
        }

    @torch.no_grad()
    def _figures(
        self, outputs: SequenceOutputs, latent: elbo.LatentTerms, losses: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What is reported and not trained on."""
        usage = latent.usage.detach()
        recon = losses["recon_loss"]
        return {
            "bits_per_dim": recon / torch.log(recon.new_tensor(2.0)),
            "perplexity": perceptual.perplexity(outputs),
            "effective_components": torch.special.entr(usage).sum().exp(),
            "top_component_mass": usage.max(),
            "responsibility_entropy": latent.responsibility_entropy.detach(),
            "usage_entropy": latent.usage_entropy.detach(),
        }
