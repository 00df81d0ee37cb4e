"""The cache: made once, and again when anything that matters has changed.

Read after: bitnet_ref/data/prepare. Read next: tests/data/test_main.
"""

import os

import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.data import prepare as module
from bitnet_ref.data import split
from bitnet_ref.data.dataset import Recipe
from bitnet_ref.data.prepare import changed_since, kept, key, prepare
from bitnet_ref.data.tokenizer import train_bpe

from .conftest import files_below, story


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(story(i))
    return folder


@pytest.fixture
def written(monkeypatch):
    """The recipes that were not found in the cache."""
    recipes = []
    real = module.write_dataset

    def noted(folder, recipe, *args, **kwargs):
        recipes.append(recipe)
        return real(folder, recipe, *args, **kwargs)

    monkeypatch.setattr(module, "write_dataset", noted)
    return recipes


def again(corpus, **changes):
    return prepare(str(corpus), **{"vocab_size": 300, "progress": False, **changes})


def test_made_once(corpus, cache, written):
    first, second = again(corpus), again(corpus)
    assert len(written) == 1
    assert first.folder == second.folder
    assert first.folder.is_relative_to(cache)
    assert first.report == second.report
    assert first.val is not None


def test_made_again_on_demand(corpus, written):
    first = again(corpus).train.tokens.tolist()
    assert again(corpus, cache=False).train.tokens.tolist() == first
    assert len(written) == 2


@pytest.mark.parametrize("change", [{"vocab_size": 310}, {"val_fraction": 0.3}, {"seed": 1}])
def test_numbers_are_part_of_the_key(corpus, written, change):
    again(corpus)
    again(corpus, **change)
    assert len(written) == 2


def test_files_are_part_of_the_key(corpus, written):
    again(corpus)
    (corpus / "00.txt").write_text(story(1000))
    again(corpus)
    (corpus / "zz.txt").write_text(story(1001))
    again(corpus)
    os.utime(corpus / "zz.txt", (1, 1))
    again(corpus)
    assert len(written) == 4


def test_a_validation_text_is_part_of_the_key(corpus, tmp_path, written):
    (tmp_path / "val.txt").write_text(story(900))
    again(corpus)
    again(corpus, val=str(tmp_path / "val.txt"))
    again(corpus, val=str(tmp_path / "val.txt"))
    (tmp_path / "val.txt").write_text(story(900) + story(901))
    again(corpus, val=str(tmp_path / "val.txt"))
    assert len(written) == 3


def test_a_mixture_is_made_once_and_again_with_other_weights(corpus, tmp_path, written):
    (tmp_path / "b.txt").write_text("\n\n".join(story(900 + i) for i in range(30)))
    mixed = f"{corpus}=2,{tmp_path / 'b.txt'}=1"
    assert again(mixed).report["mixture"] == again(mixed).report["mixture"]
    assert len(written) == 1
    again(f"{corpus}=1,{tmp_path / 'b.txt'}=1")
    (tmp_path / "b.txt").write_text("\n\n".join(story(800 + i) for i in range(30)))
    again(mixed)
    assert len(written) == 3


def test_what_has_changed_is_named(corpus, tmp_path):
    moment = max(p.stat().st_mtime_ns for p in [corpus, *corpus.iterdir()])
    assert changed_since(str(corpus), moment) == []
    os.utime(corpus / "03.txt", ns=(1, moment + 10**9))
    assert changed_since(str(corpus), moment) == [str(corpus / "03.txt")]
    os.utime(corpus, ns=(1, moment + 10**9))                         # a file came or went
    assert changed_since(f"{corpus}=1,{corpus / '01.txt'}=1", moment) == [str(corpus / "03.txt"), str(corpus)]
    assert changed_since(str(tmp_path / "gone"), moment) == [str(tmp_path / "gone")]
    assert "Python" in changed_since("python-docs", moment)[0]


def test_what_the_cache_keeps(corpus, cache):
    data = again(corpus)
    sums = [data.train.header.payload_sha256, data.val.header.payload_sha256, data.tokenizer.checksum]
    (cache / "datasets/other").mkdir()
    (cache / "datasets/broken").mkdir()
    (cache / "datasets/broken/dataset.json").write_text("{}")
    assert kept(*sums) == data.folder
    for i in range(len(sums)):
        assert kept(*sums[:i], "ab" * 32, *sums[i + 1:]) is None


def test_layout_and_rules_are_part_of_the_key(corpus, monkeypatch):
    keys = {key(Recipe(str(corpus)))}
    for place, name in ((module, "VERSION"), (module, "SAMPLE"), (split, "SPAN"), (split, "MOST_BYTES")):
        monkeypatch.setattr(place, name, 12345)
        keys.add(key(Recipe(str(corpus))))
    assert len(keys) == 5


def test_the_default_corpus_is_known_by_its_python(monkeypatch):
    one = key(Recipe("python-docs"))
    assert one == key(Recipe("python-docs"))
    monkeypatch.setattr(module.sys, "version", "4.0")
    assert key(Recipe("python-docs")) != one


def test_a_given_tokenizer(corpus, tmp_path, written):
    own = train_bpe([story(1)], 280)
    own.save(tmp_path / "tokenizer.json")
    data = again(corpus, tokenizer_path=str(tmp_path / "tokenizer.json"))
    assert data.tokenizer == own
    again(corpus)
    assert len(written) == 2


def test_a_dataset_is_taken_as_it_is(corpus, tmp_path, written):
    made = again(corpus)
    taken = again(made.folder, vocab_size=999, val_fraction=0)
    assert taken.train.header == made.train.header
    assert again(made.folder, tokenizer_path=str(made.folder / "tokenizer.json")).tokenizer == made.tokenizer
    with pytest.raises(CheckError, match=r"must be validated on its own validation side; got --val x; leave"):
        again(made.folder, val="x")
    train_bpe([story(1)], 280).save(tmp_path / "other.json")
    with pytest.raises(CheckError, match=r"must be the one that .* was made with; got .*; leave it"):
        again(made.folder, tokenizer_path=str(tmp_path / "other.json"))
    assert len(written) == 1


def test_errors_pass_and_leave_nothing(corpus, cache, tmp_path, monkeypatch):
    (corpus / "99.txt").write_bytes(b"\0")
    for call in (lambda: again(corpus), lambda: again("no-such-corpus"), lambda: again(corpus, vocab_size=3),
                 lambda: again(corpus, tokenizer_path="none.json")):
        with pytest.raises(CheckError):
            call()
    assert files_below(cache) == []


def test_a_file_that_goes_away(corpus, monkeypatch):
    monkeypatch.setattr(module, "corpus_files", lambda name: [corpus / "missing.txt"])
    with pytest.raises(CheckError, match=r"must be a readable file; got No such file"):
        again(corpus)


@pytest.mark.data
def test_real_wikitext_by_its_official_split(real_data, monkeypatch):
    assert len(module.identity("wikitext-2")) == 3                   # the name and two files


def test_the_default_corpus_trains_a_whole_vocabulary():
    data = prepare("python-docs", progress=False)
    assert data.tokenizer.vocab_size == 4096
    assert data.val.header.text_bytes > 20_000
    assert data.report["repeats_removed_bytes"] > 0
    assert data.train.header.tokens < data.train.header.text_bytes / 3
