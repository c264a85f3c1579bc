"""DeepSpeed configurations: found by path or name, checked against what this trainer does, completed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from aime_fast.config import TrainConfig
from aime_fast.errors import UserError

_PACKAGE = Path(__file__).parents[2]
SHIPPED = next((path for path in (_PACKAGE / "ds_configs", _PACKAGE.parent / "ds_configs") if path.is_dir()), _PACKAGE)
"""Folder of the configurations that come with the project: inside an installed wheel, or beside the sources."""

_ZERO_KEYS = {
    *("stage", "overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "allgather_partitions"),
    *("allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save"),
}
_PASSED = {"steps_per_print", "zero_allow_untested_optimizer"}
_UNKNOWN = "not an option of this trainer; remove it (ds_configs/README.md lists what is used)"
_ON_DEVICE = "task gradients are balanced on the device; remove it and use a higher stage or more processes"
_BF16 = 'one switch chooses the precision: write "bf16": {"enabled": true} instead'
_REFUSED = {
    "optimizer": "the optimiser belongs to the trainer; remove it and use --optim.name and --optim.lr",
    "scheduler": "the schedule belongs to the trainer; remove it and use --optim.warmup_steps",
    "fp16": 'loss scaling does not suit gradients balanced between tasks; write "bf16": {"enabled": true} instead',
    "bfloat16": _BF16,
    "amp": _BF16,
    "torch_autocast": _BF16,
    "data_types": "task gradients are always kept and accumulated in float32, at every stage; remove it",
    "wall_clock_breakdown": "DeepSpeed's timers wait for the device each step; remove it",
    "flops_profiler": "it measures passes that this trainer does not make; remove it",
    "zero_optimization.offload_optimizer": _ON_DEVICE,
    "zero_optimization.offload_param": _ON_DEVICE,
    "zero_optimization.cpu_offload": _ON_DEVICE,
    "zero_optimization.zenflow": _ON_DEVICE,
    "zero_optimization.round_robin_gradients": "a task's gradient is one piece, there is no order to choose; remove it",
    "zero_optimization.compute_grad_norm": "the trainer clips the balanced gradient; remove it and set --optim.clip",
    "zero_optimization.elastic_checkpoint": "checkpoints are the trainer's; remove it",
}


@dataclass(frozen=True)
class EngineSettings:
    """What the engine needs to know, and what `deepspeed.initialize` gets."""

    stage: int
    """ZeRO stage: 0, 1, 2 or 3."""
    bf16: bool
    """Compute in bfloat16 as `--optim.precision` describes; DeepSpeed sees float32 parameters either way."""
    bf16_reductions: bool
    """Send task gradients in bfloat16."""
    fp8_update: bool
    """Send the update in an 8-bit float (ZeRO-0)."""
    overlap: bool
    """Reduce one task's gradient while the next task's backward pass runs."""
    deepspeed: dict[str, Any]
    """The completed configuration."""


def find_ds_config(name: str) -> Path:
    """The file that `--ds_config NAME` means: a path, or one of the shipped ones with or without `.json`."""
    if Path(name).is_file():
        return Path(name)
    shipped = SHIPPED / f"{name.removesuffix('.json')}.json"
    if Path(name).name == name and shipped.is_file():
        return shipped
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.json")))
    raise UserError(f"--ds_config {name}: no such file; give a path or one of the shipped names: {names}")


def read_ds_config(name: str) -> dict[str, Any]:
    """The parsed configuration that `name` means; `UserError` where it is missing or not a JSON object."""
    path = find_ds_config(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(f"--ds_config {path}: not valid JSON at {where}; correct it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--ds_config {path}: cannot be read ({error}); give a readable JSON file") from error
    if not isinstance(content, dict):
        raise UserError(
            f"--ds_config {path}: holds a {type(content).__name__}, not an object; see ds_configs/README.md"
        )
    return content


def engine_settings(config: TrainConfig, world_size: int) -> EngineSettings:
    """Check `config.ds_config` against the run and complete it for `world_size` processes.

    Batch sizes, accumulation and clipping may be "auto", absent or equal to the run's own; an option that is switched
    off is accepted whatever it is. `UserError` names the option, the reason and the alternative.
    """
    name = config.ds_config or ""
    content = read_ds_config(name)
    zero = content.pop("zero_optimization", {})
    if not isinstance(zero, dict):
        _refuse(name, "zero_optimization", 'must be an object such as {"stage": 2}')
    bf16 = _bf16(name, content.pop("bf16", None), config.optim.precision)
    bf16_reductions = _bf16_reductions(name, content.pop("communication_data_type", None), bf16)
    update = content.pop("update_data_type", None)
    sizes = _sizes(config, world_size)
    known = _PASSED | sizes.keys() | {f"zero_optimization.{key}" for key in _ZERO_KEYS}
    for option, value in (content | {f"zero_optimization.{key}": value for key, value in zero.items()}).items():
        if option not in known and not _off(value):
            _refuse(name, option, _REFUSED.get(option, _UNKNOWN))
    for key, (wanted, flag) in sizes.items():
        if content.get(key, "auto") not in ("auto", wanted):
            reason = f'the run has {wanted:g} ({world_size} processes); write "auto" there and set {flag}'
            _refuse(name, f"{key}={content[key]}", reason)
    stage, overlap = zero.get("stage", 0), zero.get("overlap_comm")
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        _refuse(name, f"zero_optimization.stage={stage}", "unknown stage; use 0, 1, 2 or 3")
    completed = _complete(content, zero, stage, sizes)
    fp8_update = _fp8_update(name, update, stage, bf16_reductions)
    return EngineSettings(stage, bf16, bf16_reductions, fp8_update, overlap is None or bool(overlap), completed)


def _sizes(config: TrainConfig, world_size: int) -> dict[str, tuple[float, str]]:
    """The options that repeat the run's own, with the run's value and its flag."""
    batch, accumulation = config.loader.batch_size, config.optim.accumulation
    return {
        "train_batch_size": (batch, "--loader.batch_size"),
        "train_micro_batch_size_per_gpu": (batch / (world_size * accumulation), "--loader.batch_size"),
        "gradient_accumulation_steps": (accumulation, "--optim.accumulation"),
        "gradient_clipping": (config.optim.clip, "--optim.clip"),
    }


def _bf16(name: str, section: Any, precision: str) -> bool:
    """Whether to compute in bfloat16: `enabled` of the section "bf16", or the run's flag where that says nothing."""
    if section is None:
        return precision == "bf16"
    if not isinstance(section, dict) or section.get("enabled", False) not in (True, False, "auto"):
        _refuse(name, "bf16", 'must be {"enabled": true}, false or "auto"')
    for key, value in section.items():
        if key != "enabled" and not _off(value):
            _refuse(name, f"bf16.{key}", "weights, gradients and optimiser state are always float32; remove it")
    enabled = section.get("enabled", False)
    if enabled == "auto":
        return precision == "bf16"
    if precision not in ("auto", "bf16" if enabled else "fp32"):
        reason = f"the run has --optim.precision {precision}; remove one of the two"
        _refuse(name, f"bf16.enabled={str(enabled).lower()}", reason)
    return enabled


