"""What a GPU can do, and the precision of its products."""

import warnings

import torch

from aime_fast.errors import UserError

TENSOR_CORES = (8, 0)
"""The compute capability from which on tensor cores take TF32 and bfloat16."""


def check_card(device: torch.device) -> None:
    """Raise `UserError` if this torch has no code for the GPU."""
    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    built = torch.cuda.get_arch_list()
    numbers = [(kind, int(number.rstrip("af"))) for kind, _, number in (name.partition("_") for name in built)]
    own = 10 * major + minor
    # Machine code serves later cards of one generation, PTX all later ones.
    runs = any(n <= own and (kind == "compute" or n // 10 == major) for kind, n in numbers)
    if built and not runs:
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and torch "
            f"{torch.__version__} is built for {', '.join(built)}: install a torch for it, or set "
            "CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def use_precision(device: torch.device, tf32: bool, bf16: bool) -> str:
    """Set the precision of float32 products in this process, for a GPU; return the precision in use in words.

    Without `tf32`, convolutions and recurrent networks are in full float32 too, which torch's own default is not.
    """
    if device.type != "cuda":
        return "bf16 products" if bf16 else "float32 products"
    # The older names of these switches: torch 2.11 to 2.14 all have them, and refuse a mixture with the newer ones.
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    # Torch's default lets a product of bfloat16 that is split between programs add its parts in bfloat16.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    # The LSTM's weights lie in the optimiser's buffers: cuDNN copies those few megabytes at each call, and would warn.
    warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
    cores = torch.cuda.get_device_capability(device) >= TENSOR_CORES
    if bf16:
        return "bf16 products" if cores else "bf16 products (no tensor cores for them: fp32 is faster)"
    if tf32:
        return "TF32 products" if cores else "float32 products (no tensor cores for TF32)"
    return "float32 products"
