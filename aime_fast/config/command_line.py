"""From the command line to a `TrainConfig`: defaults < preset < yaml file < flags.

Nothing here imports torch, so that `--help` answers at once.
"""

import argparse
import ast
import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from aime_fast.config import PRESETS, TrainConfig, preset_config, to_dict
from aime_fast.config import schema as config_module
from aime_fast.config.ranges import check_ranges
from aime_fast.errors import UserError

_HELP = "`aime-fast train --help` lists all options"
_EPILOG = "Dashes and underscores in option names are the same. Precedence: defaults < preset < config file < flags."
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", bool: "true|false"}


def parse_train_args(argv: list[str]) -> TrainConfig:
    """The configuration that `argv` (without the program's name) asks for.

    `--preset` names the sizes to start from; `--config` (repeatable, later files win) is a yaml file of nested
    options, such as the one an earlier run left behind. Dashes and underscores in a flag are the same, and the
    `--local_rank` a launcher adds is ignored (the rank is taken from the environment). Raises `UserError` for an
    unknown option, a value of the wrong type or out of range, and a file that is missing or broken. Prints the
    options, with the defaults of the chosen preset and files, and exits with 0 for `--help`.
    """
    tokens = _without_launcher_flags([_dashed(token) for token in argv])
    _check_flags(tokens)
    files = [(path, _read_file(path)) for path in _values(tokens, "--config")]
    presets = [values["preset"] for _, values in files if "preset" in values] + _values(tokens, "--preset")
    name = str(presets[-1]) if presets else TrainConfig().preset
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{_suggest(name, list(PRESETS))}; choose one of {', '.join(PRESETS)}")

    parser = _parser()
    parser.set_defaults(_flat(to_dict(preset_config(name))))
    for path, values in files:
        parser.source = f"{path}: "
        parser.parse_object(_nested(values), defaults=False)  # only to check the types
        parser.set_defaults(values)
    parser.source = ""
    chosen = parser.parse_args(tokens).as_dict()
    del chosen["config"]
    config: TrainConfig = _build(TrainConfig, {**chosen, "preset": name})
    check_ranges(config)
    return config


class _HelpFormatter(DefaultHelpFormatter):
    """Help lines that end with the default in brackets, where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)

    def _get_help_string(self, action: argparse.Action) -> str:
        return (
            f"{action.help} [{action.default}]"
            if action.default not in (None, argparse.SUPPRESS)
            else action.help or ""
        )


class _Parser(ArgumentParser):
    """A parser whose complaints are `UserError`s of one line."""

    source = ""
    """The file the values come from, with a colon; empty for flags."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        key, value = re.search(r'Parser key "(.+?)"', message), re.search(r"(?:Got|Given) value: (.*)", message)
        if key and value and key[1] in _options():
            name = key[1] if self.source else _flag(key[1])
            message = f"{name} must be {_describe(_options()[key[1]].type)}, not {value[1]!r}"
        raise UserError(f"{self.source}{message}; {_HELP}") from ex


@dataclass(frozen=True)
class _Option:
    """One leaf of the configuration: its type annotation, its docstring and the dataclass it stands in."""

    type: Any
    help: str
    owner: type


@cache
def _options() -> dict[str, _Option]:
    """Every option by its dotted name, e.g. `model.latent_dim`, in the order of config.py."""
    return dict(_leaves(TrainConfig, ""))


