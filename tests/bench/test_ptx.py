"""bench ptx: a warp in slow motion, and what a kernel does to memory."""

import pytest

pytest.importorskip("numba_cuda")

from bitnet_ref.bench import ptx
from bitnet_ref.bench.__main__ import main
from bitnet_ref.cli import DONE


def test_a_trace_shows_lanes_and_values(capsys):
    assert main(["ptx", "--kernel", "coalesced", "--trace", "--warp", "1", "--steps", "400"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("coalesced, warp 1, its first")
    assert lines[0].endswith("(right)")
    thread = next(line for line in lines if "%tid.x" in line)
    assert thread.split()[-4:] == ["32", "33", "34", "63"]
    assert "#" * 32 in thread
    stored = [line for line in lines if "st.global" in line]
    assert stored
    assert all(f"#{'.' * 31}" in line for line in stored)
    assert "_ZN" not in "".join(lines)


def test_counts_tell_the_rungs_apart():
    """What the ladder teaches: neighbours that read neighbours move less."""
    def share(name):
        line = next(row for row in ptx.counted(name) if row.startswith("global load: bytes asked for"))
        return int(line.split()[-1].rstrip("%"))
    assert share("naive") < share("coalesced") < share("vector_dp4a") <= 200


@pytest.mark.parametrize(("args", "says"), [
    (["--kernel", "nope"], "kernel must be one of"), ([], "give --kernel NAME"),
    (["--kernel", "naive", "--trace", "--warp", "99999"], "--warp must be one of"),
    (["--kernel", "naive", "--steps", "0"], "--steps must be greater than 0")])
def test_bad_arguments(args, says):
    from bitnet_ref.checks import CheckError
    with pytest.raises(CheckError, match=says):
        main(["ptx", *args])
