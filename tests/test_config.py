"""From flags and files to a `TrainConfig`: precedence, names, types, ranges and error messages."""

import re
from dataclasses import fields, is_dataclass, replace

import pytest
import yaml

from aime_fast.config import PRESETS, ModelConfig, OptimConfig, TrainConfig, preset_config, to_dict
from aime_fast.config.base import configured
from aime_fast.config.command_line import parse_train_args
from aime_fast.config.options import checked, updated
from aime_fast.errors import UserError


def leaves(config, prefix=""):
    """Every option of a configuration, dotted name -> value."""
    found = {}
    for item in fields(config):
        value = getattr(config, item.name)
        found |= leaves(value, f"{prefix}{item.name}.") if is_dataclass(value) else {prefix + item.name: value}
    return found


def write(path, text):
    path.write_text(text)
    return str(path)


def help_text(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        parse_train_args([*arguments, "--help"])
    assert not end.value.code
    return capsys.readouterr().out


def test_nothing_given_is_the_paper():
    assert parse_train_args([]) == TrainConfig() == preset_config("paper")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_start(name):
    assert parse_train_args(["--preset", name]) == preset_config(name)


def test_defaults_yield_to_preset_to_file_to_flag(tmp_path):
    file = write(tmp_path / "a.yaml", "model: {latent_dim: 21, hidden_dim: 22}\nsteps: 7")
    config = parse_train_args(["--model.latent-dim", "31", "--config", file, "--preset", "debug"])
    assert config.model.latent_dim == 31  # flag
    assert (config.model.hidden_dim, config.steps) == (22, 7)  # file
    assert config.model.context_dim == preset_config("debug").model.context_dim != ModelConfig().context_dim  # preset
    assert config.optim.clip == OptimConfig().clip  # default


def test_a_file_may_name_the_preset_and_a_flag_outranks_it(tmp_path):
    file = write(tmp_path / "a.yaml", "preset: small\nseed: 3")
    assert parse_train_args([f"--config={file}"]) == replace(preset_config("small"), seed=3)
    assert parse_train_args(["--config", file, "--preset=debug"]) == replace(preset_config("debug"), seed=3)


def test_the_later_file_and_the_later_flag_win(tmp_path):
    first, second = write(tmp_path / "a.yaml", "seed: 1\nsteps: 1"), write(tmp_path / "b.yaml", "seed: 2")
    config = parse_train_args(["--config", first, "--config", second, "--epochs", "4", "--epochs", "5"])
    assert (config.seed, config.steps, config.epochs) == (2, 1, 5)


def test_a_saved_configuration_reads_back(tmp_path):
    config = parse_train_args(
        ["--preset", "small", "--optim.lr", "1e-5", "--minutes", "2", "--logging.tracker", "none"]
    )
    file = write(tmp_path / "config.yaml", yaml.safe_dump(to_dict(config)))
    assert parse_train_args(["--config", file]) == config


def test_an_empty_file_changes_nothing(tmp_path):
    assert parse_train_args(["--config", write(tmp_path / "a.yaml", "# nothing yet\n")]) == TrainConfig()


def test_dashes_and_underscores_are_the_same_in_names_only():
    for flags in (["--ds_config", "my_zero"], ["--ds-config", "my_zero"], ["--ds_config=my_zero"]):
        assert parse_train_args(flags).ds_config == "my_zero"
    assert parse_train_args(["--model.latent_dim", "9"]) == parse_train_args(["--model.latent-dim=9"])


@pytest.mark.parametrize("launched", [["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"]])
def test_what_a_launcher_adds_is_ignored(launched):
    assert parse_train_args([*launched, "--steps", "5"]) == replace(TrainConfig(), steps=5)


def test_help_names_every_option_with_its_docstring_and_default(capsys):
    text = " ".join(help_text(capsys, "--preset", "debug").split())
    named = set(re.findall(r"(?<=\s)--([a-z][a-z0-9._]*)", text))
    assert named == leaves(TrainConfig()).keys() | {"config", "help"}
    assert f"Peak learning rate. [{preset_config('debug').optim.lr}]" in text


@pytest.mark.parametrize("name", leaves(TrainConfig()))
def test_every_option_takes_its_own_value(name):
    value = leaves(preset_config("small"))[name]
    given = "null" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)
    given = given.lower() if isinstance(value, bool) else given
    config = parse_train_args(["--preset", "small", f"--{name}", given])
    assert leaves(config) == leaves(preset_config("small"))
    assert type(leaves(config)[name]) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "debgu"], "preset must be one of debug, small, paper, not 'debgu', did you mean debug?"),
        (["--stesp", "3"], "unknown option --stesp, did you mean --steps?"),
        (["--latent-dim", "3"], "unknown option --latent_dim, did you mean --model.latent_dim?"),
        (["--step", "3"], "unknown option --step, did you mean --steps?"),
        (["--model.latent-dim", "big"], "--model.latent_dim must be an integer of at least 1, not 'big'"),
        (["--steps", "1.5"], "--steps must be an integer of at least 1, not '1.5'"),
        (["--optim.lr", "fast"], "--optim.lr must be a number above 0, not 'fast'"),
        (["--optim.name=adam"], "--optim.name must be one of adamw, sgd, not 'adam', did you mean adamw?"),
        (["--balancing.groups=modules"], "one of all, shared, module, not 'modules', did you mean module?"),
        (["--optim.tf32", "3"], "--optim.tf32 must be true or false, not '3'"),
        (["--override", "3"], "--override must be true or false, not '3'"),
        (["--steps"], "--steps needs a value: an integer of at least 1"),
        (["--cuda-graph"], "--cuda_graph needs a value: one of auto, on, off"),
        (["--cuda-graph", "--steps", "3"], "--cuda_graph needs a value: one of auto, on, off"),
        (["--preset"], "--preset: expected one argument"),
        (["--config"], "--config: expected one argument"),
        (["paper"], "unrecognized arguments: paper"),
        (["--config", "/nowhere/a.yaml"], "cannot read --config /nowhere/a.yaml: No such file or directory"),
    ],
)
def test_an_error_in_a_flag_is_one_line(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as mistake:
        parse_train_args(arguments)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {latnt_dim: 3}", "unknown option 'model.latnt_dim', did you mean model.latent_dim?"),
        ("model: 3", "unknown option 'model', did you mean model."),
        ("nonsense: 3", "unknown option 'nonsense'"),
        ("model: {latent_dim: x}", "model.latent_dim must be an integer of at least 1, not 'x'"),
        ("steps: [1, 2]", "steps must be an integer of at least 1, not [1, 2]"),
        ("optim: {lr: .inf}", "optim.lr must be a number above 0, not inf"),
        ("optim: {lr: .nan}", "optim.lr must be a number above 0, not nan"),
        ("steps: true", "steps must be an integer of at least 1, not True"),
        ("tasks: 3", "tasks must be names separated by commas, not 3"),
        ("watching: {log_every: 3}", "unknown option 'watching.log_every', did you mean logging.log_every?"),
        ("preset: huge", "preset must be one of"),
        ("- steps", "must hold options such as `steps: 100`"),
        ("model: {latent_dim:", "is not valid yaml at line 1"),
        ("steps: \x00", "is not valid yaml"),
    ],
)
def test_an_error_in_a_file_is_one_line_with_its_name(tmp_path, content, message):
    file = write(tmp_path / "a.yaml", content)
    with pytest.raises(UserError, match=re.escape(message)) as mistake:
        parse_train_args(["--config", file])
    assert "\n" not in str(mistake.value)
    assert file in str(mistake.value) or "preset" in message


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="is not valid yaml"):
        parse_train_args(["--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be an integer of at least 1, not '0'"),
        (["--loader.batch-size", "-8"], "--loader.batch_size must be an integer of at least 1, not '-8'"),
        (["--optim.warmup-steps=-1"], "--optim.warmup_steps must be an integer of at least 0, not '-1'"),
        (["--seed=-1"], "--seed must be an integer of at least 0, not '-1'"),
        (["--minutes", "0"], "--minutes must be a number above 0, not '0'"),
        (["--optim.lr", "inf"], "--optim.lr must be a number above 0, not 'inf'"),
        (["--optim.lr", "nan"], "--optim.lr must be a number above 0, not 'nan'"),
        (["--losses.free-bits", "-0.5"], "--losses.free_bits must be a number of at least 0, not '-0.5'"),
        (["--optim.beta1", "1"], "--optim.beta1 must be a number of at least 0 and below 1, not '1'"),
        (["--balancing.mu", "1.5"], "--balancing.mu must be a number between 0 and 1, not '1.5'"),
        (["--model.image-size", "72"], "--model.image_size must be 0 or a multiple of 16, not '72'"),
        (
            ["--model.grid", "7", "--model.image-size", "64"],
            "model.image_size must be a multiple of 4 * model.grid (28), not 64",
        ),
        (["--model.perceiver-heads", "5"], "model.perceiver_dim must be a multiple of model.perceiver_heads (5)"),
        (["--optim.accumulation", "3"], "loader.batch_size must be a multiple of optim.accumulation (3), not 8"),
    ],
)
def test_values_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_train_args(arguments)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_in_range(name):
    assert checked(preset_config(name)) == preset_config(name)


