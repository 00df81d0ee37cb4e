"""train --compress: its table, what it says of itself, and what it refuses.

That a run in two parts equals one in one part is tested in test_resume, two ranks in test_parallel.
"""

import json
import math
import string
from argparse import Namespace

import numpy as np
import pytest
import tiny
from tiny import own_cache, refusal  # noqa: F401

import bitnet_ref as br
from bitnet_ref import convert, info
from bitnet_ref.chain.merge import ChainTokenizer, checksum
from bitnet_ref.chain.mine import mine_for
from bitnet_ref.chain.table import CHAINS, read_table, write_table
from bitnet_ref.cli import configs
from bitnet_ref.config import TrainConfig
from bitnet_ref.data.dataset import Recipe, write_dataset
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.tokenizer import load
from bitnet_ref.evaluate.corpus import score_corpus
from bitnet_ref.generate.sampling import GREEDY
from bitnet_ref.generate.spoken import SPOKEN
from bitnet_ref.train import compression, log, loop, report, start, summary

KINDS = ("first", "super")


def ended(run, data):
    """A run that was trained and has its summary, but no pictures: (run, data, summary)."""
    loop.train(run, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "draw", lambda *given: {})
        return run, data, summary.finish(run, data)


def finished(path, **given):
    """Begun, and ended."""
    return ended(*tiny.begin(path, **given))


def again(folder, to, **typed):
    """A copy of a finished run, resumed and ended."""
    return ended(*start.resume(str(tiny.copy(folder, to)), typed))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A finished run without compression, with the figure that a test gives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITNET_REF_CACHE", str(tiny.folder() / "cache"))
        folder = tmp_path_factory.mktemp("baseline") / "run"
        finished(folder)
    return folder


def with_bits(folder, bits):
    """The same run with other bits per byte in its summary."""
    text = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    (folder / "summary.json").write_text(json.dumps({**text, "bits per byte": bits}), encoding="utf-8")
    return str(folder)


# --- the table ---------------------------------------------------------------------------------------------

def test_every_run_has_its_own_table(tmp_path, monkeypatch):
    run, data = tiny.begin(tmp_path / "run")
    table = read_table(run.folder / CHAINS, data.tokenizer)
    assert table == mine_for(data)
    assert len(table.chains) > 100
    monkeypatch.setattr(compression, "mine_for", None)     # the second run finds it in the cache
    assert read_table(tiny.begin(tmp_path / "again")[0].folder / CHAINS) == table


def test_a_long_corpus_is_mined_in_stretches_from_all_over(monkeypatch):
    data = prepare(str(tiny.corpus()), None, 300, 0.1, progress=False)
    monkeypatch.setattr(compression, "MINED", 4096)
    seen = compression._sampled(data).train.tokens
    whole, size = np.asarray(data.train.tokens), 4096 // 16 - 1
    assert len(seen) == 4096
    stretches = seen.reshape(16, size + 1)
    assert (stretches[:, -1] == data.tokenizer.eos).all()
    assert stretches[0, :-1].tolist() == whole[:size].tolist()
    assert stretches[-1, :-1].tolist() == whole[-size:].tolist()
    assert compression.table_of(data._replace(report={"corpus": "so mined"})) == mine_for(
        compression._sampled(data._replace(report={"corpus": "so mined"})))


def test_a_text_without_repeats_has_an_empty_table(tmp_path):
    (tmp_path / "a.txt").write_text(string.ascii_letters + string.digits, encoding="utf-8")
    (tmp_path / "val.txt").write_text("other words", encoding="utf-8")
    run, data = tiny.begin(tmp_path / "run", corpus=str(tmp_path / "a.txt"), val=str(tmp_path / "val.txt"),
                           compress="super", vocab_size=257)
    assert read_table(run.folder / CHAINS).chains == ()
    assert data.report["compressed"]["tokens"] == data.report["compressed"]["plain tokens"]


# --- what is trained on ------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_a_run_sees_fewer_tokens_and_is_judged_on_all_of_the_text(kind, tmp_path):
    plain_run, plain = tiny.begin(tmp_path / "plain", epochs=0.5)
    run, data = tiny.begin(tmp_path / "run", compress=kind, epochs=0.5)
    assert len(data.train.tokens) < 0.9 * len(plain.train.tokens)
    assert run.cfg.steps < plain_run.cfg.steps             # of the same part of the text
    spelled = data.val.tokens
    if kind == "super":
        spelled = data.tokenizer.expanded(data.val.tokens)
    assert spelled.tolist() == plain.val.tokens.tolist()
    assert run.model.cfg.vocab_size == 300 + (len(read_table(run.folder / CHAINS).chains)
                                              if kind == "super" else 0)
    assert run.data == {**plain_run.data, "chains": checksum(read_table(run.folder / CHAINS))}
    assert load(run.folder).checksum == plain.tokenizer.checksum
    less = start.announcement(run, data).split("\n")[0]
    assert f"fewer than without --compress {kind}" in less


