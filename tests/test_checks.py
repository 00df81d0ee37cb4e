"""checks: every broken rule is a CheckError whose message says what must hold, what came, and what to do."""

import numpy as np
import pytest

from bitnet_ref.checks import CheckError, NonFiniteError, ShapeError, check, expect, lookup


def test_check_is_silent_when_the_rule_holds():
    assert check(True, "rule", "got", "fix") is None


def test_check_message_has_three_parts():
    with pytest.raises(CheckError, match=r"^a must be even; got 3; use 4$"):
        check(False, "a must be even", 3, "use 4")


def test_what_a_stranger_wrote_is_one_short_line_that_no_terminal_acts_on():
    """A name of megabytes, or one that clears the screen, or one that reads backwards."""
    for text in ("x" * 1_000_000, "\x1b[2J\r\nok \u202e", "\ud800"):
        for error in (lambda t=text: check(False, f"{t} must hold", t, "use 4"),
                      lambda t=text: lookup({"a": 1}, t, t), lambda t=text: raising(t)):
            with pytest.raises(CheckError) as refused:
                error()
            said = str(refused.value)
            assert len(said) < 10_000
            assert said.isprintable()
            said.encode()
    with pytest.raises(CheckError, match=r"; got \\x1b\[2J; use 4$"):
        check(False, "rule", "\x1b[2J", "use 4")


def raising(message):
    raise CheckError(message)


def test_errors_are_value_errors_of_the_kind_asked_for():
    assert issubclass(CheckError, ValueError)
    assert issubclass(ShapeError, CheckError)
    assert issubclass(NonFiniteError, CheckError)
    with pytest.raises(NonFiniteError):
        check(False, "rule", "got", "fix", NonFiniteError)


def test_lookup_returns_the_value_of_a_table_and_the_name_in_a_collection():
    assert lookup({"a": 1, "b": 2}, "b", "letter") == 2
    assert lookup(("a", "b"), "b", "letter") == "b"


def test_lookup_lists_the_valid_names():
    with pytest.raises(CheckError, match=r"^letter must be one of a, b; got 'c'; choose one of these$"):
        lookup({"a": 1, "b": 2}, "c", "letter")


def test_expect_binds_letters():
    assert expect("x", np.zeros((2, 3, 4)), "B T D", D=4) == {"B": 2, "T": 3, "D": 4}


@pytest.mark.parametrize(("shape", "dims", "size", "message"), [
    ((2, 3), "B T D", {}, r"x must have shape \(B=?\w*, T=?\w*, D\); got \(2, 3\)"),
    ((2, 3), "B D", {"D": 4}, r"x must have shape \(B=2, D=4\); got \(2, 3\)"),
    ((2, 3), "N N", {}, r"x must have shape \(N=2, N=2\); got \(2, 3\)"),
])
def test_expect_refuses_a_letter_with_two_sizes(shape, dims, size, message):
    with pytest.raises(ShapeError, match=message):
        expect("x", np.zeros(shape), dims, **size)
