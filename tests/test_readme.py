"""The README is executed: its Python runs, its commands and their flags exist, and its links lead somewhere."""

import json
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import aime_fast.__main__
from aime_fast.commands.main import VERBS
from aime_fast.config import PRESETS, preset_config
from aime_fast.config.command_line import parse_train_args

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("ds_configs/*.md")])


def blocks(language):
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands():
    """The command lines of the `sh` blocks and the `make` and `aime-fast` commands quoted in the text."""
    fenced = [line for block in blocks("sh") for line in block.splitlines() if line and not line.startswith("#")]
    quoted = re.findall(r"`((?:make|aime-fast|deepspeed|python) [^`]+)`", README.replace("\n", " "))
    return [
        line
        for line in dict.fromkeys([*fenced, *quoted])
        if "..." not in line and not re.search(r"\b[A-Z]+\b(?!=)", line)
    ]


COMMANDS = commands()
TRAINING = [line for line in COMMANDS if "aime_fast/train.py" in line]


def train_flags(line):
    """What a command line hands to the trainer."""
    words = shlex.split(line)
    return words[words.index("aime_fast/train.py") + 1 :]


PROGRAMS = {
    "python": [sys.executable],
    "aime-fast": [sys.executable, "-m", "aime_fast"],
    "deepspeed": [sys.executable, "-m", "deepspeed.launcher.runner"],
}
"""What the words of a README mean here, where the project need not be installed."""


def run(words, **kwargs):
    """What a command prints; its first word may be one of `PROGRAMS`."""
    words = [*PROGRAMS.get(words[0], words[:1]), *words[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_there_is_something_to_check():
    assert len(TRAINING) >= 3
    assert blocks("python")


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make")])
def test_make_commands_exist(line):
    run([*shlex.split(line), "--dry-run"])


@pytest.mark.parametrize("line", TRAINING)
def test_training_commands_parse(line):
    config = parse_train_args(train_flags(line))
    assert config.steps or config.minutes


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("aime-fast")])
def test_verbs_exist(line):
    run([*shlex.split(line)[:2], "--help"], timeout=60)


def test_the_installed_command_is_the_module():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["aime-fast"]
    assert pkgutil.resolve_name(script) is aime_fast.__main__.main


def test_options_exist():
    known = run([sys.executable, "aime_fast/train.py", "--help"], timeout=60)
    known += "".join(run(["aime-fast", verb, "--help"], timeout=60) for verb in VERBS)
    known = known.replace("_", "-")
    named = set(re.findall(r"`(--[a-z][a-z_.-]+)", README)) - {"--num_gpus", "--hostfile"}
    assert named
    assert {flag for flag in named if flag.replace("_", "-") not in known} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_a_model(name):
    from aime_fast import DPGMMVariationalRecurrentAutoencoder

    parsed = parse_train_args(["--preset", name])
    assert parsed == preset_config(name)
    with torch.device("meta"):
        model = DPGMMVariationalRecurrentAutoencoder(**{**vars(parsed.model), "action_dim": 6})
    assert sum(parameter.numel() for parameter in model.parameters()) > 1000


@pytest.mark.parametrize("path", sorted(ROOT.glob("ds_configs/*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize("world_size", [1, 2])
def test_deepspeed_settings_load(path, world_size):
    from aime_fast.training.engines.ds_config import engine_settings

    for name in (str(path), path.stem):
        config = parse_train_args(["--preset", "debug", "--ds_config", name])
        settings = engine_settings(config, world_size)
        assert settings.stage == json.loads(path.read_text())["zero_optimization"]["stage"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("line", TRAINING)
def test_training_commands_run(line, tmp_path):
    out = tmp_path / "run"
    run([*shlex.split(line), "--steps", "3", "--out", str(out)], timeout=800)
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert list(out.glob("figures/*.png")), "no picture"
    assert list(out.glob("checkpoints/step-*")), "no checkpoint"
    assert list(out.glob("tensorboard/*")), "no TensorBoard events"
