"""The one exception a user's mistake becomes, and the one place that turns it into an exit code."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NoReturn


class UserError(Exception):
    """A mistake of the user: one line that says what, where and what to do; the command exits with code 2.

    What other libraries say often becomes part of it: their line breaks and their objects' addresses are left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(re.sub(r" at 0x[0-9a-f]{6,}", "", message).split()))


class PlainParser(argparse.ArgumentParser):
    """A parser of the standard library whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        """Raise `message` as a `UserError`."""
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in `known`; it gives the nearest name and the list."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return UserError(f"unknown {kind} {name!r}{hint} choose from {', '.join(names)}")


def exit_on_user_error(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    What the command returns (None means 0); 2 after a `UserError`, printed on standard error as one line
    `error: ...`; 130 after Ctrl-C. Any other exception is a defect of the program and keeps its traceback.
    """
    try:
        return command() or 0
    except UserError as mistake:
        print("error:", mistake, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
