"""The pictures of the notebooks, one hero to each, drawn from what the reader has just computed.

A `Picture` is bytes and shows itself: no backend to choose, no state of pyplot. Few colours are kept, a third
of the bytes, since the heroes are stored in the repository.
Read after: walk/evaluate. Read next: walk/kernel_pictures.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bitnet_ref.bench.contest import LOSS, WIN, Row
from bitnet_ref.bench.interval import delta
from bitnet_ref.layers import attention, rope
from bitnet_ref.layers.rope import rope_table
from bitnet_ref.pack.rans import entropy, histogram, pack_rans
from bitnet_ref.pack.rosetta import LAYOUTS, pack
from bitnet_ref.quant import absmean_ternary, ternary_stats
from bitnet_ref.train import log
from bitnet_ref.walk.derivative import array_error, complex_step
from bitnet_ref.walk.train_nano import over_matrices

MINUS, ZERO, PLUS, INK = "#4a7fc6", "#c9c9c9", "#d1603d", "#222222"
COLOURS = 128


@dataclass(frozen=True, repr=False)
class Picture:
    """A PNG, and in words what is to be seen in it."""

    png: bytes
    words: str

    def __repr__(self) -> str:
        return self.words

    def _repr_png_(self) -> bytes:
        return self.png


def finished(figure: Figure, words: str) -> Picture:
    """The figure as a Picture.
    >>> figure = Figure(); _ = figure.subplots().plot([1, 2])
    >>> finished(figure, "a line that rises")
    a line that rises
    """
    from PIL import Image  # matplotlib's own dependency

    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(small, format="png", optimize=True)
    return Picture(small.getvalue(), words)


def latent_and_trits(w: np.ndarray, corner: int = 20) -> Picture:
    """Notebook 01: a corner of w (N, K), its trits, and where the thresholds lie among all weights.
    >>> latent_and_trits(np.random.default_rng(0).normal(size=(64, 64))).png[1:4]
    b'PNG'
    """
    w_q, w_scale = absmean_ternary(w)
    minus, zero, plus, _, bits = ternary_stats(w_q, w_scale)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    most = 3 * w_scale
    trits = ListedColormap([MINUS, "#f4f4f4", PLUS])
    for ax, shown, colours, top, title in (
            (left, w, "RdBu_r", most, f"latent weights, the first {corner} x {corner}"),
            (middle, w_q, trits, 1, "their trits")):
        ax.imshow(shown[:corner, :corner], cmap=colours, vmin=-top, vmax=top)
        ax.set(title=title, xticks=[], yticks=[])
    counts, edges = np.histogram(w / w_scale, np.linspace(-4, 4, 121))
    centres = (edges[1:] + edges[:-1]) / 2
    right.bar(centres, counts / w.size, width=edges[1] - edges[0],
              color=np.where(centres < -0.5, MINUS, np.where(centres > 0.5, PLUS, ZERO)))
    top = 1.3 * counts.max() / w.size
    for x, share, name, colour in ((-2.4, minus, "−1", MINUS), (0, zero, "0", INK), (2.4, plus, "+1", PLUS)):
        right.text(x, 0.93 * top, f"{name}: {share:.1%}", ha="center", color=colour, weight="bold")
    right.vlines([-0.5, 0.5], 0, 0.85 * top, color=INK, ls="--", lw=1)
    right.set(title=f"thresholds at half the scale: {bits:.3f} bits a trit", ylim=(0, top), yticks=[],
              xlabel="weight / scale  (scale = mean |w|)")
    return finished(figure, "a corner of a matrix, its trits, and a histogram cut at half of the scale")


def steps_of_a_derivative(f: Callable[[Any], Any], x: np.ndarray, v: np.ndarray,
                          exact: np.ndarray) -> Picture:
    """Notebook 02: the error of f'(x) v by differences and by the complex step, over the step h.

    x, v (...)  `exact`: by the hand-written backward, or known otherwise.
    >>> x = np.array([0.5, 1.0])
    >>> steps_of_a_derivative(np.exp, x, np.ones(2), exact=np.exp(x)).words
    'error over step: differences turn up again, the complex step does not'
    """
    sizes = 10.0 ** np.arange(-30, 0)
    ways = {"forward difference": (lambda h: (f(x + h * v) - f(x)) / h, MINUS, "s"),
            "central difference": (lambda h: (f(x + h * v) - f(x - h * v)) / (2 * h), INK, "^"),
            "complex step": (lambda h: complex_step(f, x, v, h), PLUS, "o")}
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    ax = figure.subplots()
    for name, (way, colour, mark) in ways.items():
        errors = [max(array_error(way(h), exact), np.finfo(float).epsneg) for h in sizes]
        ax.loglog(sizes, errors, color=colour, marker=mark, ms=4, lw=1.3,
                  label=f"{name}: at best {min(errors):.0e}")
    ax.axhline(np.finfo(float).eps, color=INK, lw=0.8, ls=":")
    ax.text(0.1, 4e-16, "one rounding", fontsize=8, color=INK, ha="right")
    ax.set(title="How wrong is a derivative?", xlabel="step h", ylabel="relative error", ylim=(1e-17, 30))
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(0.28, 0.42))
    return finished(figure, "error over step: differences turn up again, the complex step does not")


def who_reads_whom(n_heads: int = 8, n_kv_heads: int = 2, head_dim: int = 32, T: int = 48) -> Picture:
    """Notebook 03: RoPE's angles, a score that knows the distance alone, and what each head reads.
    >>> who_reads_whom(n_heads=4, n_kv_heads=2).words
    'angles over positions; three curves of one score that coincide; heads in runs'
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.25, 1.25))
    cos, sin = rope_table(np.arange(256), head_dim, 10000.0, np.float64)
    left.imshow(cos[:T, 0].T, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
    left.set(title="RoPE: cos of the angle", xlabel="position", ylabel="pair")
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, head_dim))
    turned_q, turned_k = (rope(np.repeat(a, 256, axis=1), cos, sin)[0, :, 0] for a in (q, k))
    distance = np.arange(T)
    for at, colour, size in ((60, MINUS, 9), (120, PLUS, 5.5), (240, INK, 2.5)):
        middle.plot(distance, turned_k[at - distance] @ turned_q[at], color=colour, marker="o", ms=size,
                    lw=0.8, label=f"query at {at}")
    middle.set(title="one query, one key: the score", xlabel="distance")
    middle.legend(frameon=False, fontsize=8)
    v = np.broadcast_to(np.eye(n_kv_heads), (1, T, n_kv_heads, n_kv_heads))    # each names its own head
    q, k = (rng.normal(size=(1, T, n, n_kv_heads)) for n in (n_heads, n_kv_heads))
    o, _ = attention(q, k, v)
    right.imshow(o[0, -1].T, aspect="auto", cmap=ListedColormap(["#f4f4f4", PLUS]), vmin=0, vmax=1)
    right.set(title="grouped queries: who reads which keys", xlabel="query head", ylabel="key/value head",
              xticks=range(n_heads), yticks=range(n_kv_heads))
    right.set_xticks(np.arange(n_heads + 1) - 0.5, minor=True)
    right.set_yticks(np.arange(n_kv_heads + 1) - 0.5, minor=True)
    right.grid(which="minor", color="white", lw=3)
    right.tick_params(which="minor", length=0)
    return finished(figure, "angles over positions; three curves of one score that coincide; heads in runs")


