"""train/summary: the page at the end of a run says what was measured, and nothing that was not."""

import errno
import json
import os

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.data import atomic
from bitnet_ref.evaluate.compressors import compressed_bits_per_byte
from bitnet_ref.evaluate.perplexity import Score, score
from bitnet_ref.generate.language_model import load
from bitnet_ref.model.cost import train_ops_per_token
from bitnet_ref.train import log, start, summary


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """(run, data) of a finished run; pictures have their own tests."""
    monkeypatch.setattr(summary, "draw", lambda folder, params, ternary: {"loss": "<svg></svg>"})
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
    assert figures["pictures"] == [str(run.folder / f"pictures/{name}.png") for name in ("loss", "overview")]
    assert figures["speed"]["peak"] is figures["speed"]["utilisation"] is None


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


def test_the_speed_is_the_median_step_over_the_peak_that_was_measured(resumed):
    """20 steps of 100 and 200 tokens a second, by turns; and a peak that is asked for the run's threads."""
    run, data = resumed
    lines = log.read(run.folder)
    (run.folder / log.LOG).unlink()
    for line in lines:
        if line["kind"] == "step":
            line["seconds"] = line["tokens"] / (100 if line["step"] % 2 else 200)
        log.append(run.folder, **line)
    threads = []
    figures = summary.finish(run, data, peak=lambda n: threads.append(n) or 1e9)
    assert threads == [figures["machine"]["threads"]]
    work = 150 * train_ops_per_token(run.model.cfg, 32)
    assert figures["speed"] == {"tokens_per_second": 150, "operations_per_second": work, "peak": 1e9,
                                "utilisation": work / 1e9}
    assert f"150 tokens/s: {work / 1e9:.1%} of the 1 Gop/s in float32" in summary.page(run, figures)


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
        monkeypatch.setattr(atomic.os, "replace", no_space)
    with tiny.refusal("must be writable", "No space left"):
        summary.finish(*resumed)
