"""The benchmark of the kernels on a CPU: one row for each operator with a route, references only."""

import test_bench_kernels as bench

from aime_kernels.routes import ROUTES

KEYS = {"kernel", "shape", "eager_ms", "compiled_ms", "kernel_ms", "bytes", "gb_per_s"}


def test_every_operator_has_a_row_with_its_time_and_bytes():
    rows = bench.rows("cpu", small=True, compiled=False, rounds=2)
    assert {row["kernel"] for row in rows} == set(ROUTES)
    for row in rows:
        assert set(row) == KEYS and row["eager_ms"] > 0 and row["bytes"] > 0
        assert row["compiled_ms"] is row["kernel_ms"] is row["gb_per_s"] is None


def test_the_row_for_the_table_names_the_faster_route():
    row = {"kernel": "rgb_gram", "eager_ms": 2.0, "compiled_ms": 1.0, "kernel_ms": 0.5}
    note = "card: reference 2.000 ms, compiled 1.000 ms, triton 0.500 ms"
    assert bench.table_row(row, "card") == f'    "rgb_gram": Row("triton", "reference", "{note}"),'
    assert 'Row("reference"' in bench.table_row({**row, "kernel_ms": 1.5}, "card")
    assert 'Row("reference"' in bench.table_row({**row, "kernel_ms": None}, "card")
