"""generate/text: what is shown is whole characters and no stop string, however the tokens cut them."""

import time

import published
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.generate.text import LONGEST_STOP, MOST_STOPS, TextStream

BYTES = train_bpe(["aab é 日"] * 20, 270)                  # nearly every byte is a token
letters = st.sampled_from(["a", "b", "ab", "é", "日", "🙂", "\ufffd", " "])


def token_of(byte):
    return next(i for i in range(BYTES.vocab_size) if BYTES.piece(i) == bytes([byte]))


TOKEN = [token_of(b) for b in range(256)]


def shown(data, stop=(), tokenizer=BYTES):
    """(pieces, the stop string that came) for bytes, one token each."""
    stream = TextStream(tokenizer, stop)
    return [stream.push(TOKEN[b]) for b in data] + [stream.finish()], stream.stopped


def by_character(text, stop):
    """The rule written out: character by character; the first string to be complete, the longer of two."""
    for end in range(len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            return text[:end - max(map(len, found))]
    return text


@given(data=st.binary(max_size=12) | st.lists(letters).map("".join).map(str.encode))
def test_any_bytes_are_shown_as_python_would_decode_them(data):
    assert "".join(shown(data)[0]) == data.decode("utf-8", "replace")


@given(text=st.lists(letters, max_size=8).map("".join))
def test_a_character_comes_with_its_last_byte(text):
    """Also U+FFFD, which a model may mean: no character waits for the next."""
    pieces, at = shown(text.encode())[0], 0
    for char in text:
        at += len(char.encode())
        assert "".join(pieces[:at]) == text[:text.index(char, len("".join(pieces[:at])) - 1) + 1]
        assert pieces[at - 1] == char
    assert pieces[-1] == ""


def test_bytes_that_cannot_be_mended_are_shown_when_that_is_known():
    """E2 82 may become the euro sign; 41 says that it will not."""
    assert shown(b"a\xe2\x82A")[0] == ["a", "", "", "\ufffdA", ""]
    assert shown(b"\xff")[0] == ["\ufffd", ""]
    assert shown("€".encode()[:2])[0] == ["", "", "\ufffd"]


@given(text=st.lists(letters, max_size=10).map("".join),
       stop=st.lists(st.lists(letters, min_size=1, max_size=3).map("".join), max_size=4))
def test_a_stop_string_and_what_follows_is_never_shown(text, stop):
    pieces, stopped = shown(text.encode(), stop)
    assert "".join(pieces) == by_character(text, stop)
    assert (stopped is None) == (not any(s in text for s in stop))


@given(text=st.text("ab", max_size=12), stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_held_back_is_no_more_than_could_begin_a_stop_string(text, stop):
    stream, said = TextStream(BYTES, stop), ""
    for n, char in enumerate(text):
        said += stream.push(TOKEN[ord(char)])
        if stream.stopped is not None:
            break
        held = text[len(said):n + 1]
        assert held == max((held[i:] for i in range(len(held)) if any(s.startswith(held[i:]) for s in stop)),
                           key=len, default="")


def test_of_two_that_end_together_the_longer_counts():
    assert "".join(shown(b"xab", ["b", "ab"])[0]) == "x"
    assert "".join(shown(b"xabc", ["abcd", "b"])[0]) == "xa"


def test_a_half_stop_string_at_the_end_is_text():
    assert shown(b"EN", ["END"]) == (["", "", "EN"], None)


@pytest.mark.parametrize("stop", [[""], ["x" * (LONGEST_STOP + 1)], ["x"] * (MOST_STOPS + 1), [3], "END"])
def test_absurd_stop_strings_are_refused(stop):
    with tiny.refusal("stop string"):
        TextStream(BYTES, stop)


def test_a_long_text_costs_no_more_for_each_token():
    """Linear: ten times the tokens take about ten times as long (a hundred times, if quadratic)."""
    def seconds(n):
        stream, start = TextStream(BYTES, ["END"]), time.perf_counter()
        for _ in range(n):
            stream.push(TOKEN[97])
        return time.perf_counter() - start

    assert min(seconds(20000) for _ in range(3)) < 30 * min(seconds(2000) for _ in range(3))


# --- published tokenizers ----------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "tinyllama", "llama-bpe"])
def test_published_tokens_stream_to_their_text(name):
    """Each text of the vectors; Llama 2's begin with the space that it puts there."""
    tok = published.tokenizer(name)
    lead = " " if "llama" in name and name != "llama-bpe" else ""
    for text, ids in published.vectors("llama-spm" if lead else name):
        stream = TextStream(tok)
        pieces = [*map(stream.push, ids), stream.finish()]
        assert "".join(pieces) == (lead + text if text else "")
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces)[len(lead):] == tok.decode(ids)


@pytest.mark.data
def test_a_continuation_keeps_the_space_that_a_text_would_lose():
    """decode strips the first space of a text; the second word of one needs it."""
    tok = published.tokenizer("llama-spm")
    whole, first = tok.encode("Once upon").tolist(), tok.encode("Once").tolist()
    assert whole[:len(first)] == first
    stream = TextStream(tok)
    assert "".join(map(stream.push, whole[len(first):])) == " upon"
    assert tok.decode(whole[len(first):]) == "upon"


def test_an_id_behind_the_tokenizers_adds_nothing():
    """Models are often padded to a round number of rows; nothing but chance draws one of those."""
    stream = TextStream(BYTES)
    assert stream.push(BYTES.vocab_size) == stream.push(10**6) == ""
