"""generate/language_model: what `bitnet_ref.load` returns; text in, text out, never half a character."""

import json

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny import own_cache  # noqa: F401

import bitnet_ref as br
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.formats.checkpoint import checkpoints
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.source import About, of_weights
from bitnet_ref.generate import continuation
from bitnet_ref.generate.decode import Step
from bitnet_ref.generate.language_model import LanguageModel


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITNET_REF_CACHE", str(tiny.folder() / "cache"))
        return br.load(tiny.trained())


def scripted(model, monkeypatch, ids):
    """A model that says `ids`, whatever it is asked."""
    def decode(transformer, prompt, tokens, how, stop, logprobs, window):
        for token in ids[:tokens]:
            yield Step(token, None)
            if token in stop:
                return

    monkeypatch.setattr(continuation, "decode", decode)
    return LanguageModel(model.transformer, model.tokenizer)


# --- the interface -----------------------------------------------------------------------------------------


def test_a_loaded_model_gives_logits_and_loss(model):
    ids = model.tokenizer.encode(tiny.text(3))[:21]
    logits, loss = model(ids[:-1], ids[1:])
    assert logits.shape == (1, 20, model.cfg.vocab_size)
    p = np.exp(logits[0].astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    assert loss == pytest.approx(-np.mean(np.log(p[np.arange(20), ids[1:]])), rel=1e-5)
    assert model(ids[:-1])[1] is None


def test_run_and_checkpoint_are_both_paths_to_a_model(model):
    last, first = checkpoints(tiny.trained())[-1], checkpoints(tiny.trained())[0]
    np.testing.assert_array_equal(br.load(str(last)).transformer.params.flat, model.transformer.params.flat)
    assert np.any(br.load(first).transformer.params.flat != model.transformer.params.flat)


def test_a_loaded_model_is_the_model_that_was_trained(model):
    np.testing.assert_array_equal(model.transformer.params.flat,
                                  tiny.begin_at_end(tiny.trained()).model.params.flat)


@pytest.mark.parametrize("bos", [None, 7])
def test_a_hugging_face_folder_is_a_path_too(model, bos, tmp_path):
    """The same trits and tokenizer; scales and floats are rounded to bfloat16. Text begins with BOS."""
    write_hf(tmp_path, of_weights(model.cfg, model.transformer.weights))
    model.tokenizer.save(tmp_path / "tokenizer.json")
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record | {"bos_token_id": bos}))
    loaded = br.load(tmp_path)
    assert loaded.first == (model.tokenizer.eos if bos is None else bos)
    for name, w in model.transformer.weights.trits().items():
        np.testing.assert_array_equal(loaded.transformer.weights[name].w_q, w.w_q)
    assert loaded.generate("Ba", tokens=3, temperature=0) == loaded.generate("Ba", tokens=3, temperature=0)


def test_a_hugging_face_folder_needs_its_tokenizer(model, tmp_path):
    write_hf(tmp_path, of_weights(model.cfg, model.transformer.weights))
    with tiny.refusal("tokenizer.json"):
        br.load(tmp_path)
    train_bpe([tiny.text()], 400).save(tmp_path / "tokenizer.json")
    with tiny.refusal(f"at most the model's {model.cfg.vocab_size} entries", "got 400"):
        br.load(tmp_path)


def test_nothing_is_learnt_by_generating(model):
    before = model.transformer.params.flat.copy()
    model.generate("Ba", 5)
    np.testing.assert_array_equal(model.transformer.params.flat, before)


# --- text --------------------------------------------------------------------------------------------------


def test_text_is_the_decoded_greedy_tokens(model):
    tok, cfg = model.tokenizer, model.cfg
    ids = [tok.eos, *tok.encode("Bace di")]
    made = []
    while len(made) < 20 and len(ids) < cfg.context:
        made.append(int(np.argmax(model(np.array(ids))[0][0, -1])))
        if made[-1] == tok.eos:
            break
        ids.append(made[-1])
    n = len(made)
    assert model.generate("Bace di", n, temperature=0) == tok.decode([t for t in made if t != tok.eos])


@pytest.mark.parametrize("prompt", ["", "Ba", "日本 🙂", "x" * 500])
def test_any_prompt_can_be_continued(model, prompt):
    text = model.generate(prompt, 10, seed=1)
    assert isinstance(text, str)
    assert text


