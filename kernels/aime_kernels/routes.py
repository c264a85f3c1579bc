"""Which implementation of each operator serves which device under `AIME_KERNELS=auto`.

The table is data that people review; no program times anything when it starts. `benchmarks/test_bench_kernels.py`
prints these rows with its figures on a GPU. Change a row when the figures say so, and name the card in its note.
"""

from typing import Literal, NamedTuple

Route = Literal["reference", "triton", "native"]
"""Plain PyTorch; the Triton kernel; C++."""


class Row(NamedTuple):
    """The routes of one operator. Other devices take the reference."""

    cuda: Route
    cpu: Route
    note: str
    """What is measured and what is not."""


NOT_TIMED = "results equal the reference's on an H200; time was not compared there"

ROUTES: dict[str, Row] = {
    "expected_kumaraswamy_beta_kl": Row("triton", "reference", NOT_TIMED),
    "kumaraswamy_log_weights": Row("triton", "reference", NOT_TIMED),
    "logistic_mixture": Row("triton", "native", f"{NOT_TIMED}; on a CPU benchmarks/test_bench_likelihood.py"),
    "mixture_log_density": Row("triton", "reference", NOT_TIMED),
    "nearest_codes": Row("triton", "reference", NOT_TIMED),
    "normalise_frames": Row("triton", "reference", NOT_TIMED),
    "rgb_combine": Row("triton", "reference", NOT_TIMED),
    "rgb_gram": Row("triton", "reference", NOT_TIMED),
    "slot_attention": Row("triton", "reference", NOT_TIMED),
}