def _bf16_reductions(name: str, kind: Any, bf16: bool) -> bool:
    """Whether task gradients are sent in bfloat16: "communication_data_type", float32 where it is left out."""
    option = "communication_data_type"
    if kind in (None, "fp32"):
        return False
    if kind != "bf16":
        _refuse(name, f"{option}={kind}", 'task gradients are sent in "fp32" or "bf16"; write one of these')
    if not bf16:
        _refuse(name, f"{option}=bf16", 'rounds float32 gradients; add "bf16": {"enabled": true} or remove it')
    return True


def _fp8_update(name: str, kind: Any, stage: int, bf16_reductions: bool) -> bool:
    """Whether the update is sent in 8 bits: "update_data_type", as the gradients are where it is left out."""
    option = "update_data_type"
    if kind is None:
        return False
    if kind != "fp8":
        _refuse(name, f"{option}={kind}", 'the update is sent in "fp8", or without this option as gradients are')
    if stage != 0:
        _refuse(name, f"{option}=fp8", f"ZeRO-{stage} gathers parameters, not the update; remove it or use stage 0")
    if not bf16_reductions:
        _refuse(
            name, f"{option}=fp8", 'rounds more than gradients do; add "communication_data_type": "bf16" or remove it'
        )
    return True


def _complete(
    content: dict[str, Any], zero: dict[str, Any], stage: int, sizes: dict[str, tuple[float, str]]
) -> dict[str, Any]:
    zero = {key: value for key, value in zero.items() if key in _ZERO_KEYS} | {"stage": stage}
    if stage:
        zero["compute_grad_norm"] = False  # the trainer has clipped; else ZeRO reads a norm on the host each step
    return {
        "steps_per_print": None,
        **{key: value for key, value in content.items() if key in _PASSED},
        "train_micro_batch_size_per_gpu": int(sizes["train_micro_batch_size_per_gpu"][0]),
        "gradient_accumulation_steps": 1,  # the engine accumulates, so that DeepSpeed steps whenever it is called
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }


def _off(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("enabled") is False or value.get("device") == "none" or not value
    return value is None or value is False


def _refuse(name: str, option: str, reason: str) -> NoReturn:
    raise UserError(f"--ds_config {name}: {option}: {reason}")
