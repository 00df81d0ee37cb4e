"""evaluate/sliding: every token once, after enough of its past; the same figures as a plain loop."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds, small_config, small_params
from tiny import own_cache  # noqa: F401

from bitnet_ref.checks import CheckError
from bitnet_ref.data.tokenizer import from_json, train_bpe
from bitnet_ref.evaluate import __main__ as command
from bitnet_ref.evaluate import sliding
from bitnet_ref.evaluate.perplexity import score
from bitnet_ref.evaluate.records import load as load_record
from bitnet_ref.evaluate.slid import QUOTIENT, of_sums
from bitnet_ref.evaluate.sliding import (
    BLOCKS,
    Text,
    slide,
    spans,
    standard_error,
    texts_of,
    tokenised,
    word_ends,
)
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import Params, param_specs

OPS = load("numpy")


def small_model(seed=0, **given):
    cfg = small_config(**given)
    return Transformer(cfg, small_params(cfg, seed), OPS)


def stream(n, seed=0):
    """A text of n - 1 tokens, each of as many bytes as its id says; words end every 5 bytes and last."""
    ids = np.random.default_rng(seed).integers(0, 13, n)
    ends = np.concatenate([[0], np.cumsum(ids[1:])])
    return Text(ids, ends, np.union1d(np.arange(5, ends[-1], 5), ends[-1:][ends[-1:] > 0]))


def by_hand(model, text, context, stride):
    """The sum of -log p in Python, and how often each token was counted: the loop of the docs."""
    nats, times, end_before = 0.0, [0] * len(text.tokens), 0
    for begin in range(0, len(text.tokens), stride):
        end = min(begin + context, len(text.tokens) - 1)
        logits = model(text.tokens[begin:end])[0][0].astype(np.float64)
        for t in range(end_before + 1, end + 1):
            row = logits[t - 1 - begin]
            nats -= row[text.tokens[t]] - row.max() - math.log(sum(math.exp(x - row.max()) for x in row))
            times[t] += 1
        end_before = end
        if end == len(text.tokens) - 1:
            break
    return nats, times


# --- windows -----------------------------------------------------------------------------------------------


@given(n=st.integers(2, 200), context=st.integers(1, 40), data=st.data())
def test_every_token_is_counted_once_with_enough_before_it(n, context, data):
    stride = data.draw(st.integers(1, context))
    counted = []
    for begin, end, done in spans(n, context, stride):
        assert 0 <= begin <= done < end <= min(n - 1, begin + context)
        counted += range(done + 1, end + 1)
        assert begin == 0 or done + 1 - begin >= context - stride + 1
    assert counted == list(range(1, n))


def test_the_windows_of_an_example():
    assert list(spans(11, 4, 2)) == [(0, 4, 0), (2, 6, 4), (4, 8, 6), (6, 10, 8)]
    assert list(spans(4, 8, 3)) == [(0, 3, 0)]
    assert list(spans(1, 8, 3)) == []


# --- the sum -----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=seeds, n=st.integers(2, 60), batch=st.integers(1, 5), data=st.data())
def test_it_is_a_plain_loop(seed, n, batch, data):
    context = data.draw(st.integers(1, 12))
    stride = data.draw(st.integers(1, context))
    model, text = small_model(seed, n_layers=1), stream(n, seed)
    got = slide(model, [text], context, stride, batch)
    nats, times = by_hand(model, text, context, stride)
    assert got.score.nats == pytest.approx(nats, rel=1e-9)
    assert times == [0] + [1] * (n - 1)
    assert got.score[1:] == (n - 1, text.ends[-1], 13)
    assert got.words == len(text.words)
    for i, total in enumerate((got.score.nats, n - 1, text.ends[-1], len(text.words))):
        assert math.fsum(row[i] for row in got.rows) == pytest.approx(total)


def test_a_stride_of_the_context_is_the_plain_cut():
    model, text = small_model(), stream(100)
    got = slide(model, [text], 12, 12)
    want = score(model, text.tokens, np.arange(13))
    assert got.score.nats == pytest.approx(want.nats, rel=1e-9)
    assert got.score[1:] == want[1:]


def test_several_texts_are_summed_and_do_not_see_each_other():
    model, texts = small_model(), [stream(30, 1), stream(9, 2), stream(45, 3)]
    got = slide(model, texts, 12, 5, batch=3)
    alone = [slide(model, [t], 12, 5) for t in texts]
    assert got.score.nats == pytest.approx(sum(a.score.nats for a in alone), rel=1e-12)
    np.testing.assert_allclose(got.rows, [row for a in alone for row in a.rows], rtol=1e-12)


def test_batches_have_a_bound(monkeypatch):
    model, text, seen = small_model(), stream(60), []
    real = sliding._of_windows
    monkeypatch.setattr(sliding, "LOGITS", 2 * 12 * 13)
    monkeypatch.setattr(sliding, "_of_windows", lambda *args: seen.append(len(args[2])) or real(*args))
    slide(model, [text], 12, 4, batch=8)
    assert max(seen) == 2


def test_a_uniform_model_has_the_figures_of_guessing():
    cfg = small_config()
    got = slide(Transformer(cfg, Params(param_specs(cfg)), OPS), [stream(80)], 12, 3)
    assert got.score.perplexity == pytest.approx(13, rel=1e-6)
    assert got.word_perplexity == pytest.approx(13 ** (got.score.tokens / got.words), rel=1e-5)


# --- how sure it is ----------------------------------------------------------------------------------------


def drawn(rng, windows=500, like=0.6):
    """FIELDS of the windows of a text: how hard one is depends on the one before, by the share `like`."""
    hard, noise = np.empty(windows), rng.normal(size=windows)
    hard[0] = noise[0]
    for i in range(1, windows):
        hard[i] = like * hard[i - 1] + math.sqrt(1 - like * like) * noise[i]
    tokens = np.full(windows, 32.0)
    size = rng.integers(80, 160, windows).astype(float)
    return np.stack([tokens * (3 + 0.5 * hard), tokens, size, np.round(size / 5)], axis=1)


@pytest.mark.parametrize("name", QUOTIENT)
def test_the_standard_error_is_the_spread_over_texts(name):
    """Of 400 texts whose windows are alike: within 15 %; windows one by one promise less than 0.7 of it."""
    rng, figure = np.random.default_rng(0), of_sums(name)
    texts = [drawn(rng) for _ in range(400)]
    true = np.std([figure(rows.sum(axis=0)) for rows in texts], ddof=1)
    said = np.mean([standard_error(rows, figure) for rows in texts])
    assert said == pytest.approx(true, rel=0.15)
    alone = np.mean([standard_error(rows, figure, blocks=len(rows)) for rows in texts[:40]])
    if name == "perplexity":                               # the others vary by their bytes and words too
        assert alone < 0.7 * true


def test_of_a_mean_it_is_that_of_a_mean():
    """As many windows as blocks or fewer, of one length: the textbook's s / sqrt(n)."""
    rows = np.stack([np.random.default_rng(1).normal(3, 1, BLOCKS), np.ones(BLOCKS)], axis=1)
    for n in (2, 7, BLOCKS):
        want = np.std(rows[:n, 0], ddof=1) / math.sqrt(n)
        assert standard_error(rows[:n], lambda sums: sums[0] / sums[1]) == pytest.approx(want)


