"""From a text to a model that writes: the commands one after another, as a user types them."""

import json
import os
import re

import numpy as np
import pytest
import tiny
from tiny import own_cache  # noqa: F401

import bitnet_ref as br
from bitnet_ref.train import log, loop, start

TYPED = ["--preset", "tiny", "--steps", "30", "--eval-every", "10", "--corpus", "text.txt"]


def test_the_commands_of_the_readme_work_one_after_another(tmp_path):
    (tmp_path / "text.txt").write_bytes(tiny.corpus().read_bytes())

    def command(*arguments):
        result = tiny.command(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result

    trained = command("train", *TYPED)
    assert sorted(os.listdir(tmp_path)) == ["runs", "text.txt"]
    run = tmp_path / "runs" / "tiny-001"
    assert sorted(p.name for p in run.iterdir()) == [
        ".lock", "best.json", "chains.json", "config.json", "log.jsonl", "pictures", "report.html",
        "spoken.json", "step-00000000", "step-00000030", "summary.json", "tokenizer.json"]
    assert len(list((run / "pictures").glob("*.png"))) == 11
    losses = [line["loss"] for line in log.read(run, "step")]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < losses[0] - 1

    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert f"{summary['validation loss']:.4f} nats per token" in trained.stdout
    suggested = re.findall(r"^ +python -m bitnet_ref\.(?:gen|eva|inf).*$", trained.stdout, re.MULTILINE)
    assert len(suggested) == 3
    for line in suggested:
        module, *arguments = re.findall(r'"[^"]*"|\S+', line.split("bitnet_ref.")[1])
        result = command(module, *(a.strip('"') for a in arguments))
        assert result.stderr.count("\n") <= 2 or module == "evaluate"

    text = command("generate", "--model", "runs/tiny-001", "--prompt", "Ba", "--tokens", 20).stdout
    assert text.startswith("Ba")
    assert text == command("generate", "--model", "runs/tiny-001", "--prompt", "Ba", "--tokens", 20).stdout
    figures = json.loads(command("evaluate", "--model", "runs/tiny-001", "--json").stdout)
    assert figures["loss"] == pytest.approx(summary["validation loss"], rel=1e-6)
    for name in ("tokens", "bytes"):
        assert figures[name] == summary[f"validation {name}"]
    described = json.loads(command("info", "--model", "runs/tiny-001", "--json").stdout)
    assert f"{described['parameters']['total']:,} parameters" in trained.stderr


def words(text):
    return re.findall(r"[a-z']+", text.lower())


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("BITNET_REF_DATA"), reason="BITNET_REF_DATA is not set (docs/data.md)")
def test_one_epoch_of_stories_teaches_to_write_english(tmp_path):
    given = {"corpus": "tinystories", "epochs": 1.0, "vocab_size": 1024, "d_model": 96, "n_layers": 2,
             "n_heads": 4, "n_kv_heads": 4, "d_ff": 256, "context": 128, "batch": 4, "lr": 1e-2, "warmup": 20,
             "val_fraction": 0.05, "eval_every": 100, "save_every": 1000, "eval_windows": 16}
    run, data = start.start("tiny", *tiny.configs(**given), str(tmp_path / "run"))
    loop.train(run, data)
    losses = [line["loss"] for line in log.read(run.folder, "eval")]
    assert losses[-1] < losses[0] - 2.5
    assert loop.final_score(run, data).bits_per_byte < 2.2

    known = set(words(data.train_text.read_text(encoding="utf-8")))
    text = "Once upon a time" + br.load(run.folder).generate("Once upon a time", 100, temperature=0.7, seed=1)
    written = words(text)
    assert len(written) > 50
    assert np.mean([word in known for word in written]) >= 0.8, text
    assert 3 < np.mean([len(word) for word in written]) < 5.5, text
    assert len(set(written)) > 20, text
