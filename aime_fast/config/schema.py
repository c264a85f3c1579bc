"""Typed configuration of a run. Each field has its range in its type and its help in the string below it."""

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Interval, MultipleOf
from pydantic import BeforeValidator

PresetName = Literal["debug", "small", "paper"]
PRESETS: tuple[str, ...] = get_args(PresetName)
DEFAULT_IMAGE_SIZE = 64
"""Pixels of a frame in a model that is built without data."""

# The text in each type is the wording of the error message.
Size = Annotated[int, Ge(1), "an integer of at least 1"]
Count = Annotated[int, Ge(0), "an integer of at least 0"]
CountOrUnknown = Annotated[int, Ge(-1), "-1 or an integer of at least 0"]
FrameSize = Annotated[int, Ge(0), MultipleOf(16), "0 or a multiple of 16"]
Weight = Annotated[float, Interval(ge=0, lt=inf), "a number of at least 0"]
Positive = Annotated[float, Interval(gt=0, lt=inf), "a number above 0"]
Fraction = Annotated[float, Interval(ge=0, le=1), "a number between 0 and 1"]
Share = Annotated[float, Interval(ge=0, lt=1), "a number of at least 0 and below 1"]
Decay = Share


def _split(names: Any) -> Any:
    """`a,b` from a flag and `[a, b]` from a file as a tuple."""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    return tuple(names) if isinstance(names, list) else names


def _split_or_none(names: Any) -> Any:
    """The same, but `none` and nothing name nothing."""
    names = _split(names)
    return tuple(name for name in names if name not in ("", "none")) if isinstance(names, tuple) else names


