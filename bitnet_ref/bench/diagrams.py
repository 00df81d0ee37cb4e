"""python -m bitnet_ref.bench.diagrams --root .

Draw the pictures of docs/architecture.md. What can be asked of the code is: which norm stands where, what
the quantisers make of numbers. A test holds the committed files to this script, their names to the code.
Read after: bench/diagrams_model. Read next: bench/page.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from bitnet_ref.bench.diagrams_model import FULL, GAP, block, quantisation, training_step
from bitnet_ref.bench.svg import EDGES, MARGIN, SOFT, WIDTH, Box, Picture
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.data.atomic import whole_file

PAGE, PICTURES = "architecture.md", "pictures"             # below docs/
HALF = (WIDTH - 3 * MARGIN) / 2

# A package imports from rows above its own, or from its left; a model imports no kernels.
TIERS = [[("checks config", "rules and choices")],
         [("quant", "the two quantisers"), ("pack", "trits as bytes")],
         [("layers", "the reference: ops, forward and backward")],
         [("kernels", "the same ops, faster"), ("model", "block, transformer")],
         [("data", "text into batches"), ("chain", "frequent chains")],
         [("formats", "models as files, of four formats")],
         [("generate", "text from a model"), ("evaluate", "its score")],
         [("train", "the loop, its guard, its checkpoints")],
         [("bench", "what is measured"), ("walk", "the notebooks' tools")],
         [("conform", "a port's judge")],
         [("cli info convert chat", "commands")]]


def components() -> Picture:
    """The packages, in the order of their imports."""
    p = Picture("Components", "The packages of bitnet_ref from top to bottom; each imports from above or "
                              "from its left; a model imports no kernels, it is given them.")
    y, before = 34.0, None
    p.text(MARGIN, 22, "a package imports from above, or from its left", color=SOFT, size=14)
    for tier in TIERS:
        w = FULL if len(tier) == 1 else HALF
        boxes = [p.box(MARGIN + i * (w + MARGIN), y, w, ["*" + name, said],
                       "new" if name == "layers" else "plain") for i, (name, said) in enumerate(tier)]
        if before is not None:
            for box in boxes:
                p.arrow((box.bottom[0], before), (box.bottom[0], y - 2))
        before = boxes[0].y + boxes[0].h
        if tier[0][0] == "kernels":
            start, end = (box.bottom[0] for box in boxes)
            p.arrow((start, before), (start, before + 14), (end, before + 14), (end, before + 2),
                    color=EDGES["new"], dashed=True)
            p.text(WIDTH / 2, before + 32, "given, not imported", "middle", EDGES["new"], size=14)
            before += 38
        y = before + GAP
    return p


def cached_inference() -> Picture:
    """A prompt at once, then a token at a time onto the cache."""
    p = Picture("Cached inference", "A prompt fills the cache of keys and values; each token adds a "
                                    "column to it.")
    prompt = p.grid(62, 36, [["A", "trit", "is", "a"]], "plain", 62)
    p.text(MARGIN, 22, "*the prompt, read at once")
    fill = p.box(62, prompt.y + 54, 248, ["all rows through each block", "`prefill"], "float")
    p.below(prompt, fill)
    y = fill.y + fill.h + 54
    p.text(MARGIN, y - 12, "*the cache: keys and values")
    rows = [["k v"] * 4, ["k v"] * 4, ["k v"] * 4]
    cache = p.grid(62, y, rows, "float", 62, 34)
    column = p.grid(cache.x + cache.w, y, [["k v"]] * 3, "new", 62, 34)
    for i, name in enumerate(("layer 1", "...", "layer L")):
        p.text(56, y + 22 + 34 * i, name, "end", SOFT, size=13)
    p.arrow((fill.bottom[0], fill.y + fill.h), (fill.bottom[0], y - 32))
    step = p.box(62, y + cache.h + 62, 248, ["one row through each block", "`decode_step"], "float")
    p.arrow((200, y + cache.h), (200, step.y - 2))
    p.text(208, step.y - 24, "reads all columns", color=SOFT, size=14)
    over = column.bottom[0]
    p.arrow((step.x + step.w, step.y + 16), (over, step.y + 16), (over, y + column.h + 3))
    p.text(WIDTH - MARGIN, step.y + 40, "adds one", "end", EDGES["new"], size=14)
    logits = p.box(62, step.y + step.h + GAP, 248, ["logits of the last row"], "float")
    draw = p.box(62, logits.y + logits.h + GAP, 248, ["temperature, top-k, a draw", "`sampling.py"], "plain")
    token = p.box(62, draw.y + draw.h + GAP, 248, ["*the next token"], "new")
    for upper, lower in ((step, logits), (logits, draw), (draw, token)):
        p.below(upper, lower)
    p.arrow(token.left, (30, token.left[1]), (30, step.left[1]), (60, step.left[1]))
    return p


# The same beginning twice: what is guessed, and what the model draws after each token that it was given.
TEXT, GUESSES, DRAWN = ["to", "be", "or"], ["not", "to", "sleep"], ["not", "to", "be", "..."]
VERDICTS = ["agrees", "agrees", "its own", "not used"]


def drafting() -> Picture:
    """One call of the model that makes three tokens."""
    p = Picture("Guessing ahead", "A drafter guesses three tokens; one call of the model confirms two and "
                                  "draws a third.")
    w, x = 74, 88.0
    p.text(MARGIN, 24, "*the text so far")
    p.grid(x, 36, [TEXT], "plain", w)
    p.text(MARGIN, 96, "*a drafter guesses, from a table of chains")
    p.grid(x, 108, [GUESSES], "int8", w)
    p.text(x, 152, "`chain/draft.py", color=SOFT)
    p.text(MARGIN, 190, "*one call: the last token and the guesses")
    p.grid(MARGIN, 202, [TEXT[-1:]], "plain", w)
    p.grid(x, 202, [GUESSES], "int8", w)
    model = p.box(MARGIN, 262, 4 * w, ["weights are read once for all", "`speculate"], "float")
    for i in range(4):
        p.arrow((MARGIN + w * (i + 0.5), 230), (MARGIN + w * (i + 0.5), model.y - 2))
    p.text(MARGIN, 346, "*what the model draws after each of them")
    for i, (said, kind) in enumerate(zip(DRAWN, ("new", "new", "new", "plain"))):
        middle = MARGIN + w * (i + 0.5)
        p.arrow((middle, 354), (middle, 374))
        p.grid(MARGIN + i * w, 376, [[said]], kind, w)
        p.text(middle, 422, VERDICTS[i], "middle", EDGES[kind] if kind == "new" else SOFT, size=13)
    p.text(MARGIN, 458, "*the text after the call")
    p.grid(MARGIN, 470, [TEXT], "plain", 62)
    p.grid(MARGIN + 186, 470, [DRAWN[:3]], "new", 62)
    p.text(MARGIN, 522, "the same text as token by token", color=SOFT, size=14)
    return p


READERS = [("a run", "source.py"), ("Hugging Face", "hf.py"), (".bitnet", "bitnet.py"),
           ("GGUF", "gguf_read.py")]
WRITERS = [(".bitnet", "bitnet.py"), ("Hugging Face", "hf_write.py"), ("GGUF", "gguf_write.py"),
           ("ONNX", "onnx.py")]


def files() -> Picture:
    """What is read and written, through one kind of source."""
    p = Picture("Files", "Four formats are read into a Source, from which a model runs and four formats are "
                         "written.")
    p.text(MARGIN, 22, "*read: headers first, all checked")
    read = p.frame(_pairs(p, 40, READERS))
    source = p.box(MARGIN, read.y + read.h + 30, FULL,
                   ["*Source: config, and tensors on demand", "`formats/source.py"], "new")
    p.below(read, source)
    runs = p.box(MARGIN, source.y + source.h + 34, HALF, ["*a model that runs", "`weights.py"], "trit")
    writes = p.box(MARGIN * 2 + HALF, runs.y, HALF, ["*convert", "`convert.py"], "plain")
    for box in (runs, writes):
        p.arrow((box.top[0], source.y + source.h), (box.top[0], box.y - 2))
    p.text(MARGIN, writes.y + writes.h + 36, "*written and read back")
    made = p.frame(_pairs(p, writes.y + writes.h + 54, WRITERS))
    p.arrow(writes.bottom, (writes.bottom[0], made.y - 2))
    p.text(MARGIN, made.y + made.h + 22, "ONNX is written and not read", color=SOFT, size=14)
    return p


def _pairs(p: Picture, y: float, names: list[tuple[str, str]]) -> list[Box]:
    """Boxes of formats, two in a row."""
    return [p.box(MARGIN + i % 2 * (HALF + MARGIN), y + i // 2 * 66, HALF, ["*" + name, f"`{file}"])
            for i, (name, file) in enumerate(names)]


DIAGRAMS: dict[str, Callable[[], Picture]] = {
    "components": components, "block": block, "quantisation": quantisation, "training-step": training_step,
    "cached-inference": cached_inference, "drafting": drafting, "files": files}


def main(argv: list[str]) -> int:
    """Parse, draw, write."""
    parser = Parser("python -m bitnet_ref.bench.diagrams", __doc__)
    parser.add_argument("--root", default=".", metavar="DIR", help="the clone to write into (default: here)")
    docs = Path(parser.parse_args(argv).root) / "docs"
    check((docs / PAGE).is_file(), "--root must be a clone", docs.parent, "name the folder that holds docs/")
    for name, draw in DIAGRAMS.items():
        with whole_file(docs / PICTURES / f"diagram-{name}.svg") as file:
            file.write(draw().svg().encode())
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