def test_same_seed_same_text_other_seed_other_text(model):
    texts = [model.generate("Ba", 30, seed=seed) for seed in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]
    assert model.generate("Ba", 30) == texts[0]


@pytest.mark.parametrize("given", [{"top_k": 1}, {"top_k": 1, "temperature": 5.0, "seed": 8}], ids=str)
def test_one_way_to_be_greedy_is_another(model, given):
    assert model.generate("Ba", 30, **given) == model.generate("Ba", 30, temperature=0)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_join_to_the_text(model, seed):
    assert "".join(model.stream("Ba", 40, 1.5, None, seed)) == model.generate("Ba", 40, 1.5, None, seed)


@given(text=st.text(max_size=40), tokens=st.integers(0, 80))
def test_no_piece_ends_within_a_character(model, text, tokens):
    """Letters outside the vocabulary are several tokens each; a piece waits until they are complete."""
    ids = model.tokenizer.encode(text).tolist()[:tokens]
    with pytest.MonkeyPatch.context() as patch:
        pieces = list(scripted(model, patch, ids).stream("", tokens))
    whole = model.tokenizer.decode(ids)
    assert "".join(pieces) == whole
    assert all("\ufffd" not in piece for piece in pieces[:-1]) or "\ufffd" in text
    if len(ids) == len(model.tokenizer.encode(text)):
        assert whole == text


def test_an_emoji_comes_in_one_piece(model, monkeypatch):
    ids = model.tokenizer.encode("a👩🏽b").tolist()
    assert len(ids) == 1 + 4 + 4 + 1
    pieces = list(scripted(model, monkeypatch, ids).stream("", 20))
    assert [p for p in pieces if p] == ["a", "👩", "🏽", "b"]


def test_bytes_that_are_no_text_do_not_stop_the_stream(model, monkeypatch):
    """A sampled token may start a character that no other continues."""
    tok = model.tokenizer
    first_byte = tok.encode("é").tolist()[0] if len(tok.encode("é")) > 1 else tok.encode("👩").tolist()[0]
    pieces = list(scripted(model, monkeypatch, [first_byte, *tok.encode("ab").tolist()]).stream("", 20))
    assert "".join(pieces) == "\ufffdab"


@pytest.mark.parametrize("at", [0, 1, 3])
def test_the_text_ends_where_the_document_does(model, monkeypatch, at):
    tok = model.tokenizer
    ids = [tok.encode("a")[0]] * at + [tok.eos] + [tok.encode("b")[0]] * 5
    assert scripted(model, monkeypatch, ids).generate("", 20) == "a" * at


def test_a_prompt_cannot_spell_the_end_of_text(model):
    assert model.tokenizer.eos not in model.tokenizer.encode("<|endoftext|>")
    assert model.generate("<|endoftext|>", 5)


@pytest.mark.parametrize(("given", "words"), [
    ({"tokens": -1}, ["must not be negative"]), ({"temperature": -1.0}, ["must not be negative"]),
    ({"top_k": 0}, ["top_k"]), ({"top_q": 1}, ["an option of generate must be one of", "min_p", "'top_q'"]),
    ({"stop": [""]}, ["a stop string must have 1 to"]), ({"stop": "END"}, ["stop strings must be a list"]),
    ({"tokens": "3"}, ["tokens must be an integer; got '3'"]), ({"tokens": 2.0}, ["tokens must be an int"]),
    ({"tokens": True}, ["tokens must be an integer"]), ({"temperature": "hot"}, ["must be a number"]),
    ({"stop_ids": [-1]}, ["a stop id must lie in 0..", "got -1"]), ({"stop_ids": [300]}, ["got 300"]),
    ({"stop_ids": [1.5]}, ["a stop id must be an integer"]), ({"stop_ids": 7}, ["stop ids must be a list"]),
    ({"stop": None}, ["stop strings must be a list; got None"]),
    ({"seed": -3}, ["seed must lie in"]), ({"seed": 2**70}, ["2^64"]),
])
def test_bad_options_are_refused(model, given, words):
    with tiny.refusal(*words):
        model.generate("Ba", **given)


@pytest.mark.parametrize("prompt", [None, 7, b"Ba", ["Ba", None], [["Ba"]]])
def test_a_prompt_that_is_no_text_is_refused(model, prompt):
    with tiny.refusal("a prompt must be a text"):
        model.generate(prompt)