def life_of_a_run(quiet: Path, guarded: Path, alone: Path) -> Picture:
    """Notebook 04: the loss and the flips of three runs over the batches they saw, from their logs.
    >>> from bitnet_ref.train.loop import train; from bitnet_ref.train.small import small_run
    >>> run, data = small_run(); train(run, data)
    >>> life_of_a_run(run.folder, run.folder, run.folder).png[1:4]
    b'PNG'
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.7, 1))
    runs = {"no guard": (alone, MINUS), "guarded": (guarded, PLUS), "undisturbed": (quiet, INK)}
    for name, (folder, colour) in runs.items():
        steps, events = log.read(folder, "step"), log.read(folder, "event")
        above.plot(*_by_batch(steps), color=colour, lw=1, label=name)
        below.plot(*_points(over_matrices(folder, "flipped")), color=colour, marker="o", ms=2.5, lw=1)
        for what, mark, size, means in (("skip", "x", 4, "a batch skipped"),
                                        ("rollback", "v", 9, "back to a checkpoint")):
            seen = [(e["cursor"] - 1, e["loss"]) for e in events if e["what"] == what]
            if seen:
                above.plot(*zip(*seen), mark, color=PLUS, ms=size, ls="", label=means)
    switch = next(line["cursor"] for line in log.read(quiet, "step") if not line["decay"])
    for ax in (above, below):
        ax.axvline(switch, color=INK, lw=0.8, ls=":")
        ax.grid(alpha=0.25)
    above.set(title="Loss of each batch", ylabel="nats a token")
    above.legend(frameon=False, ncols=2, fontsize=9)
    below.set(title="Trits flipped in ten steps; dotted: the undisturbed run's rate drops and its decay ends",
              xlabel="batches seen", ylabel="share", yscale="log")
    return finished(figure, "loss and flips of three runs: random batches are skipped and a damaged model is "
                            "taken back; without the guard both are learnt")


def _by_batch(steps: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Batches and losses of a log, with a gap where batches were not applied."""
    x: list[int] = []
    y: list[float] = []
    for line in steps:
        if x and line["cursor"] > x[-1] + 2:
            x.append(line["cursor"] - 2)
            y.append(float("nan"))
        x.append(line["cursor"] - 1)
        y.append(line["loss"])
    return x, y