@pytest.mark.parametrize("harm", ["other", "gone", "damaged", "of another tokenizer"])
def test_a_run_whose_table_is_another_does_not_go_on(harm, tmp_path):
    folder = tiny.copy(tiny.trained(compress="super", steps=5), tmp_path / "run")
    file = folder / CHAINS
    table = read_table(file)
    if harm == "other":
        write_table(file, table._replace(chains=table.chains[::-1]))
    elif harm == "gone":
        file.unlink()
    elif harm == "damaged":
        file.write_text(file.read_text()[:-20])
    else:
        data = prepare(str(tiny.corpus(seed=3)), None, 280, 0.1, progress=False)
        write_table(file, mine_for(data))
    for use in (lambda: start.resume(str(folder), {}), lambda: br.load(folder)):
        with refusal(CHAINS):
            use()
    write_table(file, table)
    start.resume(str(folder), {})[0].lock.release()


def test_the_config_of_a_run_repeats_it(tmp_path):
    """It has the entries of the plain tokenizer, not those of the model."""
    run, _ = tiny.begin(tmp_path / "a", compress="super")
    run.lock.release()
    args = Namespace(config=str(tmp_path / "a" / "config.json"))
    again_, _ = start.start(*configs(args), str(tmp_path / "b"))
    assert (again_.model.cfg, again_.data) == (run.model.cfg, run.data)


def test_compression_is_no_free_choice(tmp_path):
    folder = tiny.copy(tiny.trained(compress="super", steps=5), tmp_path / "run")
    with refusal("must keep its config", "compress: super -> first"):
        start.resume(str(folder), {"compress": "first"})
    with refusal("compress must be one of off, first, super"):
        TrainConfig(compress="all")


# --- the result --------------------------------------------------------------------------------------------

def test_the_first_line_says_what_compression_has_cost(baseline, tmp_path):
    """Worse by more than the bound, not so, and nothing to compare with."""
    run, _, told = finished(tmp_path / "run", compress="first")
    assert next(iter(told)) == "verdict"
    assert told["verdict"].startswith("NOT COMPARED with a run without compression")
    assert f"--resume {run.folder} --baseline" in told["verdict"]
    assert next(iter(json.loads((run.folder / "summary.json").read_text()))) == "verdict"
    run.lock.release()
    bits = told["bits per byte"]
    bound = 1 + compression.WORSE
    for n, (base, word) in enumerate([(bits / bound * 0.999, "WORSE than without"),
                                      (bits / bound * 1.001, "no more than 1% worse"),
                                      (2 * bits, "no more than 1% worse")]):
        place = with_bits(tiny.copy(baseline, tmp_path / f"base-{n}"), base)
        run, _, told = again(tmp_path / "run", tmp_path / f"run-{n}", baseline=place)
        assert word in told["verdict"]
        assert f"{base:.4f}" in told["verdict"]
        first, *rest = summary.page(run, told).splitlines()
        assert first == told["verdict"]
        assert any("fewer training tokens" in line for line in rest)
        html = (run.folder / report.REPORT).read_text(encoding="utf-8")
        assert html.index("<strong>") < html.index("<dl>")
        assert word in html
        assert "tokens saved" in html


def test_a_run_without_compression_says_nothing_of_it(baseline):
    told = json.loads((baseline / "summary.json").read_text(encoding="utf-8"))
    assert not {"verdict", "compression"} & set(told)


def test_a_dataset_that_says_it_is_compressed_is_not_believed(tmp_path):
    """What a stranger wrote into dataset.json is no figure of ours."""
    recipe = Recipe(str(tiny.corpus(400)), load(tiny.trained()), val_fraction=0.1)
    folder = write_dataset(tmp_path / "data", recipe, progress=False).folder
    text = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**text, "compressed": "all"}))
    run, data, told = finished(tmp_path / "run", corpus=str(folder), steps=2)
    assert "compression" not in told
    assert "chains" not in run.data
    assert "fewer than without" not in start.announcement(run, data)
    run, _ = tiny.begin(tmp_path / "first", corpus=str(folder), compress="first")
    assert "chains" in run.data


def test_a_baseline_that_is_gone_in_the_end_is_no_loss(baseline, tmp_path):
    place = tiny.copy(baseline, tmp_path / "base")
    run, data = tiny.begin(tmp_path / "run", compress="first", baseline=str(place))
    (place / "summary.json").unlink()
    assert ended(run, data)[2]["verdict"].startswith("NOT COMPARED with its baseline: a baseline must")


@pytest.mark.parametrize(("wrong", "words"), [
    ("nowhere", ["a baseline must be a run that has been trained", "nowhere"]),
    ("other model", ["must have the same model"]),
    ("compressed", ["must be a run without --compress"]),
    ("other corpus", ["must be of the same corpus", "other tokenizer, training tokens, validation tokens"]),
    ("unfinished", ["must be a finished run", "None"]),
    ("no number", ["must be a finished run", "'2'"]),
    ("no JSON", ["summary.json must be JSON"]),
])
def test_a_wrong_baseline_is_refused_before_training(wrong, words, baseline, tmp_path):
    place = tiny.copy(baseline, tmp_path / "base")
    if wrong == "nowhere":
        place = tmp_path / "nowhere"
    elif wrong == "compressed":
        place = tiny.trained(compress="super", steps=5)
    elif wrong == "other corpus":
        place = tiny.train(tmp_path / "other", corpus=str(tiny.corpus(seed=3)), steps=2).folder
    elif wrong == "other model":
        place = tiny.trained(d_ff=64, steps=2)
    elif wrong == "unfinished":
        (place / "summary.json").unlink()
    elif wrong == "no number":
        with_bits(place, "2")
    else:
        (place / "summary.json").write_text("{")
    with refusal(*words):
        tiny.begin(tmp_path / "run", compress="first", baseline=str(place))
    assert not (tmp_path / "run").exists()


