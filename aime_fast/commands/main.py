"""The command `aime-fast`: finds the verb and runs it."""

import sys

from aime_fast import __version__
from aime_fast.commands import collect, doctor, evaluate, export, imagine, inspect, pack, plan
from aime_fast.errors import PlainParser, exit_on_user_error

VERBS = (collect, pack, inspect, plan, evaluate, imagine, export, doctor)


def main(argv: list[str] | None = None) -> int:
    """Run `aime-fast VERB ...`; returns the exit code (2 for a mistake of the user)."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["train"]:  # it has a parser of its own
        from aime_fast.train import main as train

        return train(arguments[1:])
    return exit_on_user_error(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    parser = PlainParser(prog="aime-fast", description="Train AIME, the Adaptive Infinite Mixture Engine.")
    parser.add_argument("--version", action="version", version=f"aime-fast {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    verbs.add_parser("train", help="Train a model; `aime-fast train --help` lists its options.")
    for module in VERBS:
        verb = verbs.add_parser(module.__name__.rpartition(".")[2], help=module.__doc__)
        verb.set_defaults(run=module.run)
        module.add_arguments(verb)
    options = vars(parser.parse_args(arguments))
    if "run" not in options:
        parser.print_help()
        return 2
    return options.pop("run")(**options)