Names = Annotated[tuple[str, ...], BeforeValidator(_split), "names separated by commas"]
NamesOrNone = Annotated[tuple[str, ...], BeforeValidator(_split_or_none), "names separated by commas, or none"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the world model. The defaults are the published ones."""

    image_size: FrameSize = 0
    """Height and width of a frame in pixels; a multiple of 16 and of four times `grid`. 0 takes it from the data."""
    action_dim: CountOrUnknown = -1
    """A, numbers in an action; 0 if there are no actions. -1 takes it from the data."""
    max_components: Size = 15
    """K, mixture components of the prior (truncation of the Dirichlet process)."""
    latent_dim: Size = 36
    """D, size of the latent z_t."""
    hidden_dim: Size = 512
    """H, size of the LSTM state h_t."""
    context_dim: Size = 256
    """C, size of the perceiver's output c_t."""
    num_slots: Size = 5
    """S, slots of the attention schema."""
    slot_dim: Size = 64
    """Size of one slot."""
    slot_iterations: Size = 3
    """Rounds of slot attention per frame."""
    grid: Size = 8
    """G, height and width of the attention grid and the token grid."""
    num_codes: Size = 1024
    """Entries of the tokenizer's codebook."""
    code_dim: Size = 256
    """Size of one code."""
    tokenizer_width: Size = 96
    """Channels of the tokenizer at a quarter of the resolution."""
    perceiver_latents: Size = 4
    """Latent queries of the perceiver per frame."""
    perceiver_dim: Size = 512
    """Width of the perceiver."""
    perceiver_layers: Size = 4
    """Self-attention layers of the perceiver."""
    perceiver_heads: Size = 8
    """Attention heads of the perceiver."""
    encoder_width: Size = 64
    """Channels of the frame encoder at a quarter of the resolution; doubled at each halving."""
    decoder_width: Size = 64
    """Channels of the decoder at a quarter of the resolution; doubled at each halving."""
    mlp_dim: Size = 1024
    """Width of the hidden layers of the heads."""
    prior: str = "dpgmm"
    """Prior of z_t: `dpgmm` (a Dirichlet-process mixture for the data set), `dpgmm-frame` (one for every frame, the
    published form) or `gaussian` (one Gaussian)."""
    likelihood: Literal["logistic_mixture", "gaussian"] = "logistic_mixture"
    """Family of p(x_t | z_t)."""
    num_mixtures: Size = 10
    """Logistic components per pixel."""
    concentration_shape: Positive = 6.0
    """a0 of the prior Gamma(a0, b0) of the concentration alpha."""
    concentration_rate: Positive = 2.0
    """b0 of the prior Gamma(a0, b0) of the concentration alpha."""
    kl_samples: Size = 4
    """Monte Carlo samples of kl_z. The rest of the model uses the first sample."""
    latent_noise: Weight = 0.3
    """Standard deviation of the noise added in training to the z_t that the dynamics and the prior read."""
    regime_rank: Size = 8
    """Directions in which the components of the prior differ from frame to frame."""
    teacher_decay: Fraction = 0.995
    """EMA decay of the Gram loss's teacher."""
    codebook_decay: Fraction = 0.99
    """EMA decay of the codebook."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Windows and batches."""

    batch_size: Size = 8
    """B, windows in one optimiser step, over all processes and accumulation rounds."""
    sequence_length: Size = 16
    """T, frames in a window."""
    window_stride: Count = 0
    """Frames between the starts of two windows, for the length of an epoch. 0 means T."""
    windows_per_epoch: Count = 0
    """Windows in an epoch. 0 derives it from `window_stride`."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms."""

    lambda_recon: Weight = 1.0
    """Weight of the reconstruction term."""
    lambda_mean: Weight = 500.0
    """Weight of the squared error of the decoder's mean, which helps to learn small moving parts early. 0 is the
    pure ELBO."""
    lambda_gram: Weight = 0.05
    """Weight of the Gram loss."""
    lambda_att_dyn: Weight = 0.1
    """Weight of the attention dynamics loss."""
    entropy_weight: Weight = 0.1
    """Weight of the cluster entropy, which is maximised."""
    beta_warmup_steps: Count = 0
    """Steps in which beta, the weight of the KL terms, rises from 0 to 1. 0 means 1 from the first step."""
    precision_weight: Weight = 0.0
    """Weight of the attention-weighted prediction error in the reconstruction term."""
    single_frames: Share = 0.0
    """Share of single frames, of windows of the last 32 steps, in what the decoder draws in training. They take the
    place of as many frames of the batch's windows, which resemble each other. Rounded to whole frames. 0: none."""
    recalled: Count = 0
    """Earlier windows, for each window of a batch, from whose latents dynamics and prior learn again. 0 for none."""
    free_bits: Weight = 0.0
    """Nats of kl_z per frame that are not penalised. The log shows kl_z itself."""


@dataclass(frozen=True, kw_only=True)
class BalancingConfig:
    """Gradient balancing."""

    solver: str = "rotation"
    """How the task gradients become one update: rotation, sum, pcgrad, mgda, upgrad or uncertainty."""
    groups: Literal["all", "shared", "module"] = "shared"
    """Parameters that are balanced together: `all`, modules that at least two tasks reach (`shared`), or each module
    by itself (`module`)."""
    mu: Fraction = 0.9
    """Decay of the consensus direction d (rotation)."""
    lambd: Weight = 1.0
    """Weight of staying near each task's own gradient (rotation)."""
    alpha_steps: Count = 3
    """Gradient-descent steps on the angles (rotation)."""
    lr_inner: Weight = 0.2
    """Step size of the search for the angles (rotation)."""
    update_interval: Size = 1
    """Steps between two rotations. The steps between use the mean of the unit gradients (rotation)."""
    rescale: Literal["none", "mean", "rms"] = "none"
    """Multiply the update by the mean or the root mean square of the task gradients' norms."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser. `sgd` is for tests."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    beta1: Decay = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: Decay = 0.99
    """AdamW's decay of the squared gradient."""
    final_lr_fraction: Fraction = 0.05
    """Learning rate at the end of the cosine schedule, as a fraction of the peak."""
    warmup_steps: Count = 50
    """Steps of linear learning-rate warm-up."""
    weight_decay: Weight = 1e-5
    """Decoupled weight decay of matrices and filters."""
    clip: Positive = 5.0
    """Largest norm of the balanced gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` computes convolutions, attention and linear maps in bfloat16; weights, task gradients, densities and
    losses stay in float32. `auto` follows the DeepSpeed configuration; without one it is fp32."""
    tf32: bool = True
    """On a GPU, float32 products run on tensor cores in TF32: inputs with 10 bits of mantissa, sums in float32."""
    accumulation: Size = 1
    """Micro-batches in one optimiser step."""
    max_skipped_steps: Size = 20
    """Stop after this many steps in a row with a non-finite gradient."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Logs and figures."""

    log_every: Size = 10
    """Steps between two lines of metrics."""
    figures_every: Count = 200
    """Steps between two looks at the first held-out batch: a picture and figures of the parts. 0 leaves it to
    validations, one per epoch."""
    tracker: NamesOrNone = ("tensorboard",)
    """Where values, pictures and findings are shown besides metrics.jsonl, separated by commas: tensorboard, wandb,
    trackio, or none."""
    stop_on: NamesOrNone = ()
    """Findings that end the run, separated by commas, or all: see docs/findings.md."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    preset: PresetName = "paper"
    """Named sizes: `debug` (seconds on a CPU), `small` (minutes on a laptop), `paper` (the published ones). The command
    takes `small` if none is named and there is no GPU."""
    data: str | None = None
    """Folder of shards, a recording, or `pipe:COMMAND {}`. Default: the sample that ships with the project."""
    actions: Literal["led", "follows"] | None = None
    """What an action of a recording did: it `led` to the frame of their row, or `follows` it. Default: by content."""
    backend: Literal["auto", "resident", "memory", "dali", "dali-stream", "webdataset"] = "auto"
    """How data is read. `auto` chooses and reports why."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """What a damaged chunk of data does: `raise` stops the run, `skip` logs it and uses the next windows."""
    ds_config: str | None = None
    """DeepSpeed configuration: a file, or the name of one in ds_configs/. Default: train without DeepSpeed."""
    epochs: Size | None = None
    """Stop after this many epochs."""
    steps: Size | None = None
    """Stop after this many optimiser steps."""
    minutes: Positive | None = None
    """Stop after this many minutes."""
    out: str | None = None
    """Folder of the run. Default: a new one under runs/."""
    checkpoint_every: Size = 200
    """Steps between two checkpoints. One is always written at the end."""
    keep_checkpoints: Size = 2
    """Newest checkpoints to keep. The best one is always kept."""
    refit_steps: Count = 0
    """Most steps, after the last step of the run, in which dynamics, prior and heads learn anew from the finished
    model's latents: predictions gain most by it. Never more than the run had. 0: they stay as they were trained."""
    resume: str | None = None
    """`auto` for the newest checkpoint in `out`, or a run folder or a checkpoint."""
    override: bool = False
    """Let a resumed run change settings such as the learning rate or the stopping time."""
    tasks: Names = ("elbo", "perceiver", "predictive")
    """Training tasks in order, separated by commas: elbo, perceiver, predictive, reward."""
    seed: Count = 0
    """Seed of the weights, the data order and every random draw."""
    threads: Count = 0
    """CPU threads of this process. 0 keeps torch's default."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step with torch.compile. `auto` compiles on a GPU. The first run compiles for minutes."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """Replay the step as a CUDA graph, which removes the host's work. `auto` does so on a GPU where it can, and says
    why where it cannot; `on` stops there."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    balancing: BalancingConfig = field(default_factory=BalancingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested plain values, for JSON and yaml."""
    return asdict(config, dict_factory=lambda items: {k: list(v) if isinstance(v, tuple) else v for k, v in items})