def test_a_baseline_is_found_from_any_folder(baseline, tmp_path, monkeypatch):
    place = tiny.copy(baseline, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    run, _ = tiny.begin(tmp_path / "run", compress="first", baseline="base")
    assert run.cfg.baseline == str(place)


def test_a_baseline_without_compression_is_refused():
    with refusal("a baseline is for a run with --compress"):
        TrainConfig(baseline="runs/nano-001")


# --- a model with super-tokens -----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def merged_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITNET_REF_CACHE", str(tiny.folder() / "cache"))
        run, data, told = finished(tmp_path_factory.mktemp("merged") / "run", compress="super")
        run.lock.release()
    return run, data, told


def test_its_figures_are_of_the_whole_text_in_both_ways(merged_run):
    run, data, told = merged_run
    c = told["compression"]
    size = int(data.tokenizer.plain.token_bytes[data.tokenizer.expanded(data.val.tokens)].sum())
    assert told["validation bytes"] == size == len(data.val_text.read_bytes())
    plain_tokens = len(data.tokenizer.expanded(data.val.tokens)) - 1
    nats = told["validation loss"] * told["validation tokens"]
    assert c["perplexity per plain token"] == pytest.approx(math.exp(nats / plain_tokens))
    assert c["tokens saved"] == 1 - c["tokens"] / c["plain tokens"] > 0.1
    model = br.load(run.folder)
    logits, loss = model(data.tokenizer.expanded(data.val.tokens)[None, :33][:, :-1],
                         data.tokenizer.expanded(data.val.tokens)[None, 1:33])
    assert logits.shape[-1] == run.model.cfg.vocab_size    # what super-tokens get is lost, not dealt out anew
    assert loss is not None
    assert c["bits per byte as plain tokens"] != told["bits per byte"]


def test_evaluate_finds_the_score_of_the_run(merged_run, tmp_path):
    run, data, told = merged_run
    own = score_corpus(str(run.folder), None)
    assert own.bits_per_byte == pytest.approx(told["bits per byte"], rel=1e-6)
    (tmp_path / "text.txt").write_bytes(data.val_text.read_bytes())
    assert score_corpus(str(run.folder), str(tmp_path / "text.txt")).bytes == own.bytes
    recipe = Recipe(str(tiny.corpus()), data.tokenizer.plain, val_fraction=0.1)
    there = write_dataset(tmp_path / "data", recipe, progress=False)
    found = score_corpus(str(run.folder), str(there.folder))
    assert found.bits_per_byte == pytest.approx(told["bits per byte"], rel=1e-6)


def test_it_generates_text_and_guesses_with_its_own_words(merged_run):
    """Its super-tokens among them; the table of its corpus is of the plain tokenizer, and refused."""
    run, data, _ = merged_run
    model = br.load(run.folder)
    assert isinstance(model.tokenizer, ChainTokenizer)
    assert model.table() == read_table(run.folder / SPOKEN)
    made = model.continuation("Ba ce", 40, GREEDY)
    assert "".join(made) == data.tokenizer.decode(made.ids)
    for chain in ("refreshed", "lookup", "off", "table", str(run.folder / SPOKEN)):
        assert br.load(run.folder, chain=chain).generate("Ba ce", 40, 0.0) == made.text
    with refusal("must be of the model's vocabulary"):
        br.load(run.folder, chain=str(run.folder / CHAINS))


def test_no_other_format_can_have_it(merged_run, tmp_path):
    folder = tiny.copy(merged_run[0].folder, tmp_path / "run")
    for name in ("a.gguf", "a.bitnet", "a.onnx", "a"):
        with refusal("a tokenizer that others know", "super-tokens", "without --compress super"):
            convert.main([str(folder), str(tmp_path / name)])
    (folder / "tokenizer.json").unlink()                   # of no tokenizer a model without one would be made
    with refusal("super-tokens"):
        convert.main([str(folder), str(tmp_path / "a")])
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_info_says_so(merged_run, capsys):
    run, _, _ = merged_run
    info.main([str(run.folder), "--json"])
    assert json.loads(capsys.readouterr().out)["file"]["compress"] == "super"


def test_the_log_says_what_was_saved(merged_run):
    run, _, told = merged_run
    (line,) = log.read(run.folder, "final")
    assert line["tokens_saved"] == told["compression"]["tokens saved"]


@pytest.mark.slow
def test_the_command_prints_it_first(tmp_path):
    done = tiny.command("train", "--output", tmp_path / "run", *tiny.flags(steps=3, compress="first"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NOT COMPARED with a run without compression")
