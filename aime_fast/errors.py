"""The exception for mistakes of the user, and the exit code that it becomes."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NoReturn


class UserError(Exception):
    """A mistake of the user. The message is one line: what, where and what to do. The command exits with code 2.

    Line breaks and addresses of objects are removed, because messages of other libraries often become part of it.
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


def check_at_least(least: int, **values: int) -> None:
    """Raise `UserError` that names the first of `values` below `least`."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")


def exit_on_user_error(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code: its own (None means 0), 2 after a `UserError`, 130 after Ctrl-C.

    A `UserError` is printed to standard error as one line `error: ...`. Any other exception is a bug of the program
    and keeps its traceback.
    """
    try:
        return command() or 0
    except UserError as mistake:
        print("error:", mistake, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
