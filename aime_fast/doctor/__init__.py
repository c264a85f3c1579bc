"""Whether this machine can train, and what to install where it cannot.

Every check runs in a process of its own, so that a native library that crashes or hangs is one failed row of the table
and not the end of the doctor.
"""

from aime_fast.doctor.checks import CHECKS, Check, Result, can_train, examine, run_check
from aime_fast.doctor.graphics import choose_graphics
from aime_fast.doctor.report import as_json, as_table

__all__ = ["CHECKS", "Check", "Result", "as_json", "as_table", "can_train", "choose_graphics", "examine", "run_check"]