def _points(values: dict[int, float]) -> tuple[list[int], list[float]]:
    """What a logarithmic axis can show."""
    return [x for x in values if values[x] > 0], [y for y in values.values() if y > 0]


def bits_of_layouts(w_q: np.ndarray) -> Picture:
    """Notebook 05: how often each trit of w_q int8 (N, K) occurs, and what each way to store them spends.
    >>> w_q = np.random.default_rng(0).integers(-1, 2, (128, 256)).astype(np.int8)
    >>> bits_of_layouts(w_q).png[1:4]
    b'PNG'
    """
    counts = histogram(w_q)
    spent = {name: 8 * pack(name, w_q).size / w_q.size for name in LAYOUTS}
    spent["rans"] = 8 * pack_rans(w_q).size / w_q.size
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.2))
    for i, (n, colour) in enumerate(zip(counts, (MINUS, ZERO, PLUS))):
        left.bar(i, n / w_q.size, color=colour)
        left.text(i, n / w_q.size, f"{n / w_q.size:.1%}\n{np.log2(w_q.size / n):.2f} bits", ha="center",
                  va="bottom", fontsize=9)
    left.set(title="the trits of a model", yticks=[], ylim=(0, 1.25 * max(counts) / w_q.size))
    left.set_xticks(range(3), ["−1", "0", "+1"])
    names = sorted(spent, key=lambda name: -spent[name])
    right.barh(names, [spent[name] for name in names],
               color=[PLUS if name in ("i2", "b3", "rans") else ZERO for name in names])
    for i, name in enumerate(names):
        right.text(spent[name] + 0.01, i, f"{spent[name]:.3f}", va="center", fontsize=8)
    right.axvline(np.log2(3), color=INK, lw=1, ls="--")
    right.axvline(entropy(counts), color=MINUS, lw=1)
    right.set(title=f"bits a trit: entropy {entropy(counts):.3f} (line), log2(3) {np.log2(3):.3f} (dashes)",
              xlim=(0, 1.1 * max(spent.values())))
    right.tick_params(axis="y", labelsize=8)
    return finished(figure, "shares of the three trits, and the bits that each layout spends on one")


