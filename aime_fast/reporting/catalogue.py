"""Every metric that a run logs: its group, its unit, what healthy runs show, and what it means."""

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Metric:
    """One metric, or all those whose name fits a pattern."""

    name: str
    """Name in `metrics.jsonl`; TASK, ONE and OTHER stand for tasks, N for a number."""
    group: str
    unit: str
    healthy: str
    meaning: str


def _read(table: str) -> tuple[Metric, ...]:
    """Lines of `name | unit | healthy | meaning` below lines `[group]`."""
    metrics, group = [], ""
    for line in table.strip().splitlines():
        if line.startswith("["):
            group = line.strip("[]")
        else:
            name, unit, healthy, meaning = (part.strip() for part in line.split(" | "))
            metrics.append(Metric(name, group, unit, healthy, meaning))
    return tuple(metrics)


METRICS = _read("""
[loss]
total_elbo | nats per dimension | falls | loss of the task elbo, with all its weights
decoder_loss | weighted | falls | its reconstruction part: likelihood and squared error by their weights
recon_loss | nats per dimension | falls | -log p(x given z) per number of a frame
mean_error | squared, frames in [-1, 1] | falls | squared error of the decoder's mean
bits_per_dim | bits per dimension | falls, on held-out frames too | the negative ELBO, whatever the weights
gram_enc_loss | squared cosine | falls slowly | distance to the teacher's feature similarities
perceiver_loss | weighted | falls | loss of the task perceiver
perceiver_recon_loss | weighted | falls | the tokenizer's squared error, times 100
vq_loss | weighted | small | commitment of the encodings to their codes
perceiver_ce_loss | nats a token | falls | cross-entropy of the next frame's tokens
total_predictive | weighted | falls | loss of the task predictive
attention_dynamics_loss | smooth L1, grid from -1 to 1 | falls | predicted against true motion of the slots
total_reward | weighted | falls | loss of the task reward
reward_loss | nats | falls | of the reward head
continuation_loss | nats | falls | of the continuation head
[kl]
kl_z | nats a frame | 5 to 150; not far higher on held-out frames | KL of the posterior of z from its prior
stick_kl | nats a frame | small | KL of the sticks, shared out over the data set's frames
alpha_kl | nats a frame | small | KL of the concentration, shared out likewise
hierarchical_kl | nats a frame | small | stick_kl and alpha_kl together
single_kl | nats a frame | falls | KL of z of single frames, from the prior of a window's first frame
recalled_nats | nats a frame | falls; may be negative | -log p(z) of latents of earlier windows, a density
attention_kl | nats a slot | falls | KL of the slots' maps from the top-down prior
beta | 0 to 1 | 1 after the warm-up | weight of the KL terms
[latent]
latent_mean | of z | below 10 | mean absolute value of the posterior means, averaged over frames first
latent_std | of z | above 0.1 | standard deviation of the posterior means over frames
posterior_std | of z | 0.02 to 0.8 | standard deviation of q(z)
active_dims | coordinates | above half of D | coordinates of z whose variance over frames is above 0.01
action_nats | nats a frame | above 0.1, rises | what the true actions tell the prior, against those of another window
[mixture]
effective_components | 1 to K | 3 to K | exp of the entropy of usage
active_components | 0 to K | 4 to K | components with more than 2 % of the frames
top_component_mass | 0 to 1 | below 0.9 | usage of the most used component
usage_entropy | nats | above 1 | entropy of usage
responsibility_entropy | nats | below usage_entropy | how unsure the component of a frame is
cluster_entropy | nats | above 0.3 | mutual information of component and z
alpha | above 0 | near its prior or away from it | E[alpha], the concentration
[attention]
attention_diversity | 0 to 1 | below 0.5 | mean cosine between the maps of two slots
attention_entropy | 0 to 1 | 0.2 to 0.9 | entropy of a slot's map, 1 if it looks everywhere
mask_overlap | 0 to 1 | below 0.5 | how much the decoder's masks cover the same cells
[codebook]
perplexity | codes | above 2 % of the codes | exp of the entropy of a batch's codes
[prediction]
psnr | dB | rises | reconstruction from the posterior's mean
psnr_perceiver | dB | rises | the tokenizer's reconstruction
psnr_mean_frame | dB | psnr is well above | the mean training frame, for comparison
ssim | 0 to 1 | rises | structural similarity of the reconstruction
psnr_ahead_N | dB | above _copy and _other_actions | frames predicted N ahead from the recorded actions
psnr_ahead_N_copy | dB | psnr_ahead_N is above | the last frame seen, N frames later
psnr_ahead_N_other_actions | dB | psnr_ahead_N is above | predicted with another window's actions
[gradients]
grad_norm | norm | below 10 times optim.clip | of the update, before it is clipped
grad_norm_TASK | norm | similar sizes | of one task's gradient
grad_norm_shared_TASK | norm | similar sizes | of its part for modules that several tasks reach
successive_cosine_TASK | -1 to 1 | above -0.3 | cosine with the step before; -1 is a swing
rgb_angle_TASK | radians | below 1.2 | by how much rotation turned it
rgb_projection_TASK | -1 to 1 | above 0 | cosine with the consensus direction
rgb_cosine_ONE_OTHER | -1 to 1 | above -0.5 | cosine between two tasks' gradients
rgb_cancelled | share of steps | 0 | whether the unit gradients summed to zero
skipped_steps | steps | 0 | steps skipped so far, because a gradient was not finite
[speed]
lr | per step | as scheduled | learning rate
epoch | epochs | - | epochs so far
frames_per_second | frames/s | steady | over all processes
step_seconds | s | steady | time of a step, mean since the row before
data_wait | 0 to 1 | below 0.05 | share of the time spent waiting for data
memory_gb | GB | steady | reserved on the GPU, or resident in the process
""")

_PARTS = {"TASK": r"[a-z]\w*", "ONE": r"[a-z]\w*", "OTHER": r"[a-z]\w*", "N": r"\d+"}


@lru_cache(maxsize=512)
def metric(name: str) -> Metric | None:
    """The entry of a logged name, or None for a metric that a user's own task logs."""
    exact = next((entry for entry in METRICS if entry.name == name), None)
    fitting = (entry for entry in METRICS if re.fullmatch(_pattern(entry.name), name))
    return exact or max(fitting, key=lambda entry: len(entry.name), default=None)


def tag(name: str, split: str) -> str:
    """The name in TensorBoard and trackers: `kl/kl_z/train`; a user's own metrics are in the group `task`."""
    entry = metric(name)
    return f"{entry.group if entry else 'task'}/{name}/{split}"


def _pattern(name: str) -> str:
    return "_".join(_PARTS.get(part, re.escape(part)) for part in name.split("_"))
