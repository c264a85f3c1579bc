"""Optional libraries, imported when they are needed."""

import importlib
from types import ModuleType

from aime_fast.errors import UserError


def load_dali() -> ModuleType:
    """NVIDIA DALI with `.fn` and `.types`; `UserError` with the install line if it is missing."""
    names = ("nvidia.dali.fn", "nvidia.dali.types", "nvidia.dali")
    return [_load(name, "DALI", "`pip install nvidia-dali-cuda130`, or use --backend memory") for name in names][-1]


def load_webdataset() -> ModuleType:
    """The WebDataset library; `UserError` with the install line if it is missing."""
    return _load("webdataset", "WebDataset", "`pip install webdataset`")


def _load(module: str, name: str, advice: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs {name} ({error}); {advice}") from error
