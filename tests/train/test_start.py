"""train/start: a run begins in a folder of its own, with what it needs to be repeated written into it."""

import json
import os

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.cli import read_config_file
from bitnet_ref.data import packing
from bitnet_ref.data.batches import tail, windows
from bitnet_ref.data.dataset import Recipe, write_dataset
from bitnet_ref.data.feed import account, micro_batch
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.tokenizer import load
from bitnet_ref.train import start
from bitnet_ref.train.checkpoint import save


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_folder_holds_the_config_and_the_tokenizer(tmp_path):
    run, data = tiny.begin(tmp_path / "a" / "b", epochs=0.1)
    names = sorted(p.name for p in run.folder.iterdir())
    assert names == [".lock", "chains.json", "config.json", "tokenizer.json"]
    echo = read_config_file(str(run.folder / "config.json"))
    assert echo == {"preset": "tiny", "model": run.model.cfg.__dict__, "train": run.cfg.__dict__}
    assert load(run.folder).checksum == data.tokenizer.checksum
    assert (run.step, run.cursor, run.stale, run.best, run.seen) == (0, 0, 0, float("inf"), {})


def test_the_vocabulary_is_what_the_text_gave(tmp_path):
    """A small text has too few pairs for 4,096 entries; the model gets as many as there are."""
    run, data = tiny.begin(tmp_path / "run", vocab_size=4096)
    assert run.model.cfg.vocab_size == data.tokenizer.vocab_size < 4096
    assert run.model.params["embedding"].shape[0] == data.tokenizer.vocab_size


def test_a_tokenizer_given_is_the_one_used(tmp_path):
    given = tiny.trained() / "tokenizer.json"
    run, data = tiny.begin(tmp_path / "run", tokenizer=str(given), vocab_size=999,
                           corpus=str(tiny.corpus(seed=3)))
    assert data.tokenizer.checksum == load(given).checksum
    assert run.model.cfg.vocab_size == 300


def test_without_output_the_next_free_folder_is_taken(here):
    for n in (1, 2):
        run, _ = start.start("tiny", *tiny.configs(), None)
        assert run.folder.as_posix() == f"runs/tiny-{n:03d}"
    assert start.start("nano", *tiny.configs(), None)[0].folder.as_posix() == "runs/nano-001"


def test_a_prepared_dataset_serves_as_corpus(tmp_path):
    """It need not be prepared again, and the run is the same."""
    data = prepare(str(tiny.corpus()), None, 300, 0.1, 0, progress=False)
    run = tiny.train(tmp_path / "run", corpus=str(data.folder), steps=4)
    assert tiny.lines(run.folder, "step") == tiny.lines(tiny.train(tmp_path / "b", steps=4).folder, "step")
    assert tiny.state(tiny.resume(run.folder)) == tiny.state(run)


def test_what_will_be_seen_is_announced(tmp_path):
    run, data = tiny.begin(tmp_path / "run")
    line, about = start.announcement(run, data).split("\n")
    assert line.startswith(f"{run.folder}: ")
    assert about == account(data.feed, 20 * 4, 4)
    n = windows(len(data.train.tokens), 32)
    assert about.startswith(f"{n:,} windows of 32 tokens, the last {tail(len(data.train.tokens), 32)} tokens")


def test_a_text_shorter_than_a_batch_is_announced(tmp_path):
    (tmp_path / "short.txt").write_text(f"{tiny.text(20)}<|endoftext|>\n{tiny.text(20, 1)}")
    run, data = tiny.begin(tmp_path / "run", corpus=str(tmp_path / "short.txt"), batch=64)
    assert data.feed.windows < 64
    assert "fewer than the rows of a step, which sees some twice" in start.announcement(run, data)


@pytest.mark.parametrize("given", [{"packing": "documents"}, {"val": "a"}, {"corpus": "a mixture"}], ids=str)
def test_a_run_has_the_feed_that_was_asked_for(given, tmp_path):
    """And finds it again when it goes on."""
    more = tiny.corpus(seed=3)
    if "val" in given:
        (tmp_path / "val.txt").write_bytes(more.read_bytes()[:20_000])
        given = {"val": str(tmp_path / "val.txt")}
    elif "corpus" in given:
        given = {"corpus": f"{tiny.corpus()}=2,{more}=1"}
    run, data = tiny.begin(tmp_path / "run", **given)
    assert (data.feed.sources[0].packing is not None) == ("packing" in given)
    assert len(data.feed.sources) == 1 + ("corpus" in given)
    if "val" in given:
        assert data.val_text.read_bytes() == (tmp_path / "val.txt").read_bytes()
    save(run)
    again, found = start.resume(str(run.folder), {})
    assert again.data == run.data
    for a, b in zip(micro_batch(data.feed, 7, 5), micro_batch(found.feed, 7, 5)):
        assert a.tolist() == b.tolist()
    if "val" in given:                        # the way out where a text is lost: the dataset has its own
        assert start.resume(str(run.folder), {"corpus": str(data.folder)})[0].cfg.val is None


def test_a_corpus_of_the_default_run_has_the_sums_of_always(tmp_path):
    """A run that was saved before there was packing goes on."""
    run, _ = tiny.begin(tmp_path / "run")
    assert set(run.data) == {"tokenizer", "training tokens", "validation tokens"}


# --- refusals ----------------------------------------------------------------------------------------------


def test_the_folder_of_another_run_is_refused_and_untouched(tmp_path):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with tiny.refusal("a new run needs a new or empty folder", str(run), "--resume"):
        tiny.begin(run)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_in_the_place_of_the_folder_is_refused_and_untouched(below, tmp_path):
    (tmp_path / "file").write_text("mine")
    with tiny.refusal("file"):
        tiny.begin(f"{tmp_path / 'file'}{below}")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_turned_read_only_is_refused(tmp_path, monkeypatch):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)      # a superuser may write anywhere
    with tiny.refusal("the run folder must be writable", str(run)):
        start.resume(str(run), {})


