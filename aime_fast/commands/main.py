"""The command `aime-fast`: finds the verb and runs it."""

import sys

from aime_fast import __version__
from aime_fast.commands import collect, doctor, evaluate, export, imagine, inspect, pack, train
from aime_fast.errors import PlainParser, exit_on_user_error

VERBS = {
    "train": train,
    "collect": collect,
    "pack": pack,
    "inspect": inspect,
    "evaluate": evaluate,
    "imagine": imagine,
    "export": export,
    "doctor": doctor,
}


def main(argv: list[str] | None = None) -> int:
    """Run `aime-fast VERB ...`; returns the exit code (2 for a mistake of the user)."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["train"]:  # it has a parser of its own
        return train.run(arguments[1:])
    return exit_on_user_error(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    parser = PlainParser(prog="aime-fast", description="Train AIME, the Adaptive Infinite Mixture Engine.")
    parser.add_argument("--version", action="version", version=f"aime-fast {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for name, module in VERBS.items():
        verb = verbs.add_parser(name, help=module.HELP)
        verb.set_defaults(run=module.run)
        module.add_arguments(verb)
    options = vars(parser.parse_args(arguments))
    if "run" not in options:
        parser.print_help()
        return 2
    return options.pop("run")(**options)