def _leaves(owner: type[Any], prefix: str) -> Iterator[tuple[str, _Option]]:
    types = get_type_hints(owner)
    for item in fields(owner):
        annotation = types[item.name]
        if is_dataclass(annotation):
            yield from _leaves(types[item.name], f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, _Option(annotation, _field_docs()[owner.__name__, item.name], owner)


@cache
def _field_docs() -> dict[tuple[str, str], str]:
    """The string under each field of config.py's classes, by (class, field); '' where there is none."""
    docs = {}
    for node in ast.parse(inspect.getsource(config_module)).body:
        body = node.body if isinstance(node, ast.ClassDef) else []
        name = node.name if isinstance(node, ast.ClassDef) else ""
        for line, after in pairwise([*body, ast.Pass()]):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                text = (
                    after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
                )
                docs[name, line.target.id] = " ".join(str(text).split())
    return docs


def _parser() -> _Parser:
    """The parser of `train`: one group of flags for each dataclass, the fields' docstrings as help."""
    parser = _Parser(
        formatter_class=_HelpFormatter,
        prog="aime-fast train",
        usage="aime-fast train [options]",
        epilog=_EPILOG,
        allow_abbrev=False,
        default_env=False,
    )
    groups: dict[type, Any] = {}
    for key, option in _options().items():
        if option.owner not in groups:
            groups[option.owner] = parser.add_argument_group((option.owner.__doc__ or "").splitlines()[0].rstrip("."))
        text = option.help.replace("%", "%%").replace("`", "")
        # A switch may stand alone: `--override` is `--override true`.
        alone: dict[str, Any] = {"nargs": "?", "const": True} if option.type is bool else {}
        groups[option.owner].add_argument(
            _flag(key), type=option.type, help=text, metavar=_metavar(option.type), **alone
        )
        if key == "preset":
            groups[option.owner].add_argument(
                "--config", type=list[str], action="append", metavar="FILE.yaml", help="Read options from a yaml file."
            )
    return parser


def _metavar(annotation: Any) -> str:
    choices = _choices(annotation)
    return (
        "|".join(map(str, choices))
        if choices
        else _METAVARS[next(t for t in _alternatives(annotation) if t in _METAVARS)]
    )


def _choices(annotation: Any) -> tuple[Any, ...]:
    return next((get_args(t) for t in _alternatives(annotation) if get_origin(t) is Literal), ())


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return (annotation,) if get_origin(annotation) is Literal else get_args(annotation) or (annotation,)


def _describe(annotation: Any) -> str:
    """`one of adamw, sgd`, `an integer`: what an option takes, in words."""
    words = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    parts = [part for part in _alternatives(annotation) if part is not NoneType]
    return " or ".join(f"one of {', '.join(map(str, get_args(t)))}" if t not in words else words[t] for t in parts)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _dashed(token: str) -> str:
    """A flag with its underscores as dashes; a value, and what stands behind `=`, as it is."""
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else token


def _without_launcher_flags(tokens: list[str]) -> list[str]:
    """`tokens` without `--local-rank=N` and `--local-rank N`."""
    kept, skip = [], False
    for token in tokens:
        if token == "--local-rank":
            skip = True
        elif not skip and not token.startswith("--local-rank="):
            kept.append(token)
        else:
            skip = False
    return kept


def _check_flags(tokens: list[str]) -> None:
    """`UserError` for the first flag that does not exist, naming the nearest one."""
    known = [_flag(key) for key in _options()] + ["--config", "--help"]
    for token in tokens:
        name = token.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise UserError(f"unknown option {name}{_suggest(name, known)}; {_HELP}")


def _suggest(name: str, known: list[str]) -> str:
    """`, did you mean ...?` with the option of the same last part, or else the most similar one; '' for none."""
    leaf = name.lstrip("-").rpartition(".")[2]
    same_leaf = [other for other in known if other.lstrip("-").rpartition(".")[2] == leaf]
    inside = [other for other in known if other.startswith(name + ".")]
    near = same_leaf or inside or difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f", did you mean {near[0]}?" if near else ""


def _values(tokens: list[str], flag: str) -> list[str]:
    """What `flag` is given, in order, in both spellings (`--flag value`, `--flag=value`)."""
    values = []
    for token, after in pairwise([*tokens, ""]):
        if token == flag and after:
            values.append(after)
        elif token.startswith(flag + "="):
            values.append(token.partition("=")[2])
    return values


def _read_file(path: str) -> dict[str, Any]:
    """The options of a yaml file by dotted name; `UserError` when it is missing, broken or has an unknown name."""
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
    values = _flat(content or {})
    for key in values:
        if key not in _options():
            raise UserError(f"{path}: unknown option {key!r}{_suggest(key, list(_options()))}; {_HELP}")
    return values


def _flat(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """{'model': {'grid': 8}} as {'model.grid': 8}; keys become text with dashes as underscores."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        key = prefix + str(name).replace("-", "_")
        flat |= _flat(value, key + ".") if isinstance(value, Mapping) else {key: value}
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = key.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = value
    return tree


def _build(owner: type, values: Mapping[str, Any]) -> Any:
    """`owner`, a dataclass of the configuration, from nested plain values."""
    types = get_type_hints(owner)
    return owner(**{k: _build(types[k], v) if is_dataclass(types[k]) else v for k, v in values.items()})
