"""Each op on the port's own inputs: what a port dumped is compared with what the reference makes of the
port's other tensors, so that one wrong op spoils one line of the report and not all lines after it.

What was not dumped is computed on the way, from what was. Tolerances: codes and trits are equal, except where
the value before rounding lies on a tie to within rounding; floats agree to 1e-5 of their row's largest value
(more where the dump's own dtype is coarser), or to 1e-2 where an unseen int8 rounding lies between
(docs/numerics.md, NU.14).
Read after: conform/faults/training. Read next: conform/blame.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.conform.graph import REFERENCE, Node

OK, BAD, ABSENT, UNJUDGED = "ok", "BAD", "absent", "unjudged"
FLOATS = {"float16": 2e-3, "bfloat16": 1.6e-2}             # half a unit in the last place, and some
FLOAT, BEHIND_ROUNDING = 1e-5, 1e-2
AT_TIE = 1e-3                                              # of a code: how near counts as rounding's business
ONE_CODE = 100.0                                           # tolerances: any wrong code counts as so many
Slots = SimpleNamespace


class Verdict(NamedTuple):
    """Of one node. `error`: largest; `share`: of the tolerance; `wrong` of `size` entries, `first` index."""

    name: str
    status: str
    error: float = 0.0
    share: float = 0.0
    wrong: int = 0
    size: int = 0
    first: tuple[int, ...] = ()
    note: str = ""


class Judge:
    """The homework's nodes and a port's tensors; remembers what it has computed."""

    def __init__(self, nodes: list[Node], given: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        self.nodes = {n.name: n for n in nodes}
        self.given, self.seen = given, seen
        self.right: dict[str, Any] = {}                    # what the reference makes of the port's inputs
        self.wrong: set[str] = set()                       # tensors found BAD so far, in dataflow order
        self.wide: set[str] = set()                        # codes that the port rounded from float64

    def value(self, name: str, slots: Slots = REFERENCE, memo: dict[str, Any] | None = None) -> Any:
        """The port's tensor if it was dumped, else what `slots` make of it."""
        if name in self.seen:
            return self.seen[name]
        return self.given[name] if name in self.given else self.make(name, slots, memo)

    def make(self, name: str, slots: Slots = REFERENCE, memo: dict[str, Any] | None = None,
             wide: bool = False) -> Any:
        """What `slots` make of the port's inputs: codes in the precision of the input (`wide`: in float64, if
        that is how the port computes), floats in float64.
        """
        if slots is REFERENCE:
            memo = self.right
        memo = {} if memo is None else memo
        if name not in memo:
            node = self.nodes[name]
            inputs = [self.value(i, slots, memo) for i in (*node.inputs, *node.hints)]
            memo[name] = apply(node, slots, [_float64(x) for x in inputs] if wide else inputs)
        return memo[name]

    def hidden(self, name: str) -> bool:
        """Whether a rounding before the node cannot be seen. That of a given tensor leaves no doubt."""
        todo = [self.nodes[i] for i in self.nodes[name].inputs if i in self.nodes and i not in self.seen]
        return any((n.codes and not self._is_given(n)) or self.hidden(n.name) for n in todo)

    def _is_given(self, node: Node) -> bool:
        return all(i in self.given for i in node.inputs)

    def verdicts(self) -> list[Verdict]:
        """Of all nodes, in dataflow order."""
        return [self._verdict(name) for name in self.nodes]

    def _verdict(self, name: str) -> Verdict:
        """The port's tensor beside what its own inputs should have given."""
        if name not in self.seen:
            return Verdict(name, ABSENT)
        node, got = self.nodes[name], self.seen[name]
        inputs = [self.value(i) for i in (*node.inputs, *node.hints)]
        if not all(np.isfinite(np.asarray(x, np.float64)).all() for x in inputs[:len(node.inputs)]):
            return Verdict(name, UNJUDGED, size=got.size, note="an input of it is not finite")
        right = self.make(name)
        found = compare(name, right, got, self.tolerance(name))
        if node.codes and found.wrong and not self.hidden(name):
            found = self._at_ties(node, inputs, found)
        elif found.wrong:
            found = compare(name, right, got, self.tolerance(name), _slack(node, inputs, right))
        if found.wrong and self.wrong & set(node.inputs):
            found = self._of_right_inputs(node, found)
        if found.wrong:
            self.wrong.add(name)
        return found

    def _of_right_inputs(self, node: Node, found: Verdict) -> Verdict:
        """Perhaps only an input's dump is wrong (a scale's reciprocal), not what was computed with it."""
        inputs = [self.make(i) if i in self.wrong else self.value(i) for i in (*node.inputs, *node.hints)]
        right = apply(node, REFERENCE, inputs)
        again = compare(node.name, right, self.seen[node.name], self.tolerance(node.name))
        names = ", ".join(i for i in node.inputs if i in self.wrong)
        note = f"right for the right {names}: perhaps only its dump is wrong"
        return found if again.wrong else again._replace(note=note)

    def tolerance(self, name: str) -> float:
        """Relative to the row's largest value; 0 for codes."""
        if self.hidden(name):
            return BEHIND_ROUNDING
        if self.nodes[name].codes:
            return 0.0
        dtypes = {str(self.seen[n].dtype) for n in (name, *self.nodes[name].inputs) if n in self.seen}
        return max([FLOAT, *(FLOATS[d] for d in dtypes if d in FLOATS)])

    def _at_ties(self, node: Node, inputs: list[Any], found: Verdict) -> Verdict:
        """Codes again: in float64, and without those that lie on a tie to within rounding."""
        got = self.seen[node.name]
        wide = apply(node, REFERENCE, [_float64(x) for x in inputs])
        in_wide = compare(node.name, wide, got, 0.0)
        if in_wide.wrong < found.wrong:
            found, self.right[node.name] = in_wide, wide
            self.wide.add(node.name)
        if not found.wrong or self._is_given(node):
            return found                                   # a probe: its ties are there on purpose
        unrounded = SimpleNamespace(**{**vars(REFERENCE), "round": lambda z: z})
        z = apply(node, unrounded, [_float64(x) for x in inputs])
        tie = (np.abs(z - np.floor(z) - 0.5) < AT_TIE) & ((got == np.floor(z)) | (got == np.floor(z) + 1))
        left = compare(node.name, np.where(tie, got, self.right[node.name]), got, 0.0)
        return left._replace(note=f"{np.count_nonzero(tie)} at a tie") if not left.wrong else found


