"""bench/backward: runs that differ in what they are named for, and figures of how far they are apart."""

import json

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import backward, page
from bitnet_ref.cli import run_command
from bitnet_ref.kernels.numba_cpu import bf16


def test_figures_are_the_largest_distances():
    curves = {"float32": {"losses": [3.0, 2.0, 1.0], "validation": 1.5},
              "bf16": {"losses": [3.0, 1.5, 1.25], "validation": 1.25},
              "noise 1": {"losses": [3.0, 2.0, 1.125], "validation": 1.75}}
    figures = backward.compared(curves)
    assert figures == {"steps": 3, "validation": {"float32": 1.5, "bf16": 1.25, "noise 1": 1.75},
                       "apart": {"bf16": 0.5, "noise 1": 0.125}}
    block = page.backward_block(figures)
    assert "at most 0.500 nats" in block
    assert "up to 0.125 apart" in block


@pytest.mark.slow                                          # compiles what nothing else here needs
@pytest.mark.skipif(not bf16.available(), reason=f"this processor has no {bf16.FEATURE}")
def test_every_run_is_made_once_and_drawn(tmp_path, capsys):
    folder = tmp_path / "new"
    command = ["--output", str(folder), *tiny.flags(steps=4)]
    assert run_command(backward.main, command) == 0
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert figures["steps"] == 4
    assert 0 < figures["apart"]["bf16"] < 0.1
    assert len(capsys.readouterr().out.splitlines()) == len(figures["apart"]) == len(backward.RUNS) - 1
    assert (folder / "backward.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert run_command(backward.main, command) == 2
    tiny.assert_three_parts(capsys.readouterr().err, "new folder", folder)


@pytest.mark.slow
def test_no_run_has_a_guard(tmp_path):
    backward.curve("float32", "tiny", *tiny.configs(steps=1), tmp_path)
    assert not json.loads((tmp_path / "float32" / "config.json").read_text())["train"]["guard"]


@pytest.mark.slow
def test_noise_changes_the_weights_in_the_last_digits(tmp_path):
    runs = {name: backward.curve(name, "tiny", *tiny.configs(steps=8, linear="full"), tmp_path)
            for name in ("float32", "noise 1", "noise 2")}
    first = [c["losses"][0] for c in runs.values()]
    np.testing.assert_allclose(first, first[0], rtol=1e-3)
    assert len({tuple(c["losses"]) for c in runs.values()}) == 3
