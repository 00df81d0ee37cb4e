"""Notebook 07: requests are those that the kernels make, faults are found, and nothing is said of time."""

import numpy as np
import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.walk import gpu_kernels
from bitnet_ref.walk.gpu_kernels import Request, counted, on_a_card, requests, text, warp_from, with_edit

LANE = np.arange(32)
BARRIER = r"bar\.sync[^;]*;"


@pytest.mark.parametrize(("offsets", "n_bytes", "sectors"), [
    (LANE, 1, 1), (LANE * 640, 1, 32), (LANE * 4, 1, 4), (LANE * 16, 16, 16), (LANE + 16, 1, 2)])
def test_sectors_of_a_request(offsets, n_bytes, sectors):
    assert Request("w", offsets, n_bytes).sectors == sectors


def test_what_has_been_measured_is_what_the_page_says(tmp_path, monkeypatch):
    page = gpu_kernels.RECORD.read_text(encoding="utf-8")
    assert f"-->\n{on_a_card()}\n" in page
    monkeypatch.setattr(gpu_kernels, "RECORD", tmp_path / "none.md")
    assert "cuda.md" in on_a_card()


class TestOnTheInterpreter:
    """What needs numba-cuda."""

    @pytest.fixture(autouse=True)
    def _compiler(self):
        pytest.importorskip("numba_cuda", reason="CUDA kernels need the extra `cuda`")

    def test_rows_far_apart_and_neighbours(self):
        K = 2048
        far, near = (next(r for r in requests(name, K=K) if r.array == "w")
                     for name in ("naive", "coalesced"))
        assert np.array_equal(far.offsets, LANE * (K // 4))
        assert np.array_equal(near.offsets, LANE)
        assert (far.sectors, near.sectors) == (32, 1)

    def test_wide_loads_and_those_of_what_ships(self):
        wide = next(r for r in requests("vector_dp4a") if r.array == "w")
        assert (wide.n_bytes, wide.sectors) == (16, 16)
        arrays = [r.array for r in requests("gemv_i2")]
        assert arrays[:4] == ["words"] * 4                     # all under way before any x is asked for
        assert "words" not in arrays[4:8]

    def test_all_rungs_are_counted(self):
        counts = counted(N=32, K=640)
        assert list(counts) == list(gpu_kernels.VECTOR)
        assert counts["tensor_core"].wavefronts == 4
        assert counts["naive"].wavefronts == 0
        assert counts["shared"].fetched < counts["coalesced"].fetched / 4

    def test_a_planted_race_is_found_and_a_harmless_edit_is_not(self):
        assert "no warp may read what another warp writes" in with_edit("shared", BARRIER, "")
        assert with_edit("shared", BARRIER, "bar.sync 0;") == "right"
        assert "numbers differ" in with_edit("naive", r"(ld\.global\.s8\s+%\w+, \[%rd\d+)\+1\]", r"\1+2]")

    def test_an_edit_that_finds_nothing_says_so(self):
        with pytest.raises(CheckError, match="must match a line"):
            with_edit("naive", BARRIER, "")

    def test_a_warp_from_where_it_adds_up(self):
        rows = repr(warp_from("coalesced", "shfl", 10)).splitlines()
        assert "lane 0" in rows[1]
        assert "shfl.sync.bfly" in rows[2]
        assert sum("shfl" in row for row in rows) == 5
        assert len({*rows[11].split()[2:6]}) == 1              # after five exchanges all have the same sum
        assert rows[11].split()[6] == "add.s32"
        assert rows[1].index("lane 31") < 90                   # is seen without scrolling
        assert all(len(row) <= 120 for row in rows)
        with pytest.raises(CheckError, match="must execute such"):
            warp_from("naive", "shfl")

    def test_the_text_is_that_of_the_kernel(self):
        assert ".entry" in text("naive")
        with pytest.raises(CheckError, match="rung must be one of"):
            text("fastest")
