"""Checks whether this machine can train, and what to install if it cannot."""

from aime_fast.doctor.checks import Check, Result, run_check
from aime_fast.doctor.graphics import choose_graphics
from aime_fast.doctor.table import CHECKS, as_json, as_table, can_train, examine

__all__ = ["CHECKS", "Check", "Result", "as_json", "as_table", "can_train", "choose_graphics", "examine", "run_check"]
