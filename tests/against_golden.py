"""The golden section of a test file in one line: `test_golden = golden_test("rmsnorm")`.

Every case of golden/<stem>.safetensors, in both precisions, on every backend, within the one table of
tolerances; integers equal.
"""

import pytest

from bitnet_ref.bench.golden import cases, errors


def golden_test(stem, float32="float32"):
    """A test of every case of a golden file. `float32`: the row of the tolerance table for that precision."""
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    @pytest.mark.parametrize("case", cases(stem).values(), ids=lambda c: c.entry["case"])
    def test_golden(case, dtype, backends, tol):
        found = errors(case, stem, dtype, backends)
        allowed = tol["float64" if dtype == "float64" else float32]
        assert {name: e for name, e in found.items() if not e <= allowed} == {}

    return test_golden
