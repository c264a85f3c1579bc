"""DeepSpeed configurations: what is found, what is refused, in one line each."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from toy import toy_config

from aime_fast.errors import UserError
from aime_fast.training.engines.ds_config import SHIPPED, engine_settings, find_ds_config, read_ds_config


def settings(content, tmp_path, world_size=2, **optim):
    path = tmp_path / "own.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return engine_settings(replace(toy_config(**optim), ds_config=str(path)), world_size)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_shipped_configurations_resolve_by_name_and_fit_any_run(stage, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_ds_config(f"zero{stage}") == find_ds_config(f"zero{stage}.json") == SHIPPED / f"zero{stage}.json"
    for world_size in (1, 2, 3):
        found = engine_settings(replace(toy_config(accumulation=2), ds_config=f"zero{stage}"), world_size)
        assert (found.stage, found.overlap) == (stage, True)
        assert found.deepspeed["train_micro_batch_size_per_gpu"] == 12 // (2 * world_size)
        assert found.deepspeed["gradient_accumulation_steps"] == 1


def test_every_shipped_file_is_described():
    text = (SHIPPED / "README.md").read_text()
    for path in SHIPPED.glob("*.json"):
        assert path.name in text
        engine_settings(replace(toy_config(), ds_config=str(path)), 1)


@pytest.mark.parametrize(("name", "fp8"), [("zero0-bf16", False), ("zero0-fp8", True)])
def test_the_files_that_round_compute_and_send_bfloat16(name, fp8):
    found = engine_settings(replace(toy_config(), ds_config=name), 1)
    assert (found.stage, found.bf16, found.bf16_reductions, found.fp8_update) == (0, True, True, fp8)


def test_a_file_wins_over_a_shipped_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("zero2").write_text('{"zero_optimization": {"stage": 1}}')
    assert read_ds_config("zero2") == {"zero_optimization": {"stage": 1}}


def test_a_missing_file_names_the_shipped_ones():
    with pytest.raises(
        UserError, match=r"nowhere/zero9\.json: no such file; .*zero0, zero0-bf16, zero0-fp8, zero1, zero2, zero3"
    ):
        find_ds_config("nowhere/zero9.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"zero_optimization": {"stage": 2,}}', "not valid JSON at line 1, column"),
        ("[1, 2]", "holds a list, not an object"),
        ({"zero_optimization": 2}, "zero_optimization: must be an object"),
        ({"zero_optimization": {"stage": 7}}, "stage=7: unknown stage; use 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": True}}, "stage=True: unknown stage"),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, "balanced on the device"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "no order to choose; remove it"),
        ({"zero_optimization": {"stage": 2, "zero_quantized_gradients": True}}, "zero_quantized_gradients: not an opt"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            "offload_param: .*balanced on",
        ),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "zero_hpz_partition_size: not an option"),
        ({"fp16": {"enabled": True}}, 'fp16: loss scaling .* write "bf16": {"enabled": true} instead'),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, "bf16.bf16_optimizer_states: .* float32; remove"),
        ({"bf16": True}, 'bf16: must be {"enabled": true}'),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, 'torch_autocast: .* "bf16": {"enabled": true}'),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, "data_types: .* accumulated in float32, at every stage; remove"),
        ({"optimizer": {"type": "Adam"}}, "optimizer: the optimiser belongs to the trainer"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler: the schedule belongs to the trainer"),
        ({"train_batch_size": 16}, r"train_batch_size=16: the run has 12 \(2 processes\); .*--loader.batch_size"),
        ({"train_micro_batch_size_per_gpu": 12}, "train_micro_batch_size_per_gpu=12: the run has 6"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps=4: the run has 1"),
        ({"gradient_clipping": 1.0}, "gradient_clipping=1.0: the run has 5 .*--optim.clip"),
        ({"wall_clock_breakdown": True}, "wait for the device each step"),
        (
            {"communication_data_type": "fp16"},
            'communication_data_type=fp16: task gradients are sent in "fp32" or "bf16"',
        ),
        ({"communication_data_type": "bf16"}, 'rounds float32 gradients; add "bf16": {"enabled": true} or remove it'),
        ({"update_data_type": "int8"}, 'update_data_type=int8: the update is sent in "fp8", or without this option as'),
        ({"update_data_type": "fp8"}, 'rounds more than gradients do; add "communication_data_type": "bf16" or remove'),
        (
            {"zero_optimization": {"stage": 2}, "update_data_type": "fp8"},
            "update_data_type=fp8: ZeRO-2 gathers parameters, not the update; remove it or use stage 0",
        ),
        ({"surprise": 1}, "surprise: not an option of this trainer"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(content, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        settings(content, tmp_path)
    assert "\n" not in str(error.value) and str(error.value).startswith("--ds_config ")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("section", "flag", "bf16"),
    [
        (None, "auto", False),
        (None, "bf16", True),
        ({"enabled": True}, "auto", True),
        ({"enabled": True}, "bf16", True),
        ({"enabled": "auto"}, "bf16", True),
        ({"enabled": "auto"}, "auto", False),
        ({"enabled": False}, "fp32", False),
    ],
)
def test_one_precision_from_the_file_or_the_flag(section, flag, bf16, stage, tmp_path):
    content = {"zero_optimization": {"stage": stage}} | ({} if section is None else {"bf16": section})
    found = settings(content, tmp_path, precision=flag)
    assert found.bf16 is bf16
    assert "bf16" not in found.deepspeed, "DeepSpeed keeps float32 parameters: they are the master weights"


@pytest.mark.parametrize(("enabled", "flag"), [(True, "fp32"), (False, "bf16")])
def test_a_file_and_a_flag_that_disagree_are_refused(enabled, flag, tmp_path):
    with pytest.raises(UserError, match=f"bf16.enabled={str(enabled).lower()}: the run has --optim.precision {flag}"):
        settings({"bf16": {"enabled": enabled}}, tmp_path, precision=flag)


@pytest.mark.parametrize(
    ("kind", "enabled", "wanted"),
    [(None, True, False), ("fp32", True, False), ("fp32", False, False), ("bf16", True, True)],
)
def test_gradients_are_sent_in_float32_unless_told_otherwise(kind, enabled, wanted, tmp_path):
    found = settings({"bf16": {"enabled": enabled}, "communication_data_type": kind}, tmp_path)
    assert found.bf16_reductions is wanted and not found.fp8_update
    assert "communication_data_type" not in found.deepspeed, "the trainer reduces, not DeepSpeed"


def test_agreeing_and_switched_off_options_are_accepted(tmp_path):
    found = settings(
        {
            "train_batch_size": 12,
            "train_micro_batch_size_per_gpu": 3,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 5.0,
            "fp16": {"enabled": False},
            "bf16": {"enabled": False},
            "wall_clock_breakdown": False,
            "zero_optimization": {
                "stage": 2,
                "overlap_comm": False,
                "allgather_bucket_size": 1000,
                "offload_optimizer": {"device": "none"},
                "round_robin_gradients": False,
            },
        },
        tmp_path,
        accumulation=2,
    )
    assert (found.stage, found.overlap) == (2, False)
    assert found.deepspeed["zero_optimization"]["allgather_bucket_size"] == 1000
    assert "offload_optimizer" not in found.deepspeed["zero_optimization"]


def test_unreadable_text_is_one_line(tmp_path):
    path = tmp_path / "binary.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_ds_config(str(path))
