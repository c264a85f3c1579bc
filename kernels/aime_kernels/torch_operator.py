"""Torch operators around Triton kernels: `torch.compile` sees one opaque call with known shapes.

The backward pass of an operator is an operator of its own. Triton is imported at the first call, not before: a machine
without it still runs the references.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

Outputs = Tensor | tuple[Tensor, ...]


def kernel_operator(name: str, module: str, signature: str, outputs: Callable[..., Outputs]) -> CustomOpDef:
    """An operator that allocates its outputs and lets the kernel `<name>_kernel` of a module fill them.

    module: also has `launch(kernel, tensors)`, which gets inputs and outputs in order. signature: names of tensors,
    "x y -> z". outputs: allocates the results for given inputs, real or fake.
    """
    inputs, results = (part.split() for part in signature.split("->"))
    schema = f"({', '.join(f'Tensor {argument}' for argument in inputs)}) -> ({', '.join(['Tensor'] * len(results))})"

    def run(*given: Tensor) -> Outputs:
        triton_module = importlib.import_module(module)
        made = outputs(*given)
        written = (made,) if isinstance(made, Tensor) else made
        triton_module.launch(getattr(triton_module, f"{name}_kernel"), [*given, *written])
        return made

    operator = torch.library.custom_op(f"aime_kernels::{name}", run, mutates_args=(), schema=schema)
    operator.register_fake(outputs)
    return operator


def differentiable_operator(
    name: str,
    module: str,
    forward: str,
    outputs: Callable[..., Outputs],
    backward: str,
    gradients: Callable[..., tuple[Tensor, ...]],
) -> tuple[CustomOpDef, CustomOpDef]:
    """The operators `<name>_fwd` and `<name>_bwd`, the second being the gradient of the first.

    forward, outputs: as for `kernel_operator`. backward: which inputs and outputs the second gets, followed by the
    gradient of every output, and the inputs whose gradients it returns: the first ones. The rest have none.
    gradients: allocates them.
    """
    arguments, results = (part.split() for part in forward.split("->"))
    saved, wanted = backward.split("->")
    operator = kernel_operator(f"{name}_fwd", module, forward, outputs)
    received = " ".join(f"grad_{result}" for result in results)
    pull = kernel_operator(f"{name}_bwd", module, f"{saved} {received} -> {wanted}", gradients)

    def keep(ctx: Any, inputs: tuple[Tensor, ...], output: Outputs) -> None:
        made = (output,) if isinstance(output, Tensor) else output
        known = dict(zip([*arguments, *results], [*inputs, *made], strict=True))
        ctx.save_for_backward(*(known[tensor] for tensor in saved.split()))

    def pull_back(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        found = pull(*ctx.saved_tensors, *upstream)
        return (*found, *[None] * (len(arguments) - len(found)))

    operator.register_autograd(pull_back, setup_context=keep)
    return operator, pull


def empty_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """A new contiguous tensor of the shape and dtype of each."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)
