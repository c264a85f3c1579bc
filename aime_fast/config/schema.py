"""Typed configuration of a run: defaults < preset < yaml file < flags."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the world model; the defaults are the published ones."""

    image_size: int = 64
    """Height and width of a frame in pixels; a multiple of 16."""
    action_dim: int = 0
    """Numbers in an action; 0 takes it from the data."""
    max_components: int = 15
    """K, the truncation of the Dirichlet process: mixture components of the prior."""
    latent_dim: int = 36
    """D, the size of z_t."""
    hidden_dim: int = 512
    """H, the size of the LSTM state h_t."""
    context_dim: int = 256
    """C, the size of the perceiver's read-out c_t."""
    num_slots: int = 5
    """S, the slots of the attention schema."""
    slot_dim: int = 64
    """Numbers in one slot."""
    slot_iterations: int = 3
    """Rounds of slot attention a frame."""
    attention_state_dim: int = 256
    """Size of the attention state that the LSTM reads."""
    grid: int = 8
    """G, side of the attention and token grids."""
    num_codes: int = 1024
    """Entries of the tokenizer's codebook."""
    code_dim: int = 256
    """Numbers in one code."""
    tokenizer_width: int = 96
    """Channels of the tokenizer at a quarter of the resolution."""
    perceiver_latents: int = 4
    """Latent queries of the perceiver a frame."""
    perceiver_dim: int = 512
    """Width of the perceiver."""
    perceiver_layers: int = 4
    """Self-attention layers of the perceiver."""
    perceiver_heads: int = 8
    """Attention heads of the perceiver."""
    encoder_width: int = 64
    """Channels of the frame encoder at a quarter of the resolution; doubled at each halving."""
    decoder_width: int = 64
    """Channels of the decoder at a quarter of the resolution; doubled at each halving."""
    mlp_dim: int = 1024
    """Width of the hidden layers of the heads."""
    likelihood: Literal["logistic_mixture", "gaussian"] = "logistic_mixture"
    """Family of p(x_t | z_t, slots_t)."""
    num_mixtures: int = 10
    """Logistics in the mixture of one pixel."""
    concentration_shape: float = 6.0
    """a0 of the prior Gamma(a0, b0) of the concentration alpha."""
    concentration_rate: float = 2.0
    """b0 of that prior."""
    kl_samples: int = 4
    """Monte Carlo samples of kl_z; the first is the one used downstream."""
    prior: str = "dpgmm"
    """Prior of the latent z, by name: dpgmm is the Dirichlet-process Gaussian mixture."""
    imagination_dropout: float = 0.5
    """Probability that a frame is treated as imagined in training: its slots are predicted from z_t alone, and its
    context and attention state are zero."""
    latent_noise: float = 0.3
    """Standard deviation of the noise added in training to the z that dynamics and prior read for the next frame."""
    teacher_decay: float = 0.995
    """EMA decay of the Gram loss's teacher."""
    codebook_decay: float = 0.99
    """EMA decay of the codebook."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How windows are drawn and batched."""

    batch_size: int = 8
    """B, windows in one optimiser step over all processes and accumulation rounds."""
    sequence_length: int = 16
    """T, frames in a window."""
    window_stride: int = 0
    """An epoch has as many windows as valid starts at this stride; 0 means T."""
    windows_per_epoch: int = 0
    """Windows in an epoch; 0 derives it from `window_stride`."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the loss terms."""

    lambda_recon: float = 1.0
    """Weight of the reconstruction term."""
    lambda_mean: float = 500.0
    """Weight of the squared error of the decoder's mean, so that moving parts are learned early; 0: pure ELBO."""
    lambda_gram: float = 0.05
    """Weight of the Gram loss."""
    lambda_att_dyn: float = 0.1
    """Weight of the attention dynamics loss."""
    entropy_weight: float = 0.1
    """Weight of the cluster entropy, which is maximised."""
    beta_warmup_epochs: int = 10
    """Epochs over which beta goes from 0 to 1."""
    precision_weight: float = 0.0
    """Weight of the attention-weighted prediction error in the reconstruction term."""
    free_bits: float = 0.0
    """Nats of kl_z a frame that are not penalised."""


