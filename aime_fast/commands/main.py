"""The command `aime-fast`: finds the verb and runs it."""

import sys

from aime_fast import __version__
from aime_fast.commands import (
    collect,
    compare,
    doctor,
    evaluate,
    export,
    figures,
    imagine,
    inspect,
    pack,
    plan,
    profile,
    report,
)
from aime_fast.errors import PlainParser, check_text, exit_on_user_error, unknown_name
from aime_fast.waiting import sleep_while_waiting

MODULES = (collect, pack, inspect, plan, evaluate, compare, imagine, figures, report, export, profile, doctor)
VERBS = {module.__name__.rpartition(".")[2]: module for module in MODULES}
TRAIN = "train"
"""The verb with a parser of its own."""


def main(argv: list[str] | None = None) -> int:
    """Run `aime-fast VERB ...`; returns the exit code (2 for a mistake of the user)."""
    sleep_while_waiting()
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == [TRAIN]:
        from aime_fast.train import main as train

        return train(arguments[1:])
    return exit_on_user_error(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    check_text(arguments)
    verb = arguments[0] if arguments else ""
    if verb in VERBS:
        parser = PlainParser(prog=f"aime-fast {verb}", description=VERBS[verb].__doc__)
        VERBS[verb].add_arguments(parser)
        return VERBS[verb].run(**vars(parser.parse_args(arguments[1:])))
    if verb and not verb.startswith("-"):
        raise unknown_name("verb", verb, [TRAIN, *VERBS])
    parser = PlainParser(prog="aime-fast", description="Train AIME, the Adaptive Infinite Mixture Engine.")
    parser.add_argument("--version", action="version", version=f"aime-fast {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    verbs.add_parser(TRAIN, help="Train a model; `aime-fast train --help` lists its options.")
    for name, module in VERBS.items():
        verbs.add_parser(name, help=module.__doc__)
    parser.parse_args(arguments)
    parser.print_help()
    return 2
