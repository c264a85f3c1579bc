"""From the command line to a `TrainConfig`: defaults < preset, or the resumed run < yaml file < flags.

Nothing here imports torch, so that `--help` answers at once.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from aime_fast.config.base import base_config
from aime_fast.config.options import HELP, checked, complaint, nearest, options, updated, wording
from aime_fast.config.schema import TrainConfig
from aime_fast.errors import PlainParser, UserError

_EPILOG = (
    "Dashes and underscores in option names are the same. Precedence: defaults < preset < config file < flags. A "
    "resumed run keeps its own settings in place of defaults and preset."
)


def parse_train_args(argv: list[str], default_preset: Callable[[], str] = lambda: TrainConfig.preset) -> TrainConfig:
    """The configuration for the command-line arguments `argv` (without the program's name).

    `--preset` names the sizes to start from. `--config` (repeatable, later files win) is a yaml file of nested
    options, such as the `config.yaml` of an earlier run. Without a preset, and unless `--resume` names a run, which has
    settings of its own, `default_preset` chooses. Dashes and underscores in a flag are the same. The
    `--local_rank` of launchers is ignored, because the rank is read from the environment. Raises `UserError` for an
    unknown option, for a value of the wrong type or out of range, and for a missing or broken file. `--help` prints
    the options with the defaults of the chosen preset and files and exits with 0.
    """
    tokens = [_underscored(token) for token in argv]
    start = PlainParser(prog="aime-fast train", add_help=False, allow_abbrev=False)
    start.add_argument("--local_rank")
    start.add_argument("--preset", action="append", default=[])
    start.add_argument("--config", action="append", default=[])
    chosen, rest = start.parse_known_args(tokens)
    files = [(path, _read_file(path)) for path in chosen.config]
    flags, helps = _flags(rest), "--help" in rest
    presets = [str(values["preset"]) for _, values in files if "preset" in values]
    preset = [None, *presets, *chosen.preset][-1]
    resume, out = (_last_value(flags, name) for name in ("--resume", "--out"))
    config = base_config(preset, resume, out, (lambda: TrainConfig.preset) if helps else default_preset)
    name = config.preset
    for path, values in files:
        config = updated(config, {**values, "preset": name}, path)
    return checked(updated(config, _parser(config).parse_args(flags).as_dict()))


class _HelpFormatter(DefaultHelpFormatter):
    """Help lines that end with the default in brackets, if there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)

    def _get_help_string(self, action: argparse.Action) -> str:
        default = ",".join(action.default) or "none" if isinstance(action.default, tuple) else action.default
        return f"{action.help} [{default}]" if default not in (None, argparse.SUPPRESS) else action.help or ""


class _Parser(ArgumentParser):
    """A parser whose errors are `UserError`s of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        found = re.search(r'Parser key "(.+?)".*(?:Got|Given) value: (.*)', message, re.DOTALL)
        raise UserError(f"{complaint(found[1], found[2], '--') if found else message}; {HELP}") from ex


def _parser(config: TrainConfig) -> _Parser:
    """The parser of `train`: a group of flags for each dataclass, with the docstrings of the fields as help."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        formatter_class=_HelpFormatter,
        prog="aime-fast train",
        usage="aime-fast train [options]",
        epilog=_EPILOG,
        allow_abbrev=False,
        default_env=False,
    )
    types = get_type_hints(TrainConfig)
    groups = {name: owner for name, owner in types.items() if isinstance(owner, type) and is_dataclass(owner)}
    top = parser.add_argument_group(_title(TrainConfig))
    help_ = "Read options from a yaml file. Repeatable."
    top.add_argument("--config", metavar="FILE.yaml", default=argparse.SUPPRESS, help=help_)
    top.add_class_arguments(TrainConfig, as_group=False, skip=set(groups), default=config)
    for name, owner in groups.items():
        group = parser.add_argument_group(_title(owner))
        group.add_class_arguments(owner, name, as_group=False, default=getattr(config, name))
    return parser


def _title(owner: type) -> str:
    return (owner.__doc__ or "").partition(".")[0]


def _underscored(token: str) -> str:
    """A flag with its dashes as underscores. A value and the text after `=` stay as they are."""
    name, equals, value = token.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else token


def _flags(tokens: list[str]) -> list[str]:
    """`tokens` with `--override` alone as `--override=true`.

    `UserError` for the first flag that does not exist, or that needs a value and has none.
    """
    known = [f"--{name}" for name in (*options(), "help")]
    flags = []
    for token, after in pairwise([*tokens, "--"]):
        name = token.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise UserError(f"unknown option {name}{nearest(name, known)}; {HELP}")
        alone = token[2:] in options() and after.startswith("--")
        if alone and options()[token[2:]] is not bool:
            raise UserError(f"{token} needs a value: {wording(token[2:])}; {HELP}")
        flags.append(f"{token}=true" if alone else token)
    return flags


def _last_value(flags: list[str], name: str) -> str | None:
    """What the last `name VALUE` or `name=VALUE` gives; None without one."""
    values = [
        after if flag == name else flag.partition("=")[2]
        for flag, after in pairwise([*flags, ""])
        if flag.partition("=")[0] == name
    ]
    return values[-1] if values else None


def _read_file(path: str) -> Mapping[str, Any]:
    """The content of a yaml file of options; `UserError` if it is missing or broken."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}; give the path of a yaml file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not text in UTF-8"
        raise UserError(f"{path} is not valid yaml{where}: {problem}; correct it") from error
    if not isinstance(content, Mapping | None):
        raise UserError(f"{path} must hold options such as `steps: 100`, not {content!r:.60}")
    return content or {}
