"""Questions and their checks: what is right is told so, a plausible mistake is told what is wrong with it."""

import math

import numpy as np
import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.layers import rope
from bitnet_ref.walk import check, puzzle
from bitnet_ref.walk.exploding import misread

EVERY = {number: q for notebook in puzzle.NOTEBOOKS for number, q in puzzle.questions(notebook).items()}


def half_away(w):
    z = w / np.mean(np.abs(w))
    return np.clip(np.sign(z) * np.floor(np.abs(z) + 0.5), -1, 1).astype(np.int8)


def rstd(x, eps=1e-5):
    return (np.mean(x * x, -1, keepdims=True) + eps) ** -0.5


def norm_back(dy, x, eps):
    n = x * rstd(x, eps)
    return rstd(x, eps) * (dy - n * np.mean(dy * n, -1, keepdims=True))


# number -> answers that a reader might give, each wrong
WRONG = {
    "01.1": [1.5, 1.6, 2, 3, "three", math.nan, None],
    "01.2": [half_away, np.sign, lambda w: np.rint(w / np.mean(np.abs(w))),
             lambda w: np.clip(np.rint(w), -1, 1), lambda w: np.clip(np.rint(w / np.max(np.abs(w))), -1, 1),
             lambda w: np.clip(np.trunc(w / np.mean(np.abs(w))), -1, 1), lambda w: w.missing, "trits"],
    "01.3": [1 / 3, 0.5, 31, math.erf(0.5)],
    "01.4": [33, 31, 64, 0],
    "01.5": [0.01, 1, 0.99],
    "01.6": [lambda s, rho: s, lambda s, rho: s / rho, lambda s, rho: rho],
    "01.7": ["range", "sign", "because", 7],
    "02.1": [lambda f, x: (f(x + 1e-8) - f(x)) / 1e-8, lambda f, x: (f(x + 1e-5) - f(x - 1e-5)) / 2e-5,
             lambda f, x: np.real(f(x + 1e-30j)), lambda f, x: np.imag(f(x + 1e-30j))],
    "02.2": [lambda dy, x: x.T @ dy, lambda dy, x: dy @ x, lambda dy, x: dy.T @ x / len(x)],
    "02.3": [lambda dy, gate, up: (dy * up * np.maximum(gate, 0), dy * np.maximum(gate, 0) ** 2),
             lambda dy, gate, up: (dy * up * 2 * gate, dy * gate**2),
             lambda dy, gate, up: dy * up * 2 * np.maximum(gate, 0),
             lambda dy, gate, up: (dy * np.maximum(gate, 0) ** 2, dy * up * 2 * np.maximum(gate, 0))],
    "02.4": [lambda dy, x: dy * rstd(x), lambda dy, x: norm_back(dy, x, 0.0),
             lambda dy, x: rstd(x) * (dy - x * rstd(x) * np.sum(dy * x * rstd(x), -1, keepdims=True)),
             lambda dy, x: rstd(x) * (dy - x * rstd(x) * np.mean(dy * x * rstd(x)))],
    "02.5": [rope, lambda dy, cos, sin: rope(dy, -cos, sin), lambda dy, cos, sin: dy],
    "02.6": [lambda z, t: np.exp(z) / np.exp(z).sum(-1, keepdims=True) - np.eye(z.shape[1])[t],
             lambda z, t: (np.exp(z) / np.exp(z).sum(-1, keepdims=True) - np.eye(z.shape[1])[t]) / len(t),
             lambda z, t: -EVERY["02.6"].solution(z, t)],
    "02.7": ["x", "n", "w_hat", None],
    "03.1": [2, 3, 7, "four"],
    "03.2": [11 % 5, 3, 11, 4],
    "03.3": [lambda T, S: np.tril(np.ones((T, S), bool)), lambda T, S: np.ones((T, S), bool),
             lambda T, S: np.tril(np.ones((T, S), bool), S - T - 1),
             lambda T, S: np.triu(np.ones((T, S), bool), S - T)],
    "03.4": [lambda L, n, d: L * n * d * 2, lambda L, n, d: 2 * L * n * d, lambda L, n, d: 2 * n * d * 2],
    "03.5": [3, 101, 108, -4],
    "03.6": [0, -1, 0.5, "r"],
    "03.7": ["of the input", "of the gain", "of the loss"],
    "04.1": [lambda step, steps, lr: lr * (1 - step / steps),
             lambda step, steps, lr: lr * (1 if 2 * step <= steps else 2 / 3) * (1 - step / steps),
             lambda step, steps, lr: lr * (1 if 2 * step < steps else 2 / 3)],
    "04.2": [lambda rates, decay: 1 - np.sum(rates) * decay, lambda rates, decay: (1 - decay) ** len(rates),
             lambda rates, decay: 1 - np.prod(1 - rates * decay)],
    "04.3": [4, 9, 4.5, 10],
    "04.4": ["at the switch", "in the middle", "never"],
    "04.5": [lambda values, new: (new - np.mean(values)) / np.std(values, ddof=1),
             lambda values, new: (new - np.mean(values)) / np.mean(np.diff(values) ** 2 / 2) ** 0.5,
             lambda values, new: (new - np.mean(values)) / max(np.std(np.diff(values)), 0.02)],
    "04.6": ["skip", "rollback", "stop"],
    "04.7": ["cursor", "both", "neither"],
    "05.1": [lambda t: sum((int(t[j]) + 1) << 2 * (3 - j) for j in range(4)),
             lambda t: sum((int(t[j]) & 3) << 2 * j for j in range(4)), lambda t: t + 1],
    "05.2": [lambda byte: [byte // 3**(4 - j) % 3 - 1 for j in range(5)],
             lambda byte: [byte // 3**j % 3 for j in range(5)],
             lambda byte: [byte >> 2 * j & 3 for j in range(4)]],
    "05.3": [32, 41, 64],
    "05.4": [lambda *p: -sum(x * math.log(x) for x in p if x), lambda *p: math.log2(3),
             lambda *p: -sum(math.log2(x) for x in p if x)],
    "05.5": [261, 2084, 4168, 0.521],
    "05.6": ["an error", "zeros", "nothing"],
    "06.1": [lambda b, c, B, C: b / B + c / C, lambda b, c, B, C: min(b / B, c / C),
             lambda b, c, B, C: b / B],
    "06.2": [24, 48, 192, 768],
    "06.3": [lambda s, x: s + x.sum(), lambda s, x: s, lambda s, x: s - len(x),
             lambda s, x: s - x.sum(dtype=np.int8)],
    "06.4": ["cores", "peak", "two"],
    "06.5": [lambda r, c: r * c, lambda r, c: r * c / r, lambda r, c: r + c],
    "06.6": [lambda p, B, C: C / B, lambda p, B, C: C / B * p / 8, lambda p, B, C: C / B / p * 16],
    "06.7": [8, 5, 1.6, 16],
    "07.1": [lambda lane, d: lane + d, lambda lane, d: (lane + d) % 32, lambda lane, d: lane - d],
    "07.2": [lambda at: len(at), lambda at: len({*at}), lambda at: (at.max() - at.min()) // 32 + 1,
             lambda at: len({*(at // 32)}) + 1],
    "07.3": ["proof", "slow", "a race"],
    "07.4": [lambda w: 1, lambda w: int(np.bincount(w % 32).max()), lambda w: len({*(w % 32)}),
             lambda w: len({*w}) / 32],
    "07.5": [7, 0.44, 1.3],
    "07.6": [2.4e6, 9.6, 1.2],
    "08.1": [lambda p, n: (p + n, sum(p + i for i in range(n))), lambda p, n: (n, p * n),
             lambda p, n: (sum(p + i for i in range(n)), p + n - 1), lambda p, n: p + n - 1],
    "08.2": [math.e, 2, 0.5, math.exp(0.5)],
    "08.3": [lambda p, t: int(np.sum(np.cumsum(np.sort(p)[::-1]) < t)), lambda p, t: int(np.sum(p > t)),
             lambda p, t: 1 + int(np.sum(np.cumsum(p) < t))],
    "08.4": ["draws before it", "the prompt", "t"],
    "08.5": ["worse", "slower and worse", "another"],
    "08.6": [lambda a: float(np.sum(np.cumprod(a))), lambda a: 1 + float(np.sum(a)),
             lambda a: 1 + float(np.prod(a))],
    "08.7": [1.6, 0.6 / 1.3, 1.3],
    "09.1": [misread, lambda packed: np.concatenate([packed >> 2 * i & 3 for i in range(4)]),
             lambda packed: np.vstack([(packed >> 6 - 2 * i & 3).astype(np.int8) - 1 for i in range(4)])],
    "09.2": [2.5, 1, -0.4],
    "09.3": [0.3, 0.4, 1 / 3, 1],
    "09.4": ["norms", "my own decoder in Python", "luck"],
    "10.1": [lambda nats, n_bytes: nats / n_bytes, lambda nats, n_bytes: nats / 8 / n_bytes,
             lambda nats, n_bytes: nats * math.log(2) / n_bytes],
    "10.2": ["B", "both", 3.0],
    "10.3": [lambda logprobs, sizes: np.argmax(logprobs), lambda logprobs, sizes: np.argmin(logprobs / sizes),
             lambda logprobs, sizes: np.argmax(logprobs * sizes)],
    "10.4": [lambda p, n: math.sqrt(p * (1 - p) / n), lambda p, n: p * (1 - p) / (n - 1),
             lambda p, n: math.sqrt(p * (1 - p))],
    "10.5": [lambda ours, theirs: 100 * (ours - theirs) / theirs,
             lambda ours, theirs: (theirs - ours) / theirs,
             lambda ours, theirs: 100 * (theirs - ours) / ours],
    "10.6": [2 - 1.96 / math.sqrt(3), 2 - 4.303, 1, 0],
    "10.7": ["a win", "equal", "a loss"],
}


def test_wrong_answers_to_every_question():
    assert WRONG.keys() == EVERY.keys()
    assert all(len(answers) >= 2 for answers in WRONG.values())


@pytest.mark.parametrize("number", EVERY)
def test_the_solution_is_right(number):
    verdict = check(number, EVERY[number].solution)
    assert verdict.right, verdict
    assert verdict
    assert repr(verdict) == f"{number}: right."


@pytest.mark.parametrize("number", EVERY)
@pytest.mark.filterwarnings("ignore")                     # of the mistakes themselves
def test_mistakes_are_told_in_three_parts(number):
    for answer in WRONG[number]:
        verdict = check(number, answer)
        assert verdict.right is False, f"{number}: {answer!r} passed"
        assert not verdict
        assert re_parts(repr(verdict), EVERY[number].hint), verdict


def re_parts(said, hint):
    rule, got, what_to_do = said.split("; got ")[0], "; got " in said, said.endswith(f"; {hint}")
    return len(rule) > len("01.1: wrong. ") and got and what_to_do


@pytest.mark.parametrize("number", EVERY)
def test_no_answer_yet_is_neither(number):
    verdict = check(number, ...)
    assert verdict.right is None
    assert not verdict
    assert repr(verdict) == f"{number}: no answer yet. {EVERY[number].spec}"


@pytest.mark.parametrize("number", [n for n, q in EVERY.items() if callable(q.solution)])
def test_a_function_that_returns_nothing_yet_is_no_answer(number):
    assert check(number, lambda *args: ...).right is None


@pytest.mark.parametrize("number", EVERY)
def test_a_question_is_one_line(number):
    q = EVERY[number]
    assert "\n" not in q.spec + q.hint
    assert q.spec[-1] in "?."
    assert not q.hint.endswith(".")


def test_answers_leave_the_cases_as_they_were():
    def spoils(w):
        answer = EVERY["01.2"].solution(w)
        w[:] = 0
        return answer

    assert check("01.2", spoils)
    assert check("01.2", EVERY["01.2"].solution)
    assert not check("01.2", np.zeros_like)


def test_shapes_and_kinds_must_fit():
    judge = puzzle.works_like(lambda: np.ones((2, 3)), ())
    assert judge(lambda: np.ones((2, 3))) == ""
    for bad in (np.ones((3, 2)), np.ones((1, 3)), 1.0, "ones", None, np.full((2, 3), np.nan), [1, 2]):
        assert judge(lambda bad=bad: bad), bad
    pair = puzzle.works_like(lambda: (1.0, 2.0), ())
    assert pair(lambda: (1.0, 2.0)) == ""
    assert pair(lambda: (1.0,))
    assert pair(lambda: (2.0, 1.0))
    assert pair(lambda: 1.0)


class Refuses:
    """An object that goes wrong whatever one does with it."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("no array")

    __float__ = __eq__ = __repr__ = __str__ = __array__
    __hash__ = None


STRANGE = [[[1], [2, 3]], 10**400, 10**5000, np.array(["a", "b"]), np.array([1.0, 2.0]), 1j, Refuses(),
           [Refuses()], {}, b"x", np.array(None), (), [], np.zeros((0, 3)), float("inf"), object, lambda: 1,
           np.full((7, 5), np.inf), np.zeros((7, 5), complex), np.zeros(3, "M8[s]")]


@pytest.mark.parametrize("number", EVERY)
@pytest.mark.parametrize("i", range(len(STRANGE)))
def test_a_wrong_answer_of_whatever_kind_raises_nothing(number, i):
    for answer in (STRANGE[i], lambda *args: STRANGE[i], lambda *args: (STRANGE[i], STRANGE[i])):
        verdict = check(number, answer)
        assert verdict.right is False, (number, verdict)
        assert re_parts(repr(verdict), EVERY[number].hint), verdict
        assert len(repr(verdict)) < 900


def test_what_is_told_of_arrays():
    """How far they are apart where they fit; else the shape or the type, and not the whole array."""
    judge = puzzle.works_like(lambda: np.ones((20, 30)), (), tolerance=1e-6)
    assert judge(lambda: np.full((20, 30), 1.5)).endswith("by more than 1e-06; got 0.5 at the worst")
    assert "(20, 30); got shape (3,)" in judge(lambda: np.ones(3))
    assert "got ndarray of <U1" in judge(lambda: np.array(["a"]))
    assert "got NoneType: None" in judge(lambda: None)
    assert "got ZeroDivisionError: " in judge(lambda: 1 / 0)
    codes = puzzle.works_like(lambda: np.array([2**60, 1]), ())
    assert codes(lambda: [2**60, 1]) == ""
    assert codes(lambda: [2**60 + 1, 1])


def test_a_tuple_may_come_as_a_list_or_an_array():
    judge = puzzle.works_like(lambda: (np.ones(3), np.zeros(3)), ())
    for good in ([np.ones(3), np.zeros(3)], np.stack([np.ones(3), np.zeros(3)])):
        assert judge(lambda good=good: good) == ""
    assert "part 2: " in judge(lambda: np.ones((2, 3)))
    assert "2 values; got ndarray of float64" in judge(lambda: np.ones(3))
    assert judge(lambda: np.array(1.0))


def test_no_such_question():
    for number in ("01.99", "77.1", "", "trits"):
        with pytest.raises(CheckError, match="must be one of"):
            check(number, 1)