def test_a_switch_may_stand_alone():
    assert parse_train_args(["--override", "--steps", "3"]) == replace(TrainConfig(), override=True, steps=3)
    assert parse_train_args(["--steps", "3", "--override"]).override
    assert not parse_train_args(["--override", "false"]).override


def test_tasks_are_a_list_in_every_form(tmp_path):
    file = write(tmp_path / "a.yaml", "tasks: [elbo, predictive]")
    expected = ("elbo", "predictive")
    assert parse_train_args(["--tasks", "elbo,predictive"]).tasks == expected
    assert parse_train_args(["--config", file]).tasks == expected
    for names in (expected, list(expected), "elbo, predictive"):
        assert configured(None, {"tasks": names}).tasks == expected
    assert to_dict(configured(None, {"tasks": expected}))["tasks"] == list(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepz": 3}, "unknown option 'stepz', did you mean steps?"),
        ({"model": {"latnt_dim": 3}}, "unknown option 'model.latnt_dim', did you mean model.latent_dim?"),
        ({"steps": "3"}, "steps must be an integer of at least 1, not '3'"),
        ({"preset": "huge"}, "preset must be one of"),
        ({"config": replace(TrainConfig(), minutes=-1.0)}, "minutes must be a number above 0, not -1.0"),
    ],
)
def test_mistakes_in_python_are_one_line_too(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        configured(options.pop("config", None), options)


def test_python_takes_a_group_as_a_dict_or_as_a_whole():
    assert updated(TrainConfig(), {"optim": {"lr": 1}}).optim == replace(OptimConfig(), lr=1.0)
    assert updated(TrainConfig(), {"optim": OptimConfig(lr=0.5)}).optim == OptimConfig(lr=0.5)


def test_python_takes_a_path(tmp_path):
    assert updated(TrainConfig(), {"out": tmp_path}).out == str(tmp_path)