def test_a_lone_surrogate_is_refused(model):
    with tiny.refusal("Unicode"):
        model.generate("\ud800")


def test_a_missing_run_and_an_unknown_backend_are_refused(tmp_path):
    with tiny.refusal("a model must be a run's folder"):
        br.load(tmp_path / "nowhere")
    with tiny.refusal("backend must be one of", "'abacus'"):
        br.load(tiny.trained(), "abacus")


# --- settings, lists, stop strings -------------------------------------------------------------------------


def test_a_models_own_settings_are_its_defaults(model):
    about = About(bos=5, eos=(7, 9), settings={"temperature": 0.6, "top_p": 0.9, "do_sample": True})
    own = LanguageModel(model.transformer, model.tokenizer, about=about)
    assert (own.first, own.ends) == (5, (model.tokenizer.eos, 7, 9))
    plain = LanguageModel(model.transformer, model.tokenizer, 5, About(eos=(7, 9)))
    assert own.generate("Ba", 30) == plain.generate("Ba", 30, 0.6, top_p=0.9) != plain.generate("Ba", 30)
    assert own.generate("Ba", 30, temperature=0) == plain.generate("Ba", 30, temperature=0)


def test_a_text_is_the_same_alone_and_in_any_list(model):
    prompts = ["Ba", "", "Bace di, 日本", "Ba"]
    alone = [model.generate(p, 20, seed=3) for p in prompts]
    assert model.generate(prompts, 20, seed=3) == alone
    assert model.generate(prompts[::-1], 20, seed=3) == alone[::-1]
    assert model.generate([], 20) == []
    assert model.generate("Ba", 20, seed=3, sequence=1) != alone[0]


@given(seed=st.integers(0, 50), at=st.integers(0, 30), length=st.integers(1, 9), stream=st.booleans())
def test_a_text_ends_before_its_stop_string(model, seed, at, length, stream):
    whole = model.generate("Ba", 20, 1.5, seed=seed)
    stop = whole[at:at + length]
    if stop:
        made = model.stream("Ba", 20, 1.5, seed=seed, stop=["\0never", stop])
        assert "".join(made) == whole[:whole.find(stop)] == made.text
        assert (made.reason, made.stop_string) == ("stop string", stop)


def test_what_was_made_stays(model):
    made = model.continuation("Ba", 9, logprobs=True)
    assert made.reason == "interrupted"
    text = "".join(made)
    record = made.record()
    assert record["text"] == text == model.generate("Ba", 9)
    assert record["stop"] == {"reason": "length", "id": None, "string": None}
    assert model.tokenizer.decode(record["ids"]) == text
    assert (record["prefill"]["tokens"], record["decode"]["tokens"]) == (len(made.prompt), 8)
    assert record["seconds"] == record["prefill"]["seconds"] + record["decode"]["seconds"] > 0
    logits = model(np.array(made.prompt))[0][0, -1].astype(np.float64)
    assert record["logprobs"][0] == pytest.approx((logits - np.log(np.exp(logits).sum()))[made.ids[0]])
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_text_ends_at_a_stop_id(model, at):
    """Alone and in a list; the id is no part of the text."""
    whole = model.stream("Ba", 20, own_ends=False)
    "".join(whole)
    ids, end = whole.ids, whole.ids.index(whole.ids[at])
    made = model.stream("Ba", 20, stop_ids=[ids[at]])
    text = "".join(made)
    assert (made.ids, made.reason, made.stop_id) == (ids[:end], "end of text", ids[at])
    assert model.generate(["Ba", ""], 20, stop_ids=[ids[at]])[0] == text


def test_the_models_own_ends_can_be_left_out(model, monkeypatch):
    ids = [40, model.tokenizer.eos, 41]
    says = scripted(model, monkeypatch, ids)
    assert says.generate("", 3) == model.tokenizer.decode([40])
    assert says.generate("", 3, own_ends=False) == model.tokenizer.decode(ids)
    assert says.generate("", 3, own_ends=False, stop_ids=[41]) == model.tokenizer.decode(ids[:2])
    assert says.ends_with([41, 41]) == (model.tokenizer.eos, 41)
    assert says.ends_with(own_ends=False) == ()