def test_without_two_windows_or_without_a_figure_there_is_none():
    def mean(sums):
        return sums[0] / sums[1]

    assert standard_error([[1.0, 1.0]], mean) is None
    assert standard_error([[1.0, 1.0], [1.0, 0.0]], mean) is None      # without the first there is no figure


@pytest.mark.parametrize(("context", "stride", "words"), [
    (13, 1, "--context must be from 1 to the model's 12; got 13"), (0, 1, "--context must be from 1"),
    (12, 13, "--stride must be from 1 to the context of 12; got 13"), (5, 6, "--stride must be from 1"),
    (12, 0, "--stride must be from 1"), (12, -1, "--stride must be from 1")])
def test_windows_that_are_none_are_refused(context, stride, words):
    with tiny.refusal(words):
        slide(small_model(), [stream(30)], context, stride)


def test_nothing_to_score_is_refused():
    with tiny.refusal("there must be a token to score"):
        slide(small_model(), [stream(1)], 12, 6)


# --- going on ----------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def test_an_interrupted_sum_goes_on_and_is_the_same(tmp_path, monkeypatch):
    model, text, kept = small_model(), stream(90), (tmp_path / "p", "abc")
    whole = slide(model, [text], 12, 4, batch=3)
    real, seen = sliding._of_windows, []

    def stops(*args):
        seen.append(len(args[2]))
        if len(seen) == 4:
            raise Stopped
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(sliding, "_of_windows", stops)
        with pytest.raises(Stopped):
            slide(model, [text], 12, 4, batch=3, kept=kept)
    assert (tmp_path / "p").exists()
    monkeypatch.setattr(sliding, "_of_windows", lambda *args: seen.append(len(args[2])) or real(*args))
    del seen[:]
    assert slide(model, [text], 12, 4, batch=3, kept=kept) == whole
    assert sum(seen) == len(whole.rows) - 9
    assert slide(model, [text], 12, 4, batch=3, kept=kept) == whole
    assert sum(seen) == len(whole.rows) - 9


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0, 2.0, 3.0, "x"]], "x", [[math.inf, 8.0, 1.0, 1.0]],
                                  [[1.0, 4.0, 1.0, 1.0]] * 999])
