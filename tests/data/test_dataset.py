"""A folder whose parts agree, made in flat memory, whole or not at all.

Read after: bitnet_ref/data/dataset. Read next: tests/data/test_prepare.
"""

import json
import os
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.data import corpus as corpus_module
from bitnet_ref.data import dataset as module
from bitnet_ref.data import download
from bitnet_ref.data import shards as shards_module
from bitnet_ref.data.dataset import (
    Recipe,
    is_dataset,
    open_dataset,
    unchanged,
    write_dataset,
)
from bitnet_ref.data.download import DATA, File
from bitnet_ref.data.split import document_hash, repeated_share
from bitnet_ref.data.tokenizer import EOS, train_bpe

from .conftest import files_below, story

NAMES = ["dataset.json", "tokenizer.json", "train.bin", "train.txt", "val.bin", "val.txt"]
LICENCE = "Everyone is permitted to copy and distribute verbatim copies of this licence document.\n"


@pytest.fixture
def corpus(tmp_path):
    """A .jsonl of 100 stories, each with the same licence below."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": story(i) + LICENCE}) + "\n" for i in range(100)))
    return str(path)


def made(tmp_path, corpus, **fields):
    return write_dataset(tmp_path / "out", Recipe(corpus, **{"vocab_size": 500, **fields}), progress=False)


def decoded(shard, tokenizer):
    """The documents of a shard."""
    parts = tokenizer.decode(shard.tokens).split(EOS)
    assert parts[0] == parts[-1] == ""
    return parts[1:-1]


def test_the_parts_agree(tmp_path, corpus):
    data = made(tmp_path, corpus)
    assert files_below(tmp_path / "out") == NAMES
    for side, shard, text in (("train", data.train, data.train_text), ("val", data.val, data.val_text)):
        docs = decoded(shard, data.tokenizer)
        assert "".join(docs).encode() == text.read_bytes()
        assert data.report[side] == {"documents": len(docs), "text_bytes": text.stat().st_size,
                                     "tokens": len(shard.tokens)}
        assert shard.header.text_bytes == data.tokenizer.token_bytes[shard.tokens].sum()
        assert shard.tokens[0] == data.tokenizer.eos
    assert open_dataset(tmp_path / "out", verify=True).report == data.report
    assert data.report["corpus"] == corpus
    assert data.tokenizer.vocab_size == data.report["vocab_size"] <= 500


def test_the_sides_share_nothing(tmp_path, corpus):
    data = made(tmp_path, corpus, val_fraction=0.2)
    train, val = (decoded(s, data.tokenizer) for s in (data.train, data.val))
    everything = {story(i) + LICENCE for i in range(100)}
    assert set(val) < everything                                     # validation stays whole
    assert {t + LICENCE for t in train} == everything - set(val)     # training loses the licence
    assert repeated_share(train, val) == 0
    assert data.report["repeats_removed_bytes"] == len(train) * len(LICENCE)
    assert max(document_hash(t, 0) for t in val) < min(document_hash(t + LICENCE, 0) for t in train)


def test_the_tokenizer_has_not_seen_validation(tmp_path, corpus):
    data = made(tmp_path, corpus)
    assert data.tokenizer == train_bpe(decoded(data.train, data.tokenizer), 500)


def test_a_tokenizer_learns_from_a_bounded_sample(tmp_path, corpus, monkeypatch):
    seen = []
    monkeypatch.setattr(module.tokenizer, "train_bpe",
                        lambda docs, n: seen.extend(docs) or train_bpe(seen, n))
    monkeypatch.setattr(module, "SAMPLE", 20_000)
    made(tmp_path, corpus, val_fraction=0.4)                         # more is held out than is sampled
    assert 4_000 < sum(map(len, seen)) < 25_000                      # of 60 stories of about 700 characters


def test_a_given_tokenizer_is_used(tmp_path, corpus):
    own = train_bpe([story(7)], 300)
    assert made(tmp_path, corpus, tokenizer=own).tokenizer == own


def test_the_same_recipe_gives_the_same_bytes(tmp_path, corpus):
    made(tmp_path, corpus)
    write_dataset(tmp_path / "again", Recipe(corpus, vocab_size=500), progress=False)
    for name in NAMES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_no_validation(tmp_path, corpus):
    data = made(tmp_path, corpus, val_fraction=0)
    assert data.val is None
    assert data.report["train"]["documents"] == 100
    assert data.report["repeats_removed_bytes"] == 0
    assert files_below(tmp_path / "out") == NAMES[:4]


def test_an_official_split_is_used_whole(tmp_path, monkeypatch):
    marker = f"\n{EOS}\n"
    train = [story(i) for i in range(20)]
    val = [story(99), f"Quoted: {story(3)}"]
    (tmp_path / "official").mkdir()
    monkeypatch.setenv(DATA, str(tmp_path))
    parts = {}
    for part, docs in (("train", train), ("valid", val)):
        path = tmp_path / "official" / f"{part}.txt"
        path.write_text(marker.join(docs), newline="")
        parts[part] = File(f"https://example.invalid/{part}.txt", path.stat().st_size,
                           download.sha256_of(path))
    monkeypatch.setitem(download.NAMED, "official", parts)
    data = made(tmp_path, "official", val_fraction=0.5)              # which then has no part in it
    assert data.report["official_split"]
    assert [d.rstrip("\n") for d in decoded(data.val, data.tokenizer)] == [d.rstrip("\n") for d in val]
    assert data.report["train"]["documents"] == 19                   # the quoted story is gone
    assert repeated_share(decoded(data.train, data.tokenizer), val) == 0


# ---- mixtures ----

@pytest.fixture
def mixture(tmp_path, corpus):
    """The stories with weight 3, and 60 tales of a file of their own, with the licence too, with weight 1."""
    path = tmp_path / "tales.txt"
    path.write_text(f"\n{EOS}\n".join(story(1000 + i) + LICENCE for i in range(60)))
    return f"{corpus}=0.75,{path}=0.25"


def test_a_mixture_is_one_dataset(tmp_path, mixture):
    data = made(tmp_path, mixture, val_fraction=0.1)
    assert files_below(tmp_path / "out") == NAMES
    stories, tales = data.report["mixture"]
    assert (stories["weight"], tales["weight"]) == (3, 1)
    sides = []
    for side, shard in (("train", data.train), ("val", data.val)):
        n, m = (entry[f"{side}_tokens"] for entry in (stories, tales))
        assert n + m + 1 == len(shard.tokens)
        parts = shard.tokens[:n + 1], shard.tokens[n:]
        docs = [data.tokenizer.decode(part).split(EOS)[1:-1] for part in parts]
        sides.append([{d.replace(LICENCE, "").strip() for d in part} for part in docs])
    for k, (first, count) in enumerate(((0, 100), (1000, 60))):
        assert sides[0][k] | sides[1][k] == {story(first + i).strip() for i in range(count)}
        assert not sides[0][k] & sides[1][k]
        assert sides[1][k]                                            # each has documents held out
    everything = [decoded(s, data.tokenizer) for s in (data.train, data.val)]
    assert repeated_share(*everything) == 0


def test_the_corpora_of_a_mixture_share_nothing_either(tmp_path, corpus, mixture):
    """What one holds out and another quotes is cut there."""
    with open(corpus, "a") as f:
        f.writelines(json.dumps({"text": f"Quoted.\n{story(1000 + i)}"}) + "\n" for i in range(60))
    data = made(tmp_path, mixture, val_fraction=0.2)
    train, val = (decoded(s, data.tokenizer) for s in (data.train, data.val))
    tales = [story(1000 + i) for i in range(60) if any(d.startswith(story(1000 + i)) for d in val)]
    assert tales
    assert repeated_share(train, tales) == 0
    assert repeated_share(train, val) == 0


def test_the_tokenizer_of_a_mixture_learns_by_the_weights(tmp_path, mixture, monkeypatch):
    seen = []
    monkeypatch.setattr(module.tokenizer, "train_bpe",
                        lambda docs, n: seen.extend(docs) or train_bpe(seen, n))
    monkeypatch.setattr(module, "SAMPLE", 40_000)
    made(tmp_path, mixture)
    tales = {story(1000 + i).strip() for i in range(60)}
    sizes = [sum(len(d) for d in seen if (d.strip() in tales) == tale) for tale in (False, True)]
    assert 0.6 < sizes[0] / sum(sizes) < 0.9                          # 0.75 by weight
    assert 25_000 < sum(sizes) < 50_000


def test_a_part_of_which_nothing_is_left(tmp_path, corpus):
    (tmp_path / "rest.txt").write_text(LICENCE)
    (tmp_path / "val.txt").write_text(LICENCE)
    with pytest.raises(CheckError, match=r"each corpus of a mixture must hold .*; got nothing but .*rest"):
        made(tmp_path, f"{corpus}=1,{tmp_path / 'rest.txt'}=1", val=str(tmp_path / "val.txt"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [
    lambda m: 7, lambda m: [7], lambda m: m[:1], lambda m: [{**m[0], "weight": 0}, m[1]],
    lambda m: [{**m[0], "weight": True}, m[1]], lambda m: [{**m[0], "train_tokens": -1}, m[1]],
    lambda m: [{**m[0], "train_tokens": 10**30}, m[1]], lambda m: [{**m[0], "corpus": None}, m[1]],
    lambda m: [{**m[0], "train_tokens": m[0]["train_tokens"] + 1},
               {**m[1], "train_tokens": m[1]["train_tokens"] - 1}],
    lambda m: [{**m[0], "val_tokens": m[0]["val_tokens"] + 1}, m[1]],
], ids=range(10))
def test_a_mixture_that_does_not_fit_its_shards(tmp_path, mixture, change):
    made(tmp_path, mixture, val_fraction=0.1)
    path = tmp_path / "out/dataset.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps({**report, "mixture": change(report["mixture"])}))
    with pytest.raises(CheckError, match=r"the mixture in .*dataset.json must .*; got .*; make it with"):
        open_dataset(tmp_path / "out")


# ---- a validation text by name ----

def test_a_named_validation_text_is_used_whole(tmp_path, corpus):
    (tmp_path / "val.txt").write_text(story(500) + story(3))
    data = made(tmp_path, corpus, val=str(tmp_path / "val.txt"), val_fraction=0.5)
    assert data.val_text.read_text() == story(500) + story(3)
    assert data.report["val_corpus"] == str(tmp_path / "val.txt")
    train = decoded(data.train, data.tokenizer)
    assert len(train) == 100                                          # one of them has its licence only
    assert repeated_share(train, [story(3)]) == 0
    assert sum(story(i) + LICENCE in train for i in range(100)) == 99
    (tmp_path / "more.txt").write_text(story(600))
    recipe = Recipe(f"{corpus}=1,{tmp_path / 'more.txt'}=1", vocab_size=300, val=str(tmp_path / "val.txt"))
    mixed = write_dataset(tmp_path / "mixed", recipe, progress=False)
    assert mixed.val_text.read_text() == story(500) + story(3)
    assert [entry["val_tokens"] for entry in mixed.report["mixture"]] == [0, 0]


def test_the_official_part_of_a_named_validation_text(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(module, "validation_documents", lambda name: iter([story(700)]))
    assert made(tmp_path, corpus, val="official").val_text.read_text() == story(700)


def test_validation_texts_that_will_not_do(tmp_path, corpus, monkeypatch):
    with pytest.raises(CheckError, match=r"a corpus must be one of .*; got '/no'"):
        made(tmp_path, corpus, val="/no")
    made(tmp_path, corpus)
    with pytest.raises(CheckError, match=r"a validation text must be text; got the dataset .*; name the"):
        write_dataset(tmp_path / "b", Recipe(corpus, val=str(tmp_path / "out")), progress=False)
    with pytest.raises(CheckError, match=r"what a dataset is made of must be text; got the dataset"):
        write_dataset(tmp_path / "b", Recipe(f"{corpus}=1,{tmp_path / 'out'}=1"), progress=False)
    monkeypatch.setattr(module, "LARGEST_VAL", 1000)
    with pytest.raises(CheckError, match=r"a validation text must have at most 1000 bytes; got more in"):
        write_dataset(tmp_path / "b", Recipe(corpus, val=corpus), progress=False)
    assert not (tmp_path / "b").exists()


def test_a_dataset_that_changes_is_noticed(tmp_path, corpus):
    data = made(tmp_path, corpus)
    unchanged(data)
    for name in ("train.bin", "val.bin"):
        data = open_dataset(tmp_path / "out")
        os.utime(tmp_path / "out" / name, (1, 1))
        with pytest.raises(CheckError, match=rf"{name} must stay as it is while a run reads it; got"):
            unchanged(data)


# ---- failures ----

def test_only_repeats(tmp_path):
    lines = [json.dumps({"text": LICENCE + " " * i}) for i in range(9)]      # all different, all the same
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    with pytest.raises(CheckError, match=r"the train side must hold text; got nothing but repeats"):
        made(tmp_path, str(tmp_path / "c.jsonl"))
    assert files_below(tmp_path) == ["c.jsonl"]


def test_a_folder_in_use(tmp_path, corpus):
    (tmp_path / "out").mkdir()
    made(tmp_path, corpus)                                           # empty: fine
    with pytest.raises(CheckError, match=r"the output must be a new or empty folder; got .*out; choose"):
        made(tmp_path, corpus)
    with pytest.raises(CheckError, match=r"the output must be a new or empty folder"):
        write_dataset(corpus, Recipe(corpus), progress=False)
    again = write_dataset(tmp_path / "out", Recipe(corpus, vocab_size=300), progress=False, replace=True)
    assert again.tokenizer.vocab_size == 300
    assert files_below(tmp_path / "out") == NAMES


def test_an_output_below_a_file(tmp_path, corpus):
    with pytest.raises(CheckError, match=r"must be writable; got Not a directory; free space or choose"):
        write_dataset(f"{corpus}/out", Recipe(corpus), progress=False)


def test_a_corpus_that_fails_half_way(tmp_path, corpus):
    with open(corpus, "a") as f:
        f.write("not json\n")
    with pytest.raises(CheckError, match=r"in line 101 of"):
        made(tmp_path, corpus)
    assert files_below(tmp_path) == ["corpus.jsonl"]


def test_another_process_was_first(tmp_path, corpus, monkeypatch):
    first = made(tmp_path, corpus)
    part = tmp_path / "part"
    part.mkdir()
    module._install(part, tmp_path / "out", replace=False)
    assert open_dataset(tmp_path / "out").report == first.report
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(OSError, match=r"not empty"):
        module._install(part, tmp_path / "other", replace=False)


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as POSIX can")
def test_a_full_disk(tmp_path, corpus):
    """No file of the process may grow beyond 20 kB: the text does not fit."""
    code = textwrap.dedent("""
        import resource, signal, sys
        from bitnet_ref.data.__main__ import main
        from bitnet_ref.cli import run_command
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        sys.exit(run_command(main, sys.argv[1:]))""")
    done = subprocess.run([sys.executable, "-c", code, "--input", corpus, "--output", str(tmp_path / "out"),
                           "--no-progress"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must be writable; got File too large; free space or choose another place" in done.stderr
    assert done.stderr.startswith(f"error: {tmp_path / 'out'}{os.sep}")            # not the temporary folder
    assert "Traceback" not in done.stderr
    assert files_below(tmp_path) == ["corpus.jsonl"]
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


# ---- folders that are not what they should be ----

def test_not_a_dataset(tmp_path):
    assert not is_dataset(tmp_path)
    with pytest.raises(CheckError, match=r"dataset.json must be readable JSON; got .*; make it"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "must be readable JSON"),
    ("[" * 100_000, "must be readable JSON"),
    ("[]", "must describe a bitnet_ref.dataset; got something else"),
    ('{"format": "x"}', "must describe a bitnet_ref.dataset"),
    ('{"format": "bitnet_ref.dataset", "version": 9}', "must be of version 1; got 9; update bitnet_ref"),
])
def test_bad_manifests(tmp_path, corpus, text, message):
    made(tmp_path, corpus)
    (tmp_path / "out/dataset.json").write_text(text)
    with pytest.raises(CheckError, match=message):
        open_dataset(tmp_path / "out")


@pytest.mark.parametrize("name", ["tokenizer.json", "train.bin", "val.bin"])
def test_a_missing_part(tmp_path, corpus, name):
    made(tmp_path, corpus)
    (tmp_path / "out" / name).unlink()
    with pytest.raises(CheckError, match=rf"{name} must be a readable file; got No such file"):
        open_dataset(tmp_path / "out")


def test_parts_of_two_datasets(tmp_path, corpus):
    made(tmp_path, corpus)
    train_bpe([story(5)], 500).save(tmp_path / "out/tokenizer.json")
    with pytest.raises(CheckError, match=r"must be made with the tokenizer there, .*; got .*; make it with"):
        open_dataset(tmp_path / "out")


# ---- memory ----

MEASURE = textwrap.dedent("""
    import sys
    from bitnet_ref.data.dataset import Recipe, write_dataset

    def peak():                     # of this program alone: ru_maxrss would begin with that of the parent
        line, = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    before = peak()
    write_dataset(sys.argv[2], Recipe(sys.argv[1], vocab_size=1000), progress=False)
    print(peak() - before)""")


def peak_memory(tmp_path, megabytes):
    """(bytes of text written, bytes of memory that preparing it took beyond the imports)."""
    words = np.array([*story(1, 4000).split(), "\n", "\n\n"])
    rng = np.random.default_rng(megabytes)
    path = tmp_path / f"{megabytes}.txt"
    with open(path, "w") as f:
        while f.tell() < megabytes << 20:
            f.write(" ".join(rng.choice(words, 100_000)))
    done = subprocess.run([sys.executable, "-c", MEASURE, path, tmp_path / f"{megabytes}.out"],
                          capture_output=True, text=True, check=True)
    return path.stat().st_size, int(done.stdout)


def test_memory_is_flat_in_small(tmp_path, monkeypatch):
    """The same with bounds a hundred times smaller, counting what Python and NumPy allocate."""
    monkeypatch.setattr(module, "SAMPLE", 1 << 14)
    for place, name in ((corpus_module, "CHUNK"), (module.tokenizer, "BATCH"), (module.split, "MOST_BYTES"),
                        (shards_module, "BLOCK")):
        monkeypatch.setattr(place, name, 1 << 14)
    monkeypatch.setattr(module.split.choose, "__defaults__", (1 << 14,))
    peaks = []
    for stories in (600, 3000):
        (tmp_path / "c.txt").write_text("\n\n".join(story(i) for i in range(stories)))
        tracemalloc.start()
        recipe = Recipe(str(tmp_path / "c.txt"), vocab_size=300)
        write_dataset(tmp_path / f"{stories}", recipe, progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000
    assert peaks[1] < (tmp_path / "c.txt").stat().st_size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat(tmp_path, capsys):
    """Eight times the text takes the same memory, a quarter of its size.

    Not to the byte: among eight times as many documents the longest is longer, and the allocator keeps the
    holes that it leaves (16 of 104 MB). Memory that grew with the text would be eight times as much.
    """
    part, part_memory = peak_memory(tmp_path, 55)
    whole, memory = peak_memory(tmp_path, 440)
    with capsys.disabled():
        print(f"\n{part:,} bytes of text: {part_memory:,} bytes of memory; {whole:,}: {memory:,}")
    assert memory < 1.5 * part_memory
    assert memory < whole / 3.5
