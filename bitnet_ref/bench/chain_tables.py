"""python -m bitnet_ref.bench.chain_tables --wikipedia wiki.utf8 --stories tiny.utf8 --gpt2 encoder.json \
    --llama2 tokenizer.model --llama3 tokenizer.model --root .

Make the tables of bitnet_ref/chain/tables of the clone at --root, the same bytes from the same texts, whose
checksums are known here; measure what they cover of held-out text, and what mining WikiText-2 costs; write
docs/speculative.md. The texts and their licences are named on that page.
Read after: bench/speculation. Read next: bench/compression.
"""

import hashlib
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.bench.page import put
from bitnet_ref.chain.mine import CHOICE, covered, mine
from bitnet_ref.chain.shipped import SHIPPED
from bitnet_ref.chain.table import Table, write_table
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command, text
from bitnet_ref.data.corpus import part_documents, text_documents
from bitnet_ref.data.download import sha256_of
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.python_docs import sources
from bitnet_ref.data.split import split
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.data.tokenizer_files import load
from bitnet_ref.train.summary import machine

SHA256 = {"wikipedia": "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7",
          "stories": "e9f4ad209f66bf742e4f75cfdcb9bdef27534f57771ad655cff3543b5a9497de",
          "python": "b2e7833b2ea20425d9161fa3a22074dbebe83a64e9600e3f0d0f53d0b793b46b"}
PYTHON = "3.11.7"                # whose standard library is mined
EVERY, LONGEST = 2, 16384        # of the source files, and characters of each: as much as there is of prose
SHORTEST = 1000                  # characters of an article: hundreds of shorter ones are of one form
HELD_OUT = 0.05                  # share of the documents that is not mined
CORPUS = (f"English Wikipedia (CC BY-SA 3.0); source of the standard library of Python {PYTHON} (PSF-2.0); "
          "TinyStories (CDLA-Sharing-1.0)")
MINE = """
import sys
from bitnet_ref.bench.child import peak
from bitnet_ref.chain.__main__ import main
main(["mine", "--corpus", "wikitext-2", "--output", sys.argv[1]])
print(peak())
"""                              # python -m bitnet_ref.chain, which then says how much memory it held


class Text(NamedTuple):
    """A text by its documents."""

    mined: list[str]
    held_out: list[str]


def texts(wikipedia: str, stories: str, library: str) -> dict[str, Text]:
    """What is mined, and what is held out of it. Raises CheckError for any text but those of SHA256."""
    for name, path in (("wikipedia", wikipedia), ("stories", stories)):
        _known(name, path, sha256_of(Path(path)))
    code = source(Path(library))
    _known("python", library, hashlib.sha256("\0".join(code).encode()).hexdigest())
    found = {"Wikipedia": articles(Path(wikipedia).read_text(encoding="utf-8")), "Python source": code,
             "TinyStories": list(text_documents(Path(stories)))}
    return {name: Text(*split(docs, HELD_OUT, 0)) for name, docs in found.items()}


def _known(name: str, path: str, seen: str) -> None:
    check(seen == SHA256[name], f"{path} must be the text of {name} that docs/speculative.md names, with "
          f"sha256 {SHA256[name]}", seen, "download that one")


def articles(extracted: str) -> list[str]:
    """The texts between the marks <doc ...> and </doc>, the longer ones."""
    found = re.findall(r"<doc [^\n]*>\n(.*?)</doc>", extracted, re.DOTALL)
    return [article.strip() + "\n" for article in found if len(article) >= SHORTEST]


def source(library: Path) -> list[str]:
    """Beginnings of source files, without tables of characters and what is made when Python is built."""
    files = [p for p in sources(library) if not re.match(r"encodings/|curses/|stringprep|locale|"
             r"_sysconfigdata|config-|site\.py$|sitecustomize", p.relative_to(library).as_posix())]
    return [p.read_text(encoding="utf-8")[:LONGEST] for p in files[::EVERY]]