def guesses_in_texts(texts: list[list[list[tuple[str, bool]]]], formula: dict[str, np.ndarray],
                     counted: dict[str, list[float]], width: int = 60) -> Picture:
    """Notebook 08: texts, each as the tokens of its calls, (as shown, whether guessed); and tokens a call
    over the length k of a guess, by the formula, and counted.   each (k + 1,)

    >>> text = [[("the", True), ("$x", False)], [(".", False)]]
    >>> guesses_in_texts([text], {"one": np.arange(1.0, 9)}, {"one": [1.0, 1.5]}).png[1:4]
    b'PNG'
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    y = 0.0
    for text in texts:
        y = _calls_of(text, left, y, width) - 1.5
    calls = [call for text in texts for call in text]
    left.set(xlim=(0, width), ylim=(y + 0.8, 0.7), xticks=[], yticks=[],
             title=f"{sum(map(len, calls))} tokens in {len(calls)} calls: coloured were guessed")
    left.spines[["left", "bottom"]].set_visible(False)
    for (name, values), colour in zip(formula.items(), (PLUS, MINUS, INK)):
        right.plot(values, color=colour, lw=1.3)
        right.plot(counted[name], color=colour, ls="", marker="o", ms=4, label=name)
    right.set(title="tokens a call makes: (SP.2) and counted", xlabel="tokens guessed, at most",
              ylim=(0.8, None))
    right.grid(alpha=0.25)
    right.legend(frameon=False, fontsize=8)
    return finished(figure, "texts whose tokens are coloured where they were guessed, and tokens a call over "
                            "the length of a guess: dots that were counted, and the lines of the formula")


def _calls_of(text: list[list[tuple[str, bool]]], ax: Any, y: float, width: int) -> float:
    """Draws the tokens in lines of `width` letters from y down; a gap where a call begins. The last y."""
    x = 0
    for call in text:
        for n, (piece, was_guessed) in enumerate(call):
            if x + len(piece) > width:
                x, y = 0, y - 1
            gap = 0.25 * (n == 0)
            ax.add_patch(Rectangle((x + gap, y - 0.42), len(piece) - gap, 0.84, lw=0,
                                   color="#f2b8a0" if was_guessed else "#e4e4e4"))
            ax.text(x + len(piece) / 2, y, piece.replace("$", r"\$"), family="monospace", fontsize=9,
                    ha="center", va="center", color=INK)
            x += len(piece)
    return y


def norms_by_layer(norms: dict[str, np.ndarray]) -> Picture:
    """Notebook 09: how the stream grows, a curve for each way to read the file.   each (L + 1,)
    >>> norms_by_layer({"right": np.array([1.0, 10.0]), "misread": np.array([1.0, 20.0])}).words
    'norm of the stream over the layers: both curves grow a hundredfold and more'
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    ax = figure.subplots()
    for (name, values), colour in zip(norms.items(), (MINUS, PLUS)):
        ax.semilogy(values, color=colour, marker="o", ms=4, label=f"{name}: {values[-1]:,.0f} at the end")
    ax.set(title="Which of the two is wrong?", xlabel="layer", ylabel="norm of the stream")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    return finished(figure, "norm of the stream over the layers: both curves grow a hundredfold and more")


def deltas(rows: list[Row]) -> Picture:
    """Notebook 10: each row's delta with its interval and its seeds, around zero. Only rows that have one.
    >>> row = Row("equal bytes", "text", "perplexity", "lower", "a", "b", 9.0, 10.0, [9.0], [10.0], 10.0, 8.0,
    ...           12.0, WIN, 100, "bytes")
    >>> deltas([row]).words
    'deltas around zero, each with an interval: equal bytes, perplexity: win'
    """
    known = [(row, row.delta, row.low, row.high) for row in rows
             if row.delta is not None and row.low is not None and row.high is not None]
    figure = Figure(figsize=(9, 1.4 + 0.45 * len(known)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color=INK, lw=1)
    for i, (row, middle, low, high) in enumerate(known):
        colour = {WIN: PLUS, LOSS: MINUS}.get(row.verdict, "#8a8f98")
        ax.plot([low, high], [i, i], color=colour, lw=7, alpha=0.35, solid_capstyle="butt")
        seeds = [float(delta(o, t, row.better)) for o, t in zip(row.values, row.others)]
        ax.plot(seeds, [i] * len(seeds), "o", color=colour, ms=4)
        ax.plot([middle], [i], "|", color=INK, ms=14, mew=2)
        ax.text(1.01, i, row.verdict, color=colour, weight="bold", va="center",
                transform=ax.get_yaxis_transform())
    ax.set_yticks(range(len(known)), [f"{row.contest}\n{row.metric}" for row, *_ in known], fontsize=8)
    ax.set(title="BitNet better to the right: delta, its 95 % interval, a dot for each seed", xlabel="%",
           ylim=(len(known) - 0.5, -0.5))
    ax.grid(alpha=0.25, axis="x")
    return finished(figure, "deltas around zero, each with an interval: " + "; ".join(
        f"{row.contest}, {row.metric}: {row.verdict}" for row, *_ in known))
