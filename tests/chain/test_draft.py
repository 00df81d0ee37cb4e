"""chain/draft: what each drafter says to texts whose continuation is plain, and that no text is too odd."""

from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.chain.draft import NOTHING, REACH, Draft, Lookup, Refreshed, chains, oracle
from bitnet_ref.chain.table import Chain, Table

TABLE = Table("", 99, "", 9, (
    Chain((1, 2, 3), 9, 9, (0.5, 0.9)), Chain((1, 2, 4, 5), 9, 9, (0.5, 0.1, 1.0)),
    Chain((2, 9), 9, 9, (0.3,)), Chain((7, 8), 9, 9, (1.0,))))
texts = st.lists(st.integers(0, 4), max_size=60)


def test_the_longest_beginning_decides():
    draft = chains(TABLE)
    assert draft([5, 1]) == Draft((2, 3), (0.5, 0.9))
    assert draft([1, 2]) == Draft((3,), (0.9,))             # not (2, 9), of which less has been seen
    assert draft([5, 2]) == Draft((9,), (0.3,))
    assert draft([1, 2, 4]) == Draft((5,), (1.0,))
    assert draft([1, 2, 3]) == draft([]) == NOTHING
    assert chains(TABLE._replace(chains=()))([1, 2]) == NOTHING


def test_lookup_says_what_followed_last_time():
    draft = Lookup()
    assert draft([1, 2, 3, 4]) == NOTHING
    assert draft([1, 2, 3, 4, 9, 2, 3]).tokens == (4, 9, 2, 3)
    assert draft([1, 2, 3, 4, 9, 2, 3, 5, 3]).tokens[:1] == (5,)
    assert draft([1, 1]).tokens == (1,)                     # another text
    assert len(draft([1, *range(5, 40), 1]).tokens) == REACH


def test_more_seen_is_surer():
    sure = [Lookup()([*end, 8, *end]).chances[0] for end in ([1], [1, 2], [1, 2, 3])]
    assert sure == sorted(set(sure))


def test_refreshed_takes_what_followed_twice_and_the_table_for_the_rest():
    draft = Refreshed(TABLE)
    assert draft([7]) == Draft((8,), (1.0,))
    assert draft([5, 6, 4, 5, 6]) == NOTHING
    assert draft([5, 6, 4, 5, 6, 4, 5, 6]).tokens[:1] == (4,)
    assert draft([5, 6, 4, 5, 6, 4, 5, 6]).chances[0] == 2 / 3
    assert Refreshed()([7]) == NOTHING


def test_a_refreshed_text_that_begins_anew_forgets():
    draft = Refreshed()
    assert draft([5, 6] * 4).tokens
    assert draft([5, 4, 5]) == NOTHING


def test_the_oracle_knows():
    draft = oracle([1, 2, 3])
    assert draft([1]).tokens == (2, 3)
    assert draft([1, 2, 3]) == draft([1, 2, 3, 4]) == NOTHING


@given(text=texts, steps=st.lists(st.integers(0, 60), max_size=6))
def test_drafts_are_in_order_whatever_the_text(text, steps):
    """Lengths agree, chances are chances, and one that has seen the beginning says what a new one says."""
    for make in (lambda: chains(TABLE), Lookup, Refreshed, lambda: Refreshed(TABLE)):
        used = make()
        for n in steps:
            used(text[:n])
        draft = used(text)
        assert len(draft.tokens) == len(draft.chances) <= REACH
        assert all(0 < p <= 1 for p in draft.chances)
        known = {*text, *(i for c in TABLE.chains for i in c.ids)}
        assert set(draft.tokens) <= known
        if steps == sorted(steps) and max(steps, default=-1) < len(text):
            assert draft == make()(text)