@pytest.mark.parametrize(("content", "words"), [
    (b"", ["a corpus must hold text"]), (b" \n\n ", ["a corpus must hold text"]),
    (b"\x89PNG\r\n\x1a\n\x00\x00", ["text"]), (b"abc\x00def", ["NUL"]),
    ("Zürich".encode("latin-1"), ["UTF-8"]),
    (b"one document only", ["two different documents"]),
])
def test_a_corpus_that_is_no_text_is_refused(content, words, tmp_path):
    (tmp_path / "text.txt").write_bytes(content)
    with tiny.refusal(*words):
        tiny.begin(tmp_path / "run", corpus=str(tmp_path / "text.txt"))
    assert not (tmp_path / "run").exists()


def test_a_window_longer_than_the_text_is_refused(tmp_path):
    with tiny.refusal("must have at least 100001 tokens", "shorter context"):
        tiny.begin(tmp_path / "run", context=100_000)


def test_a_run_without_validation_text_is_refused(tmp_path):
    with tiny.refusal("training needs validation text", "--val-fraction"):
        tiny.begin(tmp_path / "run", val_fraction=0.0)


def test_a_dataset_without_validation_side_is_refused(tmp_path):
    recipe = Recipe(str(tiny.corpus()), load(tiny.trained()), val_fraction=0.0)
    data = write_dataset(tmp_path / "data", recipe, progress=False)
    with tiny.refusal("training needs validation text"):
        tiny.begin(tmp_path / "run", corpus=str(data.folder))
    with tiny.refusal("a resumed run must see the same data"):
        start.resume(str(tiny.trained()), {"corpus": str(data.folder)})


def test_an_unknown_backend_is_refused_before_any_work(tmp_path):
    with tiny.refusal("backend must be one of numpy", "'abacus'"):
        tiny.begin(tmp_path / "run", backend="abacus", corpus="nowhere")
    with tiny.refusal("backend must be one of numpy", "'abacus'"):
        start.resume(str(tiny.trained()), {"backend": "abacus"})


def test_the_echo_is_json_with_every_field(tmp_path):
    run, _ = tiny.begin(tmp_path / "run")
    echo = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    assert set(echo["model"]) == set(run.model.cfg.__dataclass_fields__)
    assert set(echo["train"]) == set(run.cfg.__dataclass_fields__)


def test_a_corpus_that_changed_since_is_named_with_the_way_out(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for seed in (0, 1):
        (folder / f"{seed}.txt").write_text(tiny.text(400, seed), encoding="utf-8")
    run, data = tiny.begin(tmp_path / "run", corpus=str(folder))
    save(run)
    began = (run.folder / "config.json").stat().st_mtime_ns
    (folder / "1.txt").write_text(tiny.text(500, 1), encoding="utf-8")
    os.utime(folder / "1.txt", ns=(began, began + 10**9))
    with tiny.refusal("a resumed run must see the same data", "got other training tokens",
                      str(folder / "1.txt"), "changed since the run began", "put the text back as it was",
                      f"or give --corpus {data.folder}") as error:
        start.resume(str(run.folder), {})
    assert "0.txt" not in str(error.value)
    found = start.resume(str(run.folder), {"corpus": str(data.folder)})[1]
    assert found.train.header == data.train.header
    for path in folder.iterdir():
        path.unlink()
    with tiny.refusal("a corpus folder must hold .txt", f"or give --corpus {data.folder}"):
        start.resume(str(run.folder), {})


def test_of_two_that_are_kept_the_way_out_has_the_runs_own_validation_text(tmp_path):
    """An edited --val leaves the training tokens as they were: the cache then has them twice."""
    val = tmp_path / "val.txt"
    begun = []
    for seed in (50, 51, 52):                              # the last stays in the file
        val.write_text(tiny.text(60, seed), encoding="utf-8")
        begun.append(tiny.begin(tmp_path / f"run-{seed}", val=str(val)))
    assert len({data.train.header for _, data in begun}) == 1
    run, data = max(begun[:2], key=lambda b: b[1].folder.name)       # the other comes first by name
    save(run)
    with tiny.refusal("got other validation tokens", f"or give --corpus {data.folder}"):
        start.resume(str(run.folder), {})
    again = start.resume(str(run.folder), {"corpus": str(data.folder)})[1]
    assert again.val.header == data.val.header


def test_other_weights_and_another_order_are_refused(tmp_path, monkeypatch):
    more = tiny.corpus(seed=3)
    run, _ = tiny.begin(tmp_path / "run", corpus=f"{tiny.corpus()}=2,{more}=1", packing="documents")
    save(run)
    with tiny.refusal("got other weights from", "none by its time changed since"):
        start.resume(str(run.folder), {"corpus": f"{tiny.corpus()}=1,{more}=1"})
    with tiny.refusal("a resumed run must keep its config", "packing: documents -> stream"):
        start.resume(str(run.folder), {"packing": "stream"})
    monkeypatch.setattr(packing, "POOL", 2)
    monkeypatch.setattr(packing.reordered, "__defaults__", (2,))
    with tiny.refusal("got other order of the documents from"):
        start.resume(str(run.folder), {})


def test_a_mixture_with_a_part_shorter_than_a_window_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("Words.")
    with tiny.refusal("a mixture must have at least 33 tokens", "short.txt"):
        tiny.begin(tmp_path / "run", corpus=f"{tiny.corpus()}=1,{tmp_path / 'short.txt'}=1",
                   val=str(tiny.corpus(seed=3)))
    assert not (tmp_path / "run").exists()
