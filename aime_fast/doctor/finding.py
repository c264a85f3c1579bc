"""What a probe answers, and the process it answers from."""

import contextlib
import importlib
import json
import os
import sys
from dataclasses import asdict, dataclass

MARK = "finding "
"""Begins the line with the answer, among whatever else a library prints."""


@dataclass(frozen=True)
class Finding:
    """What a probe saw; with a `fix` it is trouble."""

    found: str
    """One line: a version, a size, or what went wrong."""
    fix: str = ""
    """What to do about it; empty where all is well."""
    limits: bool = False
    """With a fix: the thing still works, only not as it should."""


def answer(probe: str) -> None:
    """Run `module:function`, print its `Finding` as one line, and end this process at once.

    The end is abrupt on purpose: graphics and device libraries may fall over on their way out, long after they have
    shown that they work.
    """
    module, _, function = probe.partition(":")
    with contextlib.redirect_stdout(sys.stderr):
        finding = getattr(importlib.import_module(module), function)()
    sys.stdout.write(f"\n{MARK}{json.dumps(asdict(finding))}\n")
    sys.stdout.flush()
    os._exit(0)
