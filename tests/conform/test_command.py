"""The command as a user runs it: export, dump, judge; exit codes, JSON, picture, bad input, time."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from planted import FAULTS, dumped
from safetensors.numpy import save_file

from bitnet_ref.cli import run_command
from bitnet_ref.conform.__main__ import main


def conform(*args):
    return run_command(main, [str(a) for a in args])


@pytest.fixture
def work(tmp_path):
    assert conform("export", tmp_path / "hw", "--for", "npz") == 0
    return tmp_path / "hw"


def put(work, *faults):
    tensors = dumped(*(FAULTS[f].variants[0] for f in faults), layout="plain")
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, work / "dump" / "all.safetensors")


def test_a_correct_port_conforms(work, capsys):
    put(work)
    assert conform(work, "--all") == 0
    out = capsys.readouterr().out
    assert "conforms: every tensor that was dumped is right" in out
    assert "BAD " not in out


def test_a_wrong_port_is_told_the_line_and_the_cause(work, capsys):
    put(work, "silu_for_relu2")
    assert conform(work) == 1
    out = capsys.readouterr().out
    assert "BAD  bitnet.layers.0.act" in out
    assert "1. silu_for_relu2 explains 99.99 %" in out or "1. silu_for_relu2 explains 100 %" in out
    assert "To do: max(gate, 0)^2 * up." in out
    assert "docs/faults.md#silu_for_relu2" in out


def test_json(work, capsys):
    put(work, "kv_heads_tiled", "stream_float16")
    capsys.readouterr()
    assert conform(work, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert {c["cause"] for c in found["causes"]} == {"kv_heads_tiled", "stream_float16"}
    assert found["conforms"] is False
    assert len(found["tensors"]) > 150


def test_all_asks_for_everything(work, capsys):
    np.save(work / "dump" / "llama.logits.npy", dumped(layout="plain")["llama.logits"])
    assert conform(work) == 0
    assert "not dumped: quant.* 8" in capsys.readouterr().out
    assert conform(work, "--all") == 1


def test_problems_fail_and_are_listed(work, capsys):
    put(work)
    np.save(work / "dump" / "bitnet.logit.npy", np.zeros(3))
    assert conform(work) == 1
    assert "is bitnet.logits meant?" in capsys.readouterr().out


def test_a_homework_of_another_release_is_refused(work, capsys):
    """Its numbers are not those that the judge draws: without this, every tensor would look wrong."""
    put(work)
    text = (work / "homework.json").read_text(encoding="utf-8")
    (work / "homework.json").write_text(text.replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    assert conform(work) == 2
    assert "export it again" in capsys.readouterr().err


def test_picture(work, tmp_path):
    put(work, "rope_interleaved")
    assert conform(work, "--picture", tmp_path / "p.png") == 1
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_another_folder_for_the_dump(work, tmp_path):
    put(work)
    (work / "dump").rename(tmp_path / "elsewhere")
    assert conform(work, "--dump", tmp_path / "elsewhere") == 0
    assert conform(work) == 2


@pytest.mark.parametrize("args", [
    [], ["nowhere"], ["export"], ["export", "x", "--for", "gguf"], ["export", "x", "--seed", "one"],
    ["nowhere", "--jsonn"]])
def test_bad_arguments(args, capsys):
    assert conform(*args) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_picture_that_cannot_be_written(work, capsys):
    put(work)
    assert conform(work, "--picture", work / "homework.json" / "p.png") == 2
    assert "must be writable" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_complete_dump_takes_less_than_ten_seconds(work):
    """With two faults, so that causes are looked for. As a process, imports included."""
    put(work, "transposed_weight", "kv_heads_tiled")
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "bitnet_ref.conform", str(work)], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 1
    assert time.perf_counter() - began < 10
