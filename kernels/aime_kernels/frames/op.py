"""`normalise_frames` and `normalised_windows`: the public functions, and the operator behind their kernel."""

import torch
from torch import Tensor

from aime_kernels.dispatch import implementation, kernels_possible, size_class
from aime_kernels.frames import reference


def normalise_frames(frames: Tensor) -> Tensor:
    """Map uint8 levels [B, T, H, W, 3] to float32 [B, T, 3, H, W]: level * (2 / 255) - 1, in [-1, 1].

    Level 0 maps to exactly -1 and level 255 to exactly +1; `frames_to_levels` inverts all 256 levels exactly.

    Why an op: a transpose of bytes and a conversion are four passes; the kernel reads a byte and writes a float.
    """
    if not kernels_possible(frames.device):
        return reference.normalise_frames(frames)
    reason = _obstacle(frames) if frames.dim() == 5 else f"frames {tuple(frames.shape)} are not [B, T, H, W, 3]"
    classes = (size_class(frames.numel()),)
    plain, name = reference.normalise_frames, "normalise_frames"
    return implementation(name, plain, _normalise_by_kernel, (frames,), reason, classes, 0)(frames)


def normalised_windows(store: Tensor, starts: Tensor, length: int) -> Tensor:
    """Windows of a resident store, normalised: `normalise_frames(gather_windows(store, starts, length))` in one pass.

    store: uint8 [F, H, W, 3]; starts: int64 [B], each in [0, F - length]. Returns float32 [B, length, 3, H, W].
    A window that leaves the store raises IndexError on a CPU; from the kernel its outside frames come back as NaN,
    because asking the host would stall the device.
    """
    if not kernels_possible(store.device):
        return _windows(store, starts, length)
    reason = _obstacle(store) if store.dim() == 4 else f"store {tuple(store.shape)} is not [F, H, W, 3]"
    if reason is None and (starts.dtype != torch.int64 or starts.dim() != 1 or starts.device != store.device):
        reason = f"starts are {starts.dtype} {tuple(starts.shape)} on {starts.device}, not int64 [B] on {store.device}"
    if reason is None and length < 1:
        reason = f"a length of {length}"
    classes = (size_class(starts.numel()), length, size_class(store[:1].numel()))

    def plain(store: Tensor, starts: Tensor) -> Tensor:
        return _windows(store, starts, length)

    def kernel(store: Tensor, starts: Tensor) -> Tensor:
        return _frames(store, starts, length).unflatten(0, (-1, length))

    return implementation("normalised_windows", plain, kernel, (store, starts), reason, classes, 0)(store, starts)


def _windows(store: Tensor, starts: Tensor, length: int) -> Tensor:
    return reference.normalise_frames(reference.gather_windows(store, starts, length))


def _normalise_by_kernel(frames: Tensor) -> Tensor:
    return _frames(frames.flatten(0, 1), None, 1).unflatten(0, frames.shape[:2])


def _obstacle(frames: Tensor) -> str | None:
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        return f"{frames.dtype} {tuple(frames.shape)}, built for uint8 [..., 3]"
    return None


@torch.library.custom_op("aime_kernels::frames", mutates_args=())
def _frames(store: Tensor, starts: Tensor | None, length: int) -> Tensor:
    from aime_kernels.frames.triton_kernel import frames_triton

    return frames_triton(store.contiguous(), None if starts is None else starts.contiguous(), length)


@_frames.register_fake
def _(store: Tensor, starts: Tensor | None, length: int) -> Tensor:
    frames, height, width, _ = store.shape
    count = frames if starts is None else starts.shape[0] * length
    return store.new_empty(count, 3, height, width, dtype=torch.float32)
