"""The optional libraries that read shards, imported when asked for."""

from types import ModuleType

from aime_fast.errors import UserError


def load_dali() -> ModuleType:
    """NVIDIA DALI with its operators (`.fn`, `.types`); `UserError` with the install line where it is missing."""
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except ImportError as error:
        raise UserError(
            f"this needs DALI ({error}); `pip install nvidia-dali-cuda130`, or use --backend memory"
        ) from error
    return nvidia.dali


def load_webdataset() -> ModuleType:
    """The WebDataset library; `UserError` with the install line where it is missing."""
    try:
        import webdataset
    except ImportError as error:
        raise UserError(f"this needs WebDataset ({error}); `pip install webdataset`") from error
    return webdataset
