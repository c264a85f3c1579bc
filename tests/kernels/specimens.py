"""Every kernel at the sizes that it is built for, for the ahead-of-time suite."""

import torch
import triton.language as tl
from ahead_of_time import Specimen

from aime_kernels.codebook import triton_kernel as codebook
from aime_kernels.dpgmm import triton_density, triton_sticks
from aime_kernels.frames import triton_kernel as frames_kernel
from aime_kernels.logistic_mixture import triton_kernel as likelihood
from aime_kernels.rgb import triton_combine as combine
from aime_kernels.rgb import triton_gram as gram
from aime_kernels.slot_attention import triton_kernel as slots


def block(launch):
    return launch.block


def pointers(names, width="fp32"):
    return {name: f"*{width}" for name in names.split()}


def rgb_gram(vectors, dtype=torch.float32):
    dtypes = [dtype] * vectors
    constants = {"VECTORS": vectors, **gram.steps(gram.LAUNCH.block // dtype.itemsize, dtypes)}
    constants |= gram.piece_types(dtypes, -1, True)
    signature = {"addresses": "*i64", "tiles": "*i64", "partials": "*fp64"}
    name = f"rgb_gram_fwd {vectors} vectors {str(dtype)[6:]}"
    # Eight vectors and their 36 sums leave room for one program of 8 warps.
    registers = 224 if vectors > 4 else 128
    return Specimen(
        name, gram.rgb_gram_fwd_kernel, signature, constants, gram.LAUNCH, registers=registers, wide_share=0.9
    )


def rgb_combine(rows, dtype=torch.float32):
    dtypes = [*[dtype] * rows, torch.float32, dtype]
    constants = {"GRADIENTS": rows, "UPDATE_DTYPE": gram.triton_dtype(dtype)}
    constants |= gram.steps(combine.LAUNCH.block, dtypes)
    signature = {"addresses": "*i64", "tiles": "*i64", "coefficients": "*fp32", "finite": "*i1"}
    return Specimen(
        f"rgb_combine_fwd {rows} rows {str(dtype)[6:]}",
        combine.rgb_combine_fwd_kernel,
        signature,
        {**constants, **gram.piece_types(dtypes, rows, True)},
        combine.LAUNCH,
        wide_share=0.9,
    )


def sticks(which, names, count, **constants):
    kernel = getattr(triton_sticks, f"{which}_kernel")
    constants = {"J": count, "TINY": 1e-32, **constants}
    signature = {**pointers(names), "rows": "i32"}
    # Three programs of 4 warps.
    return Specimen(f"{which} {count} sticks", kernel, signature, constants, triton_sticks.LAUNCH, registers=160)


def mixture(which, names, components, dim):
    constants = {"K": components, "D": dim}
    kernel = getattr(triton_density, f"mixture_{which}_kernel")
    signature = {**pointers(names), "samples": "i32"}
    return Specimen(f"mixture_{which} K={components} D={dim}", kernel, signature, constants, triton_density.LAUNCH)


def slot_attention(which, names, count, positions, dim):
    constants = {"SLOTS": count, "P": positions, "D": dim, "SCALE": dim**-0.5}
    strides = dict.fromkeys(["key_batch", "key_row", "value_batch", "value_row"], "i32")
    kernel = getattr(slots, f"slot_attention_{which}_kernel")
    name = f"slot_attention_{which} S={count} P={positions} d={dim}"
    if which == "bwd":
        constants["LEVELS"] = (count - 1).bit_length()
    launches = slots.LAUNCH if which == "fwd" else slots.BACKWARD_LAUNCH
    return Specimen(name, kernel, {**pointers(names), **strides}, constants, slots.for_tile(launches, positions * dim))


def frames():
    signature = {"frames": "*u8", "out": "*fp32", "pixels": "i32"}
    return Specimen("frames_fwd", frames_kernel.frames_fwd_kernel, signature, {"BLOCK": block}, frames_kernel.LAUNCH)


def pixels(which, names, width="fp32"):
    kernel = getattr(likelihood, f"pixel_{which}_kernel")
    scalars = {"of_error": "fp32"} if which == "gradients" else {}
    signature = {**pointers(names), "blocks": f"*{width}", **scalars, "mixtures": "i32", "pixels": "i32"}
    constants = {"BLOCK": block, "COMPUTE": tl.float32}
    # A lane holds one pixel, for seven programs on a multiprocessor: a warp's loads are whole lines of 128 bytes.
    return Specimen(f"pixel_{which} {width}", kernel, signature, constants, likelihood.LAUNCH, 72, wide_share=0.0)


def nearest_codes(dim):
    signature = {**pointers("encodings codes distances"), "ids": "*i64", "rows": "i32", "count": "i32"}
    constants = {"D": dim, "ROWS": block, "TOLERANCE": codebook.SAME * dim}
    return Specimen(f"nearest_codes d={dim}", codebook.nearest_codes_kernel, signature, constants, codebook.LAUNCH)


_MIXTURE = {
    "fwd": "z log_pi means log_vars log_prob log_responsibilities",
    "bwd": "z means log_vars log_responsibilities grad_log_prob grad_log_responsibilities "
    "grad_z grad_log_pi grad_means grad_log_vars",
}
_SLOTS = {
    "fwd": "slots keys values updates assignments maps",
    "bwd": "slots keys values assignments maps grad_updates grad_assignments grad_maps "
    "grad_slots grad_keys grad_values",
}
_SLOT_SIZES = [(5, 64, 64), (5, 64, 32), (3, 64, 16), (8, 256, 16)]
_PIXELS = {
    "terms": "x centre blocks log_probs means",
    "gradients": "x centre blocks of_nats sums of_centre",
}
_EPS = torch.finfo(torch.float32).eps
_ALL = [
    *(rgb_gram(vectors) for vectors in (2, 4, 8)),
    rgb_gram(4, torch.bfloat16),
    *(rgb_combine(rows) for rows in (1, 3, 6)),
    rgb_combine(3, torch.bfloat16),
    *(sticks("stick_weights_fwd", "log_a log_b uniform log_pi", count, EPS=_EPS) for count in (14, 31)),
    *(
        sticks("stick_weights_bwd", "log_a log_b uniform grad_log_pi grad_log_a grad_log_b", count, EPS=_EPS)
        for count in (14, 31)
    ),
    *(sticks("stick_kl_fwd", "log_a log_b mean mean_log kl", count) for count in (14, 31)),
    *(
        sticks(
            "stick_kl_bwd",
            "log_a log_b mean grad_kl grad_log_a grad_log_b grad_mean grad_mean_log",
            count,
        )
        for count in (14, 31)
    ),
    *(mixture(which, names, *size) for size in [(15, 36), (32, 64)] for which, names in _MIXTURE.items()),
    frames(),
    *(pixels(which, names, width) for width in ("fp32", "bf16") for which, names in _PIXELS.items()),
    *(nearest_codes(dim) for dim in (64, 256)),
    *(slot_attention(which, names, *size) for size in _SLOT_SIZES for which, names in _SLOTS.items()),
]
SPECIMENS = {specimen.name: specimen for specimen in _ALL}
_MODEL = ("4 vectors float32", "3 rows float32", " 14 ", "=15", "=5", "frames", "pixel", "nearest")
FIRST = [name for name in SPECIMENS if any(size in name for size in _MODEL)]
"""The model's sizes."""
