"""Formulas as MathML, which every present browser draws without a script, in a font that the site brings.

An equation's number stands at the right and is a link to itself. The font is STIX Two Math, from the package
ziamath; of its letters only those are kept that formulas use.
"""

import importlib.util
import logging
import re
import string
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from fontTools import subset
from latex2mathml.converter import convert

NUMBER = re.compile(r"(?:\\q?quad\s*)*\\text\{\(([A-Z]{2}\.\d+)\)\}\s*$")
GREEK = "".join(map(chr, range(0x391, 0x3CA))) + "ϕϵϑϱ"
SIGNS = "−×·±∓≤≥≠≈∼∝∞∂∑∏∫√∈∉⊂⊕→←↔⇒↦ℓ⊤⊥∥|‖⌊⌋⌈⌉⟨⟩…⋯⋮¯ˆ˜˙′″ℝ∣∧∨¬⊙∗⁡⁢ ¬∘†⋅"


BIG = re.compile(r"\\[bB]igg?\s*(\(|\)|\[|\]|\\[lr](?:vert|floor|ceil)(?![a-z]))")
OPENING = ("(", "[", r"\lvert", r"\lfloor", r"\lceil")
SPACED = re.compile(r"(\\(?:log|ln|exp)(?:_\w|_\{\w+\})?)(?![a-zA-Z_])\s*(?=[\w\\])(?!\\(?:left|,))")
PLAIN = {r"\lvert": "|", r"\rvert": "|"}
MATHML = "http://www.w3.org/1998/Math/MathML"
LIMITS = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
BEFORE_A_NUMBER = ("=", "←", ",", "(", "[", "<", ">", "≤", "≥", "≈", "·")
FENCES = {r"\lvert": "⟦|", r"\rvert": "⟧|", r"\lVert": "⟦‖", r"\rVert": "⟧‖",
          r"\lfloor": "⟦⌊", r"\rfloor": "⟧⌋", r"\lceil": "⟦⌈", r"\rceil": "⟧⌉"}


def mathml(text: str, display: str) -> str:
    """latex2mathml's, with bars, floors, large brackets as pairs, and words in one piece."""
    text = BIG.sub(lambda m: rf"\{'left' if m[1] in OPENING else 'right'}{PLAIN.get(m[1], m[1])}", text)
    for name in FENCES:
        text = re.sub(re.escape(name) + r"(?![a-zA-Z])", chr(0xE000 + list(FENCES).index(name)), text)
    text = text.replace(r"\mathrel{+}=", chr(0xE100)).replace(":=", chr(0xE101))
    text = SPACED.sub(r"\1\\,", text)
    found = convert(text, display=display)
    for i, (side, sign) in enumerate(FENCES.values()):
        form = "prefix" if side == "⟦" else "postfix"
        fence = f'<mo form="{form}" fence="true" stretchy="false">{sign}</mo>'
        found = re.sub(rf"<m[io]>{chr(0xE000 + i)}</m[io]>", fence, found)
    for sign, letter in (("+=", chr(0xE100)), (":=", chr(0xE101))):
        found = re.sub(rf"<m[io]>{letter}</m[io]>", f'<mo lspace="0.28em" rspace="0.28em">{sign}</mo>', found)
    found = re.sub(r'<mrow>((?:<m[in] mathvariant="normal">\w</m[in]>){2,})</mrow>',
                   lambda m: "<mi>" + re.sub(r"<[^>]+>", "", m[1]) + "</mi>", found)
    found = found.replace("<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">/</mo>')
    found = found.replace("<mo>&#x02202;</mo>", "<mi>∂</mi>").replace("<mo>&#x0221E;</mo>", "<mi>∞</mi>")
    found = arranged(found, display)
    if "\\" in re.sub(r"<[^>]+>", "", found):
        raise ValueError(f"not understood in a formula: {text}")
    return found


def arranged(found: str, display: str) -> str:
    """A sum's limits below and above where a formula has its own line; a sign close to its number."""
    ElementTree.register_namespace("", MATHML)
    root = ElementTree.fromstring(found)
    names = {f"{{{MATHML}}}{old}": f"{{{MATHML}}}{new}" for old, new in LIMITS.items()}
    fractions = {n for f in root.iter(f"{{{MATHML}}}mfrac") for n in f.iter()}
    for node in root.iter():
        children = list(node)
        sum_of = node.tag in names and children[0].text in ("∑", "∏")
        if sum_of and display == "block" and node not in fractions:
            node.tag = names[node.tag]
        for before, sign in pairwise(children):
            if sign.text == "−" and before.text in BEFORE_A_NUMBER and before.tag.endswith("}mo"):
                sign.set("form", "prefix")
    return ElementTree.tostring(root, encoding="unicode")


def visit_math(self, node):
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_displaymath(self, node):
    text = node.astext()
    number = NUMBER.search(text)
    ids = "".join(f'<span id="{i}"></span>' for i in node["ids"])
    self.body.append(f'<div class="equation">{ids}<div class="formula">')
    self.body.append(mathml(NUMBER.sub("", text) if number else text, "block"))
    self.body.append("</div>")
    if number:
        self.body.append(f'<a class="number" href="#{number[1]}">({number[1]})</a>')
    self.body.append("</div>\n")
    raise nodes.SkipNode


def font(app, error) -> None:
    """A subset of the font beside the pages, small enough for a phone."""
    if error or app.builder.format != "html":
        return
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    whole = Path(importlib.util.find_spec("ziamath").origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    options = subset.Options(flavor="woff", layout_features=["ssty", "dtls"])
    options.drop_tables += ["DSIG"]
    loaded = subset.load_font(str(whole), options)
    italic = "".join(map(chr, [*range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)])) + "ℎ"    # Greek too
    chosen = subset.Subsetter(options)
    chosen.populate(text=string.printable + GREEK + SIGNS + italic)
    chosen.subset(loaded)
    subset.save_font(loaded, str(Path(app.outdir) / "_static" / "formulas.woff"), options)


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    app.connect("build-finished", font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
