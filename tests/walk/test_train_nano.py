"""Runs of notebook 04: the trainer's own, quiet, with what is read off their logs."""

from dataclasses import replace

import numpy as np
import pytest

from bitnet_ref.config import TrainConfig
from bitnet_ref.train import log
from bitnet_ref.walk import train_nano
from bitnet_ref.walk.pictures import life_of_a_run


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A recipe of some steps, on a text in which a letter is followed by one of two."""
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join("".join(rng.choice(["ab", "cd"], 200)) for _ in range(300)))
    return replace(train_nano.RECIPE, corpus=str(file), steps=6, save_every=2, eval_every=2, log_every=2,
                   eval_windows=2, warmup=1, batch=2)


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    return train_nano.lived(tmp_path_factory.mktemp("runs") / "run", few)


def test_a_run_is_the_trainers_and_quiet(run, few, tmp_path, capsys):
    assert run.step == few.steps
    assert (run.folder / "config.json").is_file()
    train_nano.lived(tmp_path / "again", few)
    assert capsys.readouterr() == ("", "")


def test_resumed_in_a_copy_it_ends_with_the_same_bits(run, tmp_path, monkeypatch):
    began, train = [], train_nano.loop.train
    monkeypatch.setattr(train_nano.loop, "train", lambda r, data: began.append(r.step) or train(r, data))
    again = train_nano.gone_on(run, 4, tmp_path / "copy")
    assert began == [4]
    assert again.folder != run.folder
    assert np.array_equal(again.model.params.flat, run.model.params.flat)
    assert train_nano.without_clock(again.folder) == train_nano.without_clock(run.folder)
    assert (run.folder / "step-00000006").is_dir()                    # of the original nothing is removed


def test_what_is_read_off_a_log(run):
    assert list(train_nano.validations(run.folder)) == [0, 2, 4, 6]
    scales = train_nano.over_matrices(run.folder, "scale")
    last = log.read(run.folder, "layers")[-1]["layers"]
    held = [m["scale"] for m in last.values() if "scale" in m]
    assert list(scales) == [2, 4, 6]
    assert scales[6] == pytest.approx(sum(held) / len(held))
    assert list(train_nano.over_matrices(run.folder, "flipped")) == [4, 6]       # since a line before
    assert not any("seconds" in line for line in train_nano.without_clock(run.folder))


def test_what_decay_leaves():
    cfg = TrainConfig(steps=4, lr=0.1, weight_decay=0.5, schedule="constant", decay_until=0.5, warmup=0)
    assert train_nano.left_by_decay(cfg) == pytest.approx(0.95**2)


def test_the_picture_of_a_run_shows_what_the_guard_did(run, few, tmp_path):
    trouble = train_nano.lived(tmp_path / "nan", replace(few, inject="nan@3"))
    assert [e["what"] for e in log.read(trouble.folder, "event")] == ["skip"]
    calm = life_of_a_run(run.folder, run.folder, run.folder)
    assert calm.png[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(calm.png) < 64 * 1024
    assert calm.png != life_of_a_run(run.folder, trouble.folder, run.folder).png
