"""`logistic_mixture_loss`: the public function, and the choice of its form."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aime_kernels.dispatch import call, shapes
from aime_kernels.logistic_mixture.fused import fused_gradients, fused_terms
from aime_kernels.logistic_mixture.kernel import kernel_gradients, kernel_obstacle, kernel_terms
from aime_kernels.logistic_mixture.native import native_gradients, native_obstacle, native_terms
from aime_kernels.logistic_mixture.parameters import CHANNELS_PER_COMPONENT
from aime_kernels.logistic_mixture.reference import reference_gradients, reference_terms


def logistic_mixture_loss(
    pixels: Tensor, features: Tensor, weight: Tensor, centre: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of mixture parameters that a linear map makes: sum_n of_nats_n * -log p(x_n) + of_error * |mean_n - x_n|^2.

    The parameters exist only during this call. Their gradient is computed in the same pass and overwrites them.
    The density is that of Salimans et al. 2017 (arXiv:1701.05517); `parameters.py` has the layout.

    Args:
        pixels: x [N, q, 3, P] on the 256 levels of [-1, 1], q images of P pixels per frame; not differentiated.
        features: [N, P, F], any floating dtype, computed in at least float32; differentiable once, like the next two.
        weight: [q * 10 M, F]; parameters [N, q, 10 M, P] are its products with every pixel's features.
        centre: [N, q, 3, P]; locations are offsets from it.
        of_nats: [N], the weight of a nat in each frame; not differentiated.
        of_error: the weight of the squared error.

    Returns the loss, 0-d; -log p in nats [N] and the squared error of the mean [N], both without a gradient.
    Raises ValueError when shapes do not fit or tensors are on several devices.
    """
    given = (pixels, features, weight, centre, of_nats)
    frames, images, _, size = pixels.shape
    divides = weight.shape[0] % (CHANNELS_PER_COMPONENT * images) == 0
    fits = features.shape == (frames, size, weight.shape[1]) and centre.shape == pixels.shape
    if not divides or not fits or of_nats.shape != (frames,):
        raise ValueError(f"pixels, features, weight, centre and of_nats do not fit: {shapes(*given)}")
    if len({tensor.device for tensor in given}) > 1:
        devices = ", ".join(str(tensor.device) for tensor in given)
        raise ValueError(f"pixels, features, weight, centre and of_nats are on several devices: {devices}")
    wide = torch.promote_types(features.dtype, torch.float32)
    pixels, centre, of_nats = pixels.to(wide), centre.to(wide), of_nats.to(wide)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (features, weight, centre)):
        return _Loss.apply(pixels, features, weight, centre, of_nats, of_error)
    x, around = pixels.flatten(0, 1), centre.flatten(0, 1)
    log_prob, mean = terms(x, around, _blocks(features, weight, images))
    nats, error = -log_prob.view(-1, images).sum(1), (mean - x).square().view(frames, -1).sum(1)
    return (nats * of_nats + of_error * error).sum(), nats, error


class _Loss(torch.autograd.Function):
    """`logistic_mixture_loss`; the forward pass computes the gradients."""

    @staticmethod
    def forward(
        ctx: Any, pixels: Tensor, features: Tensor, weight: Tensor, centre: Tensor, of_nats: Tensor, of_error: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        images = pixels.shape[1]
        of_image = of_nats[:, None].expand(-1, images).flatten()
        blocks = _blocks(features, weight, images)
        log_prob, error, of_blocks, of_centre = gradients(
            pixels.flatten(0, 1), centre.flatten(0, 1), blocks, of_image, of_error
        )
        nats, error = -log_prob.view(-1, images).sum(1), error.view(-1, images).sum(1)
        upstream = of_blocks.view(len(features), len(weight), features.shape[1]).to(features.dtype)
        of_features = torch.bmm(upstream.mT, _every(weight, features))
        of_weight = torch.bmm(upstream, features).sum(0, dtype=weight.dtype)
        ctx.save_for_backward(of_features, of_weight, of_centre.view(centre.shape))
        ctx.mark_non_differentiable(nats, error)
        return (nats * of_nats + of_error * error).sum(), nats, error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(upstream.to(of.dtype) * of for of in ctx.saved_tensors), None, None


def _blocks(features: Tensor, weight: Tensor, images: int) -> Tensor:
    """Parameters [N * q, M, 10, P] of features [N, P, F] and weight [q * 10 M, F], in the dtype of the product.

    One product per frame, because the result of one product over all frames would have to be rearranged.
    """
    parameters = torch.bmm(_every(weight, features), features.mT)
    return parameters.view(-1, len(weight) // (10 * images), CHANNELS_PER_COMPONENT, features.shape[1])


def _every(weight: Tensor, features: Tensor) -> Tensor:
    """The weight expanded to all frames, in the features' dtype."""
    return weight.to(features.dtype).expand(len(features), -1, -1)


def terms(x: Tensor, centre: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference_terms`, in the form that serves the device; blocks of any floating dtype."""
    return call("logistic_mixture", x.device, _plain_terms, kernel_terms, kernel_obstacle, x, centre, blocks)


def gradients(
    x: Tensor, centre: Tensor, blocks: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference_gradients`, in the form that serves the device; blocks of any floating dtype."""
    inputs = (x, centre, blocks, of_nats, of_error)
    return call("logistic_mixture", x.device, _plain_gradients, kernel_gradients, kernel_obstacle, *inputs)


def _plain_terms(x: Tensor, centre: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    blocks = blocks.to(x.dtype)
    if native_obstacle(blocks) is None:
        return native_terms(x, centre, blocks)
    return (fused_terms if torch.compiler.is_compiling() else reference_terms)(x, centre, blocks)


def _plain_gradients(
    x: Tensor, centre: Tensor, blocks: Tensor, of_nats: Tensor, of_error: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    blocks = blocks.to(x.dtype)
    if native_obstacle(blocks) is None:
        return native_gradients(x, centre, blocks, of_nats, of_error)
    form = fused_gradients if torch.compiler.is_compiling() else reference_gradients
    return form(x, centre, blocks, of_nats, of_error)