def apply(node: Node, slots: Slots, inputs: list[Any]) -> Any:
    """`node.make`, in float64 unless it rounds; NaN and infinity are results, not warnings."""
    if not node.codes:
        inputs = [_float64(x) for x in inputs]
    with np.errstate(all="ignore"):
        return np.asarray(node.make(slots, *inputs))


def _slack(node: Node, inputs: list[Any], right: np.ndarray) -> np.ndarray:
    """What the last bits of float32 inputs change, four times the largest of each row.

    It matters where an op is ill-conditioned, such as the softmax of scores of thousands.
    """
    sign = np.random.default_rng(0)
    last_bits = [x if (x := np.asarray(i)).dtype.kind in "iu"
                 else x * (1 + 2.0**-23 * sign.choice([-1.0, 1.0], x.shape)) for i in inputs]
    with np.errstate(all="ignore"):
        change = np.abs(apply(node, REFERENCE, last_bits) - right)
    change = np.where(np.isfinite(change), change, 0)
    return 4 * np.max(change, axis=-1 if right.ndim else None, keepdims=True)


def compare(name: str, right: Any, got: np.ndarray, tolerance: float, slack: Any = 0.0) -> Verdict:
    """`got` beside `right` (equal shapes), the tolerance relative to each row's largest value; and slack."""
    right, got = np.asarray(right, np.float64), np.asarray(got, np.float64)
    with np.errstate(all="ignore"):
        off = np.where(alike(right, got), 0.0, np.abs(right - got))
    off = np.where(np.isnan(off), np.inf, off)
    allowed = tolerance * rows_largest(right) + slack if tolerance else 1 / ONE_CODE
    share = off / allowed
    wrong = share > 1
    first = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.any() else ()
    return Verdict(name, BAD if wrong.any() else OK, float(off.max(initial=0)), float(share.max(initial=0)),
                   int(np.count_nonzero(wrong)), got.size, first)


def rows_largest(x: np.ndarray) -> np.ndarray:
    """The largest finite magnitude of each row (last axis), never 0."""
    finite = np.where(np.isfinite(x), np.abs(x), 0)
    largest = np.max(finite, axis=-1 if x.ndim else None, keepdims=True, initial=0)
    return np.where(largest > 0, largest, 1)


def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equal, where infinities of one sign and NaNs equal their like."""
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _float64(x: Any) -> np.ndarray:
    """Floats in float64; integers (ids, bytes, codes) as they are."""
    x = np.asarray(x)
    return x if x.dtype.kind in "iu" else x.astype(np.float64)
