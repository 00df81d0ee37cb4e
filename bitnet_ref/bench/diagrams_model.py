"""The diagrams of what is computed: a block, the quantisers in figures, a training step.

The code is asked where it can be: for the norms of each layout, and for what becomes of numbers.
Read after: bench/svg. Read next: bench/diagrams.
"""

from itertools import pairwise

import numpy as np

from bitnet_ref.bench.svg import MARGIN, SOFT, WIDTH, Box, Picture
from bitnet_ref.config import ModelConfig
from bitnet_ref.layers import prepare, ternary_linear
from bitnet_ref.model.layout import FREE, NORMS, WEIGHTS, layout
from bitnet_ref.quant import absmax_int8, absmean_ternary

FULL, GAP = WIDTH - 2 * MARGIN, 26


def block() -> Picture:
    """One block; at each of its four places, the norm of every layout."""
    p = Picture("One block", "From the stream through attention and the gated unit, with the norms of three "
                             "layouts.")
    y = p.legend(10, float="float32", int8="int8 codes", trit="trits", plain="a place")
    x = p.box(50, y, WIDTH - 64, ["*x: the stream"], "float")
    at, stream = x, (28.0, x.left[1])
    steps: list[list[str]] = [["RoPE turns q and k", "`rope"], ["attention, causal", "`attention"]]
    for place, after in enumerate((steps, "+", [["gated unit: SwiGLU or ReLU²", "`swiglu"]], "+")):
        at = _place(p, at, place)
        at = _products(p, at, place)
        if after == "+":
            total = at.y + at.h + 30
            p.arrow(at.bottom, (at.bottom[0], total), (43, total))
            p.arrow((x.x, stream[1]), stream, (28, total - 13))
            p.plus(28, total)
            name = "*h: the stream" if place == 1 else "*y: the next block's x"
            at = p.box(66, total + 22, WIDTH - 80, [name], "float")
            p.arrow((28, total + 11), (28, at.left[1]), (at.x - 2, at.left[1]))
            x, stream = at, (28.0, at.left[1])
        else:
            for lines in after:
                box = p.box(66, at.y + at.h + GAP, WIDTH - 80, list(lines), "float")
                p.below(at, box)
                at = box
    return p


def _place(p: Picture, above: Box, place: int) -> Box:
    """The norms that may stand before the projections of this place, and the quantiser."""
    lines = []
    for norm in NORMS:
        (entry,) = layout(ModelConfig(norm=norm))[place]
        said = {None: "no norm", FREE: "norm without gain"}.get(entry.norm, entry.norm)
        lines.append(f"`{norm:6}{said}")
    box = p.box(66, above.y + above.h + GAP, WIDTH - 80, lines, "plain", align="start")
    p.below(above, box)
    codes = p.box(66, box.y + box.h, WIDTH - 80, ["int8 codes, a scale for each token"], "int8")
    return Box(box.x, box.y, box.w, box.h + codes.h)


def _products(p: Picture, above: Box, place: int) -> Box:
    """The ternary matrices that read it, side by side."""
    names = WEIGHTS[place]
    w = (WIDTH - 80 - 10 * (len(names) - 1)) / len(names)
    boxes = [p.box(66 + i * (w + 10), above.y + above.h + GAP, w, ["*" + name.partition(".")[2]], "trit")
             for i, name in enumerate(names)]
    for box in boxes:
        p.arrow((box.top[0], above.y + above.h), (box.top[0], box.y - 2))
    return Box(66, boxes[0].y, WIDTH - 80, boxes[0].h)