def test_a_partial_file_that_does_not_fit_is_refused(rows, tmp_path):
    from bitnet_ref.evaluate.journal import Journal

    Journal(tmp_path / "p", "abc").add({"rows": rows})
    with tiny.refusal("must hold windows of this text"):
        slide(small_model(), [stream(90)], 12, 4, kept=(tmp_path / "p", "abc"))


# --- texts -------------------------------------------------------------------------------------------------

TEXT = "Ternary weights\u2003are trits;\n\n a\ttrit is 日本 né 🙂 one.  "


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_words_end_where_split_ends_them(text):
    data = text.encode("utf-8")
    ends = word_ends(text)
    assert len(ends) == len(text.split())
    for end, word in zip(ends, text.split()):
        assert data[:end].endswith(word.encode("utf-8"))
    assert sorted(set(ends.tolist())) == ends.tolist()


def test_a_text_has_its_bytes_and_words():
    tokenizer = train_bpe([TEXT * 20], 300)
    got = tokenised(TEXT, tokenizer, 0)
    assert got.tokens[0] == 0
    assert tokenizer.decode(got.tokens[1:]) == TEXT
    assert got.ends[0] == 0
    assert got.ends[-1] == len(TEXT.encode("utf-8"))
    assert len(got.words) == len(TEXT.split()) == 11
    assert len(got.ends) == len(got.tokens)


def test_a_tokenizer_that_loses_text_is_refused():
    record = json.loads(train_bpe([TEXT * 20], 300).json)
    record["normalizer"] = {"type": "Lowercase"}
    with tiny.refusal("must come back from its tokens", "'ternary", "'Ternary", "at character 0"):
        tokenised(TEXT, from_json(json.dumps(record)), 0)