def stream(docs: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """int32 (N,): the documents' tokens, with EOS before, between and after them."""
    end = np.array([tokenizer.eos], np.int32)
    return np.concatenate([end, *(part for ids in tokenizer.encode_batch(list(docs)) for part in (ids, end))])


def table_of(found: dict[str, Text], tokenizer: Tokenizer) -> Table:
    """The table that is shipped for a vocabulary."""
    tokens = stream([doc for text in found.values() for doc in text.mined], tokenizer)
    chains = mine(tokens, tokenizer.eos, progress=True)
    vocab_size = 1 + max(i for chain in chains for i in chain.ids)
    return Table(tokenizer.vocabulary, vocab_size, CORPUS, min(len(tokens), CHOICE), chains)


def row(name: str, path: Path, table: Table, found: dict[str, Text], tokenizer: Tokenizer) -> dict[str, Any]:
    """What the page says of a table."""
    held_out = {key: text.held_out for key, text in found.items()}
    held_out["WikiText-2"] = list(part_documents("wikitext-2", "valid"))
    shares = {key: covered(table, stream(docs, tokenizer), tokenizer.eos)[-1]
              for key, docs in held_out.items()}
    mined = sum(chain.covers for chain in table.chains) / table.tokens
    return {"name": name, "bytes": path.stat().st_size, "mined": mined, "held out": shares}


def mining() -> dict[str, float]:
    """Seconds and most memory of the whole command on WikiText-2, cut before; and how many tokens it has."""
    tokens = len(prepare("wikitext-2").train.tokens)
    with tempfile.TemporaryDirectory() as folder:
        began = perf_counter()
        done = subprocess.run([sys.executable, "-c", MINE, f"{folder}/chains.json"], check=True, text=True,
                              stderr=subprocess.DEVNULL, stdout=subprocess.PIPE)
        seconds = perf_counter() - began
    return {"tokens": tokens, "seconds": seconds, "bytes": int(done.stdout.split()[-1])}


def block(rows: Sequence[dict[str, Any]], cost: dict[str, float], about: dict[str, Any]) -> str:
    """The tables of docs/speculative.md."""
    names = list(rows[0]["held out"])
    lines = [f"| table | bytes | covers of what was mined | held out: {' | '.join(names)} |",
             "|---|" + "---|" * (2 + len(names))]
    lines += [f"| {r['name']} | {r['bytes']:,} | {r['mined']:.1%} | "
              f"{' | '.join(f'{share:.1%}' for share in r['held out'].values())} |" for r in rows]
    return "\n".join([*lines, "", f"Mining WikiText-2 ({cost['tokens']:,} tokens of its own vocabulary of "
                      f"4,096, cut before) takes {cost['seconds']:.1f} s and at most "
                      f"{cost['bytes'] / 2**20:,.0f} MiB, the whole command, on {about['cores']} cores of "
                      f"{about['processor']}, of which it uses one; Python {about['python']}, NumPy "
                      f"{about['numpy']}."])


def main(argv: list[str]) -> int:
    """Parse, mine, measure, write, print."""
    args = parsed(argv)
    cost = mining()                                        # first: a child counts what its parent holds
    found = texts(args.wikipedia, args.stories, args.python)
    rows, folder = [], Path(args.root) / "bitnet_ref" / "chain" / "tables"
    for name in SHIPPED.values():
        tokenizer, path = load(getattr(args, name)), folder / f"{name}.json"
        check(SHIPPED.get(tokenizer.vocabulary) == name, f"--{name} must be the file of that vocabulary",
              tokenizer.vocabulary, "give another")
        table = table_of(found, tokenizer)
        write_table(path, table)
        rows.append(row(name, path, table, found, tokenizer))
    page = Path(args.root) / "docs" / "speculative.md"
    done = block(rows, cost, {**machine(), **kernels.about("numba")})
    put(page, done, "bench.chain_tables")
    print(done)
    return DONE


def parsed(argv: list[str]) -> Any:
    """The arguments."""
    parser = Parser("python -m bitnet_ref.bench.chain_tables", __doc__)
    for name, what in (("wikipedia", "its sample, as docs/speculative.md names it"),
                       ("stories", "of TinyStories, the same"),
                       *((name, "tokenizer of that vocabulary, any kind of file")
                         for name in SHIPPED.values())):
        parser.add_argument(f"--{name}", type=text, required=True, metavar="PATH", help=what)
    parser.add_argument("--python", type=text, default=sysconfig.get_path("stdlib"), metavar="DIR",
                        help=f"Lib of Python {PYTHON} (default: of the Python that runs)")
    parser.add_argument("--root", type=text, default=".", metavar="DIR", help="the clone to write into")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
