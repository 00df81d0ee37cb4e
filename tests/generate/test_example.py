"""The model that speaks in the examples: what it says is sure, so that an example holds on every machine.

Read after: bitnet_ref/generate/example. Read next: tests/generate.
"""

import numpy as np

from bitnet_ref.generate.example import chat, speaker

LAST = np.arange(1, 257)             # every byte, as the last one


def test_it_says_the_last_byte_again_by_a_margin_that_no_rounding_turns():
    logits, _ = speaker()(np.stack([np.zeros_like(LAST), LAST], axis=1))
    second, first = np.sort(logits[:, -1])[:, -2:].T
    np.testing.assert_array_equal(np.argmax(logits[:, -1], axis=-1), LAST)
    assert np.min(first - second) > 0.5


def test_the_default_backend_says_the_same():
    for prompt in ("A", "a longer one?"):
        assert speaker("numba").generate(prompt, tokens=5, temperature=0) == prompt[-1] * 5
        assert speaker("numpy").generate(prompt, tokens=5, temperature=0) == prompt[-1] * 5


def test_a_chat_replies():
    assert "".join(chat(tokens=4).say("Hi")) == "::::"                 # after "User: Hi\nAssistant:"