def quantisation() -> Picture:
    """A small BitLinear in figures, all of them computed."""
    w = np.array([[0.9, -0.2, 0.1, -1.3], [0.4, 0.7, -0.8, 0.05], [-0.6, 0.3, 1.1, -0.15]])
    x = np.array([[1.5, -0.8, 0.3, 2.0]])
    (w_q, w_scale), (x_q, x_scale) = absmean_ternary(w), absmax_int8(x)
    y = ternary_linear(x_q, x_scale, prepare(w_q, w_scale))[0]
    p = Picture("Quantisation", "A matrix of three rows becomes trits, a token becomes int8 codes, and their "
                                "product.")
    top = p.legend(10, float="float32", int8="integers", trit="trits")
    p.text(MARGIN, top + 14, "*1  weights, once a step")
    grid = p.grid(MARGIN, top + 26, [[f"{v:g}" for v in row] for row in w], "float", 52)
    p.text(MARGIN, grid.y + grid.h + 22, f"scale = mean |w| = {w_scale:.2f}")
    p.text(MARGIN, grid.y + grid.h + 44, f"up to half of it, {w_scale / 2:.3f}: 0; beyond: the sign", size=14)
    trits = p.grid(254, grid.y, [[f"{v:+d}".replace("+0", "0") for v in row] for row in w_q], "trit", 32)
    p.arrow(grid.right, (trits.x - 3, grid.right[1]))
    at = grid.y + grid.h + 88
    p.text(MARGIN, at, "*2  activations, for each token")
    floats = p.grid(MARGIN, at + 12, [[f"{v:g}" for v in x[0]]], "float", 60)
    p.text(MARGIN + 252, floats.y + 19, f"max |x| = {np.abs(x).max():g}", size=14)
    codes = p.grid(MARGIN, floats.y + floats.h + 34, [[str(v) for v in x_q[0]]], "int8", 60)
    p.arrow(floats.bottom, (floats.bottom[0], codes.y - 2))
    p.text(floats.bottom[0] + 12, codes.y - 12, f"times 127 / {np.abs(x).max():g}, rounded", size=14)
    at = codes.y + codes.h + 44
    p.text(MARGIN, at, "*3  the product: additions of integers")
    for i, row in enumerate(w_q):
        _sum(p, at + 12 + 34 * i, x_q[0] * row, y[i])
    said = f"times both scales: {float(x_scale[0, 0]):.4f} × {w_scale:.2f}"
    p.text(WIDTH - MARGIN, at + 130, said, "end", size=14)
    return p


def _sum(p: Picture, y: float, terms: np.ndarray, scaled: float) -> None:
    """The terms of one output, their sum, and what it is after the scales."""
    said = " ".join(f"{'+' if v > 0 else '−'} {abs(v)}" for v in terms if v)
    p.text(MARGIN, y + 18, said, size=14)
    p.box(208, y, 60, [str(terms.sum())], "int8", 28)
    p.box(320, y, 66, [f"{scaled:.3f}"], "float", 28)
    p.arrow((268, y + 14), (317, y + 14))


# What a step does, from the top; the kind of what comes out, and the code that does it.
STEP = [("float", ["*latent weights", "`Params"]), ("trit", ["round to trits, once a step", "`ternarise"]),
        ("int8", ["forward: int8 times trits", "`forward"]), ("float", ["loss", "`cross_entropy"]),
        ("float", ["backward, as if unrounded", "`block_backward"]),
        ("float", ["gradient of the latent weights", "`loss_and_grads"]),
        ("float", ["clip: one norm over all tensors", "`clip_"]),
        ("plain", ["guard: apply, skip, or go back", "`judge"]),
        ("float", ["AdamW, with this step's rates", "`lr_at  wd_at  update_"])]


def training_step() -> Picture:
    """One step of the optimiser, as a circle."""
    p = Picture("A training step", "Latent weights become trits, trits make a gradient, the gradient moves "
                                   "the latent weights.")
    y, boxes = p.legend(10, float="float32", int8="int8", trit="trits", plain="a verdict"), []
    for kind, lines in STEP:
        boxes.append(p.box(56, y, 294, lines, kind))
        y += boxes[-1].h + GAP
    for upper, lower in pairwise(boxes):
        p.below(upper, lower)
    last, first = boxes[-1], boxes[0]
    p.arrow(last.right, (372, last.right[1]), (372, first.right[1]), (first.right[0] + 2, first.right[1]))
    p.text(366, last.y - 9, "the next step", "end", SOFT, size=14)
    two, five = boxes[2], boxes[5]
    p.arrow(five.left, (30, five.left[1]), (30, two.left[1]), (54, two.left[1]), dashed=True)
    p.text(MARGIN, y + 4, "dashed: for each micro-batch; gradients add up", color=SOFT, size=14)
    return p
