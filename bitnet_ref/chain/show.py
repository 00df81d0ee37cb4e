"""A table of chains as text and as a picture: what each chain says, and how much of a corpus they cover.

Coverage is the share of the corpus's tokens that the table would have drafted where they stand, each counted
for the first chain that has it. It bounds what chains alone can save on text like the corpus.
Read after: chain/mine. Read next: chain/draft.
"""

from itertools import accumulate
from pathlib import Path

from bitnet_ref.chain.table import Table
from bitnet_ref.checks import check
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.tokenizer import Tokenizer

LINE = "#d1603d"


def coverage(table: Table) -> list[float]:
    """The share of the corpus that the first n chains cover, for n = 0, 1, ... of the table."""
    return [n / max(1, table.tokens) for n in accumulate((c.covers for c in table.chains), initial=0)]


def page(table: Table, tokenizer: Tokenizer) -> str:
    """The table as text: a chain's parts, how often it stands in the corpus, and how sure each part is."""
    shares = coverage(table)
    head = "chain, each part with its chance after those before"
    lines = [f"{len(table.chains)} chains of {table.corpus}, which cover {shares[-1]:.1%} of "
             f"{table.tokens:,} tokens; tokenizer {table.tokenizer_sha256[:12]}", "",
             f"{'':>4} {'times':>8} {'covered so far':>15}  {head}"]
    for n, (chain, share) in enumerate(zip(table.chains, shares[1:])):
        parts = [repr(tokenizer.piece(i).decode("utf-8", "replace"))[1:-1] for i in chain.ids]
        said = parts[0] + "".join(f" |{p:.0%}| {part}" for p, part in zip(chain.confidence, parts[1:]))
        lines.append(f"{n:>4} {chain.times:>8,} {share:>15.2%}  {said}")
    return "\n".join(lines)


def draw(table: Table, path: str | Path) -> None:
    """The picture of coverage against the size of the table, PNG. Raises CheckError for no chains."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    check(len(table.chains) > 0, "a table to draw must have chains", "none", "mine a longer corpus")
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    ax.plot([100 * share for share in coverage(table)], color=LINE, lw=1.6)
    ax.set(title=f"What the chains of {table.corpus} cover", xlabel="chains in the table",
           ylabel="% of the corpus's tokens", xlim=(0, None), ylim=(0, None))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as file:
        fig.savefig(file, dpi=120, format="png")
    plt.close(fig)