@dataclass(frozen=True, kw_only=True)
class BalancingConfig:
    """Rotation-based gradient balancing."""

    mu: float = 0.9
    """Decay of the consensus direction d."""
    lambd: float = 1.0
    """Weight of staying near the task's own gradient."""
    alpha_steps: int = 3
    """Gradient-descent steps on the angles."""
    lr_inner: float = 0.2
    """Step size of the angle search."""
    update_interval: int = 1
    """Rotate every so many steps; on the others average the unit gradients."""
    solver: str = "rotation"
    """How task gradients become one update: rotation, sum, mgda, upgrad, uncertainty or pcgrad."""
    groups: Literal["all", "shared", "module"] = "all"
    """What is balanced as one: all parameters, those that several tasks reach, or each module by itself."""
    rescale: Literal["none", "mean", "rms"] = "none"
    """Multiply the update by the mean or root mean square of the task gradients' norms."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser; `sgd` is for equality tests."""
    lr: float = 2e-4
    """Peak learning rate."""
    beta1: float = 0.0
    """AdamW's decay of the mean gradient. None by default: the direction that balancing keeps is a momentum already."""
    beta2: float = 0.99
    """AdamW's decay of the squared gradient."""
    final_lr_fraction: float = 0.05
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    warmup_steps: int = 50
    """Steps of linear learning-rate warm-up."""
    weight_decay: float = 1e-5
    """Decoupled weight decay of matrices and filters."""
    clip: float = 5.0
    """Largest norm of the balanced gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` computes convolutions, attention and linear maps in bfloat16; weights, task gradients, densities and
    losses stay in float32. `auto` is what the DeepSpeed configuration says, else fp32."""
    accumulation: int = 1
    """Micro-batches in one optimiser step."""
    max_skipped_steps: int = 20
    """Stop when so many steps in a row were skipped for a non-finite gradient."""


@dataclass(frozen=True, kw_only=True)
class WatchingConfig:
    """What is written while training."""

    log_every: int = 10
    """Steps between two rows of metrics."""
    figures_every: int = 0
    """Steps between two pictures; 0 means once an epoch."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    preset: Literal["debug", "small", "paper"] = "paper"
    """Named sizes: `debug` (seconds on a CPU), `small` (minutes on a laptop), `paper` (the published ones)."""
    data: str | None = None
    """Folder of shards, recording, or `pipe:COMMAND {}`; none means the recorded sample that ships with the project."""
    backend: Literal["auto", "resident", "memory", "dali", "dali-stream", "webdataset"] = "auto"
    """How data is read; `auto` picks and says why."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """What a damaged strip does: stop the run, or be logged and its windows replaced by the next ones."""
    ds_config: str | None = None
    """DeepSpeed configuration: a file, or the name of one in ds_configs/; none trains without DeepSpeed."""
    epochs: int | None = None
    """Stop after so many epochs."""
    steps: int | None = None
    """Stop after so many optimiser steps."""
    minutes: float | None = None
    """Stop after so many minutes."""
    out: str | None = None
    """The run's folder; none makes a new one under runs/."""
    checkpoint_every: int = 200
    """Steps between two checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay; the best stays too."""
    resume: str | None = None
    """`auto` for the newest checkpoint in `out`, or a run folder or checkpoint."""
    override: bool = False
    """Let a resumed run change settings such as the learning rate or when to stop."""
    tasks: list[str] = field(default_factory=lambda: ["elbo", "perceiver", "predictive"])
    """Training tasks, in order."""
    seed: int = 0
    """Decides the weights, the order of the data and every draw."""
    threads: int = 0
    """CPU threads of this process; 0 leaves torch's choice."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step with torch.compile; `auto` does so on a GPU. The first run takes minutes for it."""
    cuda_graph: bool = False
    """Replay the step as one CUDA graph; for one GPU without DeepSpeed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes of the model."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Windows and batches."""
    objectives: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Weights of the losses."""
    balancing: BalancingConfig = field(default_factory=BalancingConfig)
    """Gradient balancing."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    watching: WatchingConfig = field(default_factory=WatchingConfig)
    """Logs and pictures."""


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "debug": {
        "model": dict(
            max_components=5,
            latent_dim=16,
            hidden_dim=64,
            context_dim=32,
            num_slots=3,
            slot_dim=16,
            attention_state_dim=32,
            num_codes=64,
            code_dim=16,
            tokenizer_width=16,
            perceiver_latents=4,
            perceiver_dim=32,
            perceiver_layers=1,
            perceiver_heads=4,
            encoder_width=16,
            decoder_width=16,
            mlp_dim=64,
            num_mixtures=2,
            kl_samples=2,
        ),
        "loader": dict(batch_size=4, sequence_length=8, windows_per_epoch=100),
        "optim": dict(lr=1e-3, warmup_steps=10),
    },
    "small": {
        "model": dict(
            hidden_dim=256,
            context_dim=128,
            slot_dim=32,
            attention_state_dim=128,
            num_codes=256,
            code_dim=64,
            tokenizer_width=32,
            perceiver_latents=4,
            perceiver_dim=192,
            perceiver_layers=2,
            perceiver_heads=4,
            encoder_width=32,
            decoder_width=32,
            mlp_dim=768,
            num_mixtures=5,
            codebook_decay=0.95,
        ),
        "loader": dict(window_stride=1),
        "objectives": dict(beta_warmup_epochs=4),
        "optim": dict(lr=4e-4),
    },
    "paper": {},
}


def preset_config(name: str) -> TrainConfig:
    """The configuration of a preset, one of `debug`, `small`, `paper`; `KeyError` for another name."""
    config = TrainConfig(preset=name)  # type: ignore[arg-type]
    groups = {group: replace(getattr(config, group), **values) for group, values in PRESETS[name].items()}
    return replace(config, **groups)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested plain values, for JSON and yaml."""
    return asdict(config)
