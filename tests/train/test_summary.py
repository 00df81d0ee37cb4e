"""train/summary: the page at the end of a run says what was measured, and nothing that was not."""

import errno
import json
import os
from pathlib import Path

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.evaluate.compressors import compressed_bits_per_byte
from bitnet_ref.evaluate.perplexity import Score, score
from bitnet_ref.generate.language_model import load
from bitnet_ref.train import start, summary


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """(run, data) of a finished run; pictures have their own tests."""
    monkeypatch.setattr(summary, "draw", lambda folder, params, ternary: [folder / "pictures/loss.png"])
    return start.resume(str(tiny.copy(tiny.trained(), tmp_path / "run")), {})


def test_the_figures_are_those_of_the_whole_validation_text(resumed):
    run, data = resumed
    figures = summary.finish(run, data)
    want = score(run.model, data.val.tokens, data.tokenizer.token_bytes)
    assert figures["validation loss"] == want.loss
    assert figures["bits per byte"] == want.bits_per_byte
    assert figures["perplexity"] == want.perplexity
    assert figures["validation tokens"] == data.val.header.tokens - 1
    assert figures["validation bytes"] == data.val_text.stat().st_size
    assert figures["steps"] == 20
    assert figures["others, bits per byte"] == compressed_bits_per_byte(data.train_text.read_bytes(),
                                                                        data.val_text.read_bytes())


def test_the_figures_are_written_as_json(resumed):
    run, data = resumed
    figures = summary.finish(run, data)
    assert json.loads((run.folder / summary.SUMMARY).read_text(encoding="utf-8")) == figures
    assert figures["pictures"] == [str(run.folder / "pictures/loss.png")]


def test_the_sample_is_what_generate_gives(resumed):
    run, data = resumed
    want = load(run.folder).generate("Ba", tokens=120, temperature=0.5)
    assert summary.finish(run, data, "Ba")["sample"] == "Ba" + want


def test_the_page_shows_every_figure_and_commands_that_work(resumed):
    run, data = resumed
    figures = summary.finish(run, data)
    page = summary.page(run, figures)
    for shown in (f"{figures['validation loss']:.4f} nats", f"{figures['bits per byte']:.3f}",
                  f"{figures['perplexity']:.2f}",
                  f"{figures['others, bits per byte']['gzip -9']:.3f}   gzip -9",
                  f"{figures['others, bits per byte']['xz -9']:.3f}   xz -9", figures["sample"],
                  f"--model {run.folder}"):
        assert shown in page
    for word in ("generate", "evaluate", "train", "info"):
        assert f"python -m bitnet_ref.{word}" in page


def test_a_run_worse_than_guessing_has_no_perplexity(resumed, monkeypatch):
    run, data = resumed
    monkeypatch.setattr(summary, "final_score", lambda run, data: Score(7.0 * 1000, 1000, 3000, 300))
    figures = summary.finish(run, data)
    assert figures["perplexity"] is None
    assert "perplexity        none: worse than guessing" in summary.page(run, figures)


@pytest.mark.parametrize("what", ["the pictures", "the summary"])
def test_a_full_disk_is_a_refusal(what, resumed, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if what == "the pictures":
        monkeypatch.setattr(summary, "draw", no_space)
    else:
        monkeypatch.setattr(Path, "write_text", no_space)
    with tiny.refusal("must be writable", "No space left"):
        summary.finish(*resumed)
