"""Task 1: the evidence lower bound, and the terms that shape the latent space."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from aime_fast.model.outputs import SequenceOutputs
from aime_kernels import gaussian_log_density


@dataclass
class LatentTerms:
    """What the Monte Carlo samples say of posterior and prior."""

    kl_z: Tensor
    """E_q[log q(z) - log p(z)] in nats a frame, 0-d."""
    usage: Tensor
    """Share of each component over this rank's batch, [K]; sums to 1."""
    responsibility_entropy: Tensor
    """Mean entropy of r_k(z) in nats, 0-d."""

    def over_ranks(self, free_nats: float = 0.0) -> "LatentTerms":
        """The terms whose gradient needs the global batch: the usage, and kl_z where it is not penalised below a bound.

        Collective while training.
        """
        kl = global_mean(self.kl_z).clamp_min(free_nats) if free_nats > 0 else self.kl_z
        return replace(self, kl_z=kl, usage=global_mean(self.usage))

    @property
    def usage_entropy(self) -> Tensor:
        """Entropy of `usage` in nats, 0-d."""
        return torch.special.entr(self.usage.clamp_min(1e-12)).sum()

    @property
    def cluster_entropy(self) -> Tensor:
        """Mutual information of component and z, H(usage) - E H(r), in [0, log K]: used components, told apart."""
        return self.usage_entropy - self.responsibility_entropy


def latent_terms(outputs: SequenceOutputs) -> LatentTerms:
    """Monte Carlo KL of posterior and mixture prior with full marginalisation, and the responsibilities' entropies.

    kl_z = E_q[log q(z) - logsumexp_k(log pi_k + log N(z; mu_k, s_k))]; all of this rank's batch.
    """
    mean, log_var = outputs.posterior_mean.float()[:, :, None], outputs.posterior_log_var.float()[:, :, None]
    log_q = gaussian_log_density(outputs.samples, mean, log_var)
    log_p, log_r = outputs.prior.log_prob_and_responsibilities(outputs.samples)
    kl = (log_q - log_p).mean()
    responsibilities = log_r.exp()
    return LatentTerms(
        kl_z=kl,
        usage=responsibilities.mean((0, 1, 2)),
        responsibility_entropy=-(responsibilities * log_r).sum(-1).mean(),
    )


def global_mean(local: Tensor) -> Tensor:
    """Mean over the ranks, with the gradient of the local part.

    Averaging the ranks' gradients then gives the gradient of a function of the global mean: each rank contributes
    f'(global) times its own derivative. Without gradients, in validation, ranks have batches of their own and not
    equally many: the local mean is the answer, and waiting for the others would be for ever.
    """
    if not torch.is_grad_enabled():
        return local
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return local
    total = local.detach().clone()
    distributed.all_reduce(total)
    return local + (total / distributed.get_world_size() - local).detach()


def pixel_terms(outputs: SequenceOutputs, of_nats: Tensor, lambda_mean: float) -> tuple[Tensor, Tensor, Tensor]:
    """The decoder's loss, 0-d; without a gradient -log p(x | z, slots) of each frame [B, T] and the mean's error, 0-d.

    sum_n of_nats_n * nats_n + lambda_mean * error, with nats a data dimension and the error's mean over them. A
    logistic's gradient is bounded, so the few pixels of a moving body hardly pull on the likelihood early on; the
    squared error of the decoder's expectation, frames in [-1, 1], gives them the weight of their error (docs/log.md).
    """
    dimensions = outputs.pixels[0, 0].numel()
    of_error = lambda_mean / outputs.pixels.numel()
    loss, nats, error = outputs.likelihood.loss(outputs.pixels, of_nats / dimensions, of_error)
    return loss, nats / dimensions, error.mean() / dimensions


def frame_weights(outputs: SequenceOutputs, precision_weight: float) -> Tensor:
    """What each frame's nats count, [B, T], of mean 1.

    With `precision_weight` w a frame counts 1 + w * surprise, normalised to mean 1 over all ranks, where surprise in
    [0, 1] is the total variation between the attention that was predicted and the one that came: errors weigh more
    where the schema was wrong.
    """
    if precision_weight <= 0:
        return outputs.pixels.new_ones(outputs.pixels.shape[:2])
    seen, foreseen = outputs.attention.maps[:, 1:].detach(), outputs.prior_log_maps.detach().exp()
    surprise = 0.5 * (seen - foreseen).abs().sum(-1).mean(-1)
    weight = 1 + precision_weight * F.pad(surprise, (1, 0))
    return weight / global_mean(weight.mean())


def gram_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarity matrices of two feature maps [B, T, F, G, G], 0-d."""
    frames = (x.reshape(-1, x.shape[2], x.shape[3] * x.shape[4]) for x in (features, teacher))
    live, target = (F.normalize(x, dim=1) for x in frames)
    return F.mse_loss(live.transpose(1, 2) @ live, target.transpose(1, 2) @ target)
