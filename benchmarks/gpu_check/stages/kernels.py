"""Each kernel against the eager and the compiled reference."""

import traceback

from gpu_check.worker import Emit, Failure


def run(emit: Emit, device: str) -> None:
    """Emit the rows of `benchmarks/test_bench_kernels.py`, one a kernel and shape; one that fails loses no other.

    On a card all are measured without the compiled reference first, because compiling takes most of the time.
    """
    import test_bench_kernels as bench

    on_card, failed = device == "cuda", []
    for compiled in (False, True)[: 1 + on_card]:
        for case in bench.cases(device, small=not on_card):
            what = f"{case.kernel} {case.shape}"
            try:
                row = bench.row_of(case, device, compiled, rounds=50 if on_card else 3)
            except Exception as error:
                traceback.print_exc()
                emit({"row": what, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
                failed.append(what)
                continue
            emit({"row": what, **{name: value for name, value in row.items() if name not in ("kernel", "shape")}})
    if failed:
        names = list(dict.fromkeys(failed))
        raise Failure(f"{len(names)} failed: {', '.join(names)}")