def test_files_are_texts_and_lines_of_jsonl_too(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo \xc3\xa9\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": " "}\n{"text": "four"}\n')
    texts, sha = texts_of(str(tmp_path))
    assert texts == ["one\n\ntwo é\n", "three", "four"]
    assert texts_of(str(tmp_path / "a.txt"))[0] == texts[:1]
    assert texts_of(str(tmp_path / "a.txt"))[1] != sha


@pytest.mark.parametrize("content", [b"", b" \n ", b"\xff\xfe", b"a\x00b"])
def test_what_is_no_text_is_refused(content, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with tiny.refusal("a corpus must"):
        texts_of(str(tmp_path / "a.txt"))


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    return tiny.commanded(command.main, capsys)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text(tiny.text(60, 5), encoding="utf-8")
    return path


def test_the_command_prints_and_keeps_what_it_found(run, text, tmp_path):
    code, out, err = run("--corpus", text, "--stride", 8, "--json", "--output", tmp_path / "record.json")
    assert err == ""                                       # no bar, where no terminal shows it
    figures, record = json.loads(out), load_record(tmp_path / "record.json")
    assert code == 0
    raw = text.read_text(encoding="utf-8")
    assert figures["bytes"] == len(raw.encode("utf-8"))
    assert figures["words"] == len(raw.split())
    assert (figures["context"], figures["stride"]) == (32, 8)
    nats = sum(row[0] for row in record.items)
    assert (record.kind, record.task) == ("perplexity", "some")
    assert record.item_fields == ["nats", "tokens", "bytes", "words"]
    assert record.data.how == {"context": 32, "stride": 8}
    assert record.metrics["bits per byte"].value == pytest.approx(nats / math.log(2) / figures["bytes"])
    assert record.metrics["word perplexity"].value == pytest.approx(math.exp(nats / figures["words"]))
    assert record.metrics["perplexity"].value == pytest.approx(math.exp(nats / figures["tokens"]))
    assert {m.better for m in record.metrics.values()} == {"lower"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["record.json", "some.txt"]
    _, out, _ = run("--corpus", text, "--stride", 8)
    for name, line, digits in (("bits per byte", "bits per byte   {}\n", 4),
                               ("perplexity", "{} per token", 3)):
        sure = f"(standard error {figures[f'{name} standard error']:.{digits}f})"
        assert line.format(f"{figures[name]:.{digits}f} {sure}") in out
    assert f"{len(record.items)} windows of 32 tokens, 8 apart" in out


def test_the_figures_are_said_though_the_record_cannot_be_written(run, text, tmp_path, monkeypatch):
    """The hours that made them are worth more than the file; what was kept of them stays."""
    def full(path, records):
        raise CheckError(f"{path} must be writable; got no space; free space")

    monkeypatch.setattr("bitnet_ref.evaluate.__main__.save_all", full)
    code, out, err = run("--corpus", text, "--stride", 8, "--json", "--output", tmp_path / "record.json")
    assert (code, json.loads(out)["stride"]) == (2, 8)
    tiny.assert_three_parts(err, "record.json must be writable")
    assert (tmp_path / "record.json.partial").exists()


def test_the_command_goes_on_where_it_was_but_not_with_another_model(run, text, tmp_path, monkeypatch):
    want = json.loads(run("--corpus", text, "--context", 16, "--json")[1])
    real = sliding._of_windows

    def stops(model, texts, group):
        if stops.left == 0:
            raise KeyboardInterrupt
        stops.left -= 1
        return real(model, texts, group)

    stops.left = 3
    monkeypatch.setattr(sliding, "_of_windows", stops)
    asked = ["--corpus", text, "--context", 16, "--json", "--output", tmp_path / "r.json"]
    assert run(*asked)[0] == 130
    assert (tmp_path / "r.json.partial").exists()
    code, _, err = run(*asked, "--stride", 4)
    assert code == 2
    tiny.assert_three_parts(err.splitlines()[-1], "same model, data and options", "r.json.partial")
    stops.left = -1
    assert json.loads(run(*asked)[1]) == want
    assert not (tmp_path / "r.json.partial").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--stride", 4], ["a window slides over a text", "--corpus PATH"]),
    (["--stride", 4, "--corpus", "TEXT", "--windows", 3], ["--windows must be of the evaluation"]),
    (["--context", 33, "--corpus", "TEXT"], ["--context must be from 1 to the model's 32", "got 33"]),
    (["--context", 8, "--stride", 9, "--corpus", "TEXT"], ["--stride must be from 1 to the context of 8"]),
    (["--stride", 0, "--corpus", "TEXT"], ["--stride must be from 1"]),
    (["--stride", 4, "--corpus", "nowhere.txt"], ["a corpus must be one of"]),
])
def test_what_is_wrong_is_refused(arguments, words, run, text):
    code, out, err = run(*[text if a == "TEXT" else a for a in arguments])
    assert (code, out) == (2, "")
    tiny.assert_three_parts(err.splitlines()[-1], *words)


@pytest.mark.data
def test_wikitext_2_is_read_whole():
    if not os.environ.get("BITNET_REF_DATA"):
        pytest.skip("set BITNET_REF_DATA to a folder of corpora (docs/data.md)")
    path = Path(os.environ["BITNET_REF_DATA"]) / "wikitext-2" / "test.txt"
    texts, _ = texts_of(str(path))
    assert len(texts) == 1
    assert len(texts[0].encode("utf-8")) == 1_256_449
    assert len(word_ends(texts[0])) == len(texts[0].split())
