"""Checks and measures this project on a machine with a GPU; see docs/gpu-check.md.

The files in this folder import the standard library only. What runs in a process of its own lies in `stages/`.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project's tree."""
