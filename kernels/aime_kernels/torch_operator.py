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


def kernel_operator(schema: str, outputs: Callable[..., Outputs], module: str, kernel: str) -> CustomOpDef:
    """An operator that allocates its outputs and lets a kernel fill them.

    schema: name, arguments and results in torch's schema language. outputs: allocates the results for given arguments,
    real or fake. module: has the kernel, and `launch(kernel, tensors)`, which gets arguments and results in order.
    """
    name = schema.partition("(")[0]

    def run(*inputs: Tensor) -> Outputs:
        triton_module = importlib.import_module(module)
        results = outputs(*inputs)
        written = (results,) if isinstance(results, Tensor) else results
        triton_module.launch(getattr(triton_module, kernel), [*inputs, *written])
        return results

    operator = torch.library.custom_op(f"aime_kernels::{name}", run, mutates_args=(), schema=schema[len(name) :])
    operator.register_fake(outputs)
    return operator


def differentiate(forward: CustomOpDef, backward: CustomOpDef, saved: Callable[[Any, Any], tuple[Tensor, ...]]) -> None:
    """Make `backward` the gradient of `forward`.

    saved: picks from the inputs and outputs what backward needs; it gets these and the gradients of all outputs, and
    returns those of the first inputs. The rest have none.
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*saved(inputs, output))
        ctx.inputs = len(inputs)

    def pull_back(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = backward(*ctx.saved_tensors, *gradients)
        return (*found, *[None] * (ctx.inputs - len(found)))

    forward.register_autograd(pull_back, setup_context=setup)


def empty_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """A new contiguous tensor of the shape and dtype of each."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)
