"""A table of chains as text and as a picture: what each chain says, and how much of a text they cover.

Coverage is the share of a text's tokens that the table would have drafted where they stand, each counted for
the first chain that has it. It bounds what chains alone can save on such text. The table knows it of the text
that it was mined from; chain/mine measures it of any other.
Read after: chain/mine. Read next: chain/shipped.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from bitnet_ref.chain.mine import covered
from bitnet_ref.chain.table import Table
from bitnet_ref.checks import check
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.tokenizer import Tokenizer

LINES = ("#d1603d", "#5b7c99")       # the text that was mined, another
SIZES = tuple(1 << n for n in range(9))                   # of tables: 1, 2, 4, ... 256 chains
Shares = Sequence[float]             # covered by the first n chains, n = 0, 1, ...


def coverage(table: Table) -> list[float]:
    """The share of its corpus that the first n chains cover, for n = 0, 1, ... of the table.
    >>> from bitnet_ref.chain.table import Chain
    >>> coverage(Table("", 99, "", 100, (Chain((4, 5), 10, 10, (0.5,)), Chain((6, 7), 5, 5, (0.5,)))))
    [0.0, 0.1, 0.15]
    """
    return [n / max(1, table.tokens) for n in accumulate((c.covers for c in table.chains), initial=0)]


def held_out(table: Table, corpus: str, tokenizer: str) -> list[float]:
    """What the table covers of a corpus's validation side. Raises CheckError where it has none.
    >>> from bitnet_ref.chain.mine import mine_for; from bitnet_ref.train.small import small_run
    >>> _, data = small_run(); table = mine_for(data)
    >>> shares = held_out(table, str(data.folder), str(data.folder))
    >>> len(shares) == len(table.chains) + 1, shares[0], 0 < shares[-1] < 1
    (True, 0.0, True)
    """
    data = prepare(corpus, tokenizer)
    check(data.val is not None, "a corpus to measure must have held-out text", f"none of {corpus}",
          "give more text")
    assert data.val is not None
    return covered(table, data.val.tokens, data.val.header.eos)


def page(table: Table, tokenizer: Tokenizer, others: Mapping[str, Shares] | None = None) -> str:
    """The table as text: what a chain says, how often it stands in the corpus, how sure each part is.

    A space is shown as a dot in the middle of the line. `others`: {name: coverage of that text as well}.
    >>> from bitnet_ref.chain.table import Chain; from bitnet_ref.data.tokenizer import train_bpe
    >>> plain = train_bpe(["letters"], 257); ids = tuple(plain.encode("to be").tolist())
    >>> table = Table("0" * 64, 257, "a play", 100, (Chain(ids, 9, 36, (0.5, 0.9, 0.9, 1.0)),))
    >>> page(table, plain).splitlines()[-1]
    '   0         9   36.00%  to·be  t 50% o 90% · 90% b 100% e'
    """
    shares = coverage(table)
    sizes = [n for n in SIZES if n < len(table.chains)] + [len(table.chains)]
    known = {"the corpus": shares, **(others or {})}
    head = "covered by chains"
    width = max(len(head), *map(len, known))
    lines = [summary(table), "", f"{head:{width}} " + "".join(f"{n:>7}" for n in sizes)]
    lines += [f"{name:{width}} " + "".join(f"{of[n]:>7.1%}" for n in sizes) for name, of in known.items()]
    said = [[visible(tokenizer.piece(i)) for i in chain.ids] for chain in table.chains]
    widest = min(40, max((len("".join(parts)) for parts in said), default=0))
    lines += ["", f"{'':>4} {'times':>9} {'covered':>8}  {'chain':{widest}}  each part after those before it"]
    for n, (chain, share, parts) in enumerate(zip(table.chains, shares[1:], said)):
        sure = parts[0] + "".join(f" {p:.0%} {part}" for p, part in zip(chain.confidence, parts[1:]))
        lines.append(f"{n:>4} {chain.times:>9,} {share:>8.2%}  {''.join(parts):{widest}}  {sure}")
    return "\n".join(lines)


def summary(table: Table) -> str:
    """The table in a line.
    >>> summary(Table("0" * 64, 99, "a play", 100, ()))
    '0 chains of a play, which cover 0.0% of 100 tokens; vocabulary 000000000000'
    """
    return (f"{len(table.chains)} chains of {table.corpus}, which cover {coverage(table)[-1]:.1%} of "
            f"{table.tokens:,} tokens; vocabulary {table.vocabulary[:12]}")


def visible(piece: bytes) -> str:
    """What an id adds to a text, so that all of it is seen: spaces as dots, escapes for what has no form.
    >>> visible(b" two words"), visible(bytes([0xc3])) == chr(92) + "xc3"
    ('·two·words', True)
    """
    text = piece.decode("utf-8", "backslashreplace").replace(" ", "\u00b7")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def draw(table: Table, path: str | Path, others: Mapping[str, Shares] | None = None) -> None:
    """The picture of coverage against the size of the table, PNG. Raises CheckError for no chains.
    >>> import tempfile; from bitnet_ref.chain.table import Chain
    >>> folder = tempfile.TemporaryDirectory(); file = Path(folder.name) / "coverage.png"
    >>> draw(Table("", 99, "a play", 100, (Chain((4, 5), 10, 10, (0.5,)),)), file)
    >>> file.read_bytes()[1:4]
    b'PNG'
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    check(len(table.chains) > 0, "a table to draw must have chains", "none", "mine a longer corpus")
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    known = {table.corpus: coverage(table), **(others or {})}
    for (name, shares), colour in zip(known.items(), LINES):
        ax.plot([100 * share for share in shares], color=colour, lw=1.6,
                label=f"{_short(name)}: {shares[-1]:.1%}")
    ax.set(title="Tokens that the chains cover", xlabel="chains in the table", ylabel="% of the tokens",
           xlim=(0, len(table.chains)), ylim=(0, None))
    ax.legend(frameon=False, loc="best")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as file:
        fig.savefig(file, dpi=120, format="png")
    plt.close(fig)


def _short(name: str) -> str:
    """A name for a legend; a dollar sign there would begin a formula."""
    return (name if len(name) <= 60 else name[:57] + "...").replace("$", r"\$")
