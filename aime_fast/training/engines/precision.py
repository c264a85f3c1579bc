"""What products and convolutions are computed in on a GPU."""

import warnings

import torch

TENSOR_CORES = (8, 0)
"""The compute capability from which on tensor cores take TF32 and bfloat16."""


def use_precision(device: torch.device, tf32: bool, bf16: bool) -> str:
    """Set the precision of float32 products in this process, for a GPU; return the precision in use in words.

    Without `tf32`, convolutions and recurrent networks are in full float32 too, which torch's own default is not.
    """
    if device.type != "cuda":
        return "bf16 products" if bf16 else "float32 products"
    # The older names of these switches: torch 2.11 to 2.14 all have them, and refuse a mixture with the newer ones.
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    # The LSTM's weights lie in the optimiser's buffers: cuDNN copies those few megabytes at each call, and would warn.
    warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
    cores = torch.cuda.get_device_capability(device) >= TENSOR_CORES
    if bf16:
        return "bf16 products" if cores else "bf16 products (slow: no tensor cores for them)"
    if tf32:
        return "TF32 products" if cores else "float32 products (no tensor cores for TF32)"
    return "float32 products"
