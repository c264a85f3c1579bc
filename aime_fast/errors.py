"""The exception for mistakes of the user, and the exit code that it becomes."""

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from io import TextIOWrapper
from types import TracebackType
from typing import Any, NoReturn


class UserError(Exception):
    """A mistake of the user. The message is one line: what, where and what to do. The command exits with code 2.

    Line breaks and addresses of objects are removed, because messages of other libraries often become part of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(re.sub(r" at 0x[0-9a-f]{6,}", "", message).split()))


class PlainParser(argparse.ArgumentParser):
    """A parser of the standard library whose errors are `UserError`s. Options are not abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse; an unknown option is named before a missing one, which may be the same one misspelt."""
        known = {option.lower(): option for option in self._option_string_actions}
        for token in args[: list(args).index("--")] if "--" in args else args:
            name = token.partition("=")[0]
            if name.startswith("--") and name not in known.values():
                near = get_close_matches(name.lower(), known, n=1, cutoff=0.75)
                self.error(f"unknown option {name}" + (f", did you mean {known[near[0]]}?" if near else ""))
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise `message` as a `UserError`."""
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def check_text(arguments: Iterable[str]) -> None:
    """Raise `UserError` for an argument that libraries, which write UTF-8, would take for the name of another file."""
    encoding = sys.getfilesystemencoding()
    for argument in arguments:
        if encoding != "utf-8" and not argument.isascii():
            raise UserError(
                f"the locale has no UTF-8 ({encoding}) for {argument!r}; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise UserError(f"{argument!r} is not text in UTF-8; rename the file or folder")


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


def plain_errors() -> None:
    """From now on a `UserError` that nobody catches is one line and exit code 2: for a script without a function."""

    def shown(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, UserError):
            return sys.__excepthook__(kind, error, traceback)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

    sys.excepthook = shown


def exit_on_user_error(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code: its own (None means 0), 2 after a `UserError`, 130 after Ctrl-C.

    A `UserError` is printed to standard error as one line `error: ...`. Where nobody reads standard output any more
    (`| head`), the command ends quietly with 141, as others do; where it is closed, what is printed is dropped. A full
    disk is a line too. Any other exception is a bug of the program and keeps its traceback.
    """
    sys.stdout, sys.stderr = (
        stream or open(os.devnull, "w")  # noqa: SIM115  open until the process ends
        for stream in (sys.stdout, sys.stderr)
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what the locale lacks, in a path or a table, is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = error.filename or "a file or the standard output"
        print(f"error: {what} could not be written ({error.strerror}); free some space", file=sys.stderr)
        _drop_output()
        return 2
    except UserError as mistake:
        print("error:", mistake, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _drop_output() -> None:
    """Python flushes standard output once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
