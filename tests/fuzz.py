"""python tests/fuzz.py TARGET --seconds 600 [--keep DIR]

Coverage-guided fuzzing (atheris, libFuzzer) of everything that reads a stranger's file. A file must be read,
or refused by a CheckError; anything else is a finding: another exception, a hang of seconds, an allocation
that a file of its size does not justify. Findings are left in --keep; what they taught is kept in
formats/fuzz_seeds/TARGET and read again by formats/test_fuzz.py.
"""

import json
import sys
import tempfile
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
SEEDS = HERE / "formats" / "fuzz_seeds"
LONGEST = 10                             # seconds of one input
MOST_MIB = 256                           # of one allocation; a file here has a few KiB
SEPARATOR = b"\n\x00config\x00\n"        # of an HF folder in one input: config.json, then the tensors


def small_source():
    """A model of a few KiB with every kind of tensor."""
    from strategies import small_config, small_params

    from bitnet_ref.data.tokenizer import train_bpe
    from bitnet_ref.formats.source import About, of_weights
    from bitnet_ref.kernels import load
    from bitnet_ref.model.weights import ternarise

    cfg = small_config(norm="sub", vocab_size=260)
    source = of_weights(cfg, ternarise(cfg, small_params(cfg, 0, np.float32), load("numpy")), "small",
                        train_bpe(["aab ab ab"] * 20, 260).json)
    return source._replace(about=About("small", 0, (0, 1), "{{ messages }}", {"temperature": 0.5}))


@contextmanager
def no_checksums():
    """All checksums 0, so that what lies behind them is reached."""
    from bitnet_ref.formats import bitnet, bitnet_header
    from bitnet_ref.pack import rans

    true, modules = zlib.crc32, [m for m in (bitnet, bitnet_header, rans) if hasattr(m, "zlib")]

    class Zero:
        crc32 = staticmethod(lambda data, value=0: 0)

    for m in modules:
        m.zlib = Zero
    try:
        yield
    finally:
        for m in modules:
            m.zlib = zlib
        assert zlib.crc32 is true


def read_all(source):
    """Every tensor, as a conversion does."""
    from bitnet_ref.formats.source import tensors

    for _ in tensors(source):
        pass


def bitnet(data, folder):
    """A .bitnet file whose checksums hold."""
    from bitnet_ref.formats.bitnet import open_bitnet

    (folder / "a.bitnet").write_bytes(data)
    with no_checksums():
        read_all(open_bitnet(folder / "a.bitnet"))


def gguf(data, folder):
    """A GGUF; its I2_S in any layout."""
    from bitnet_ref.formats.gguf_read import open_gguf

    (folder / "a.gguf").write_bytes(data)
    read_all(open_gguf(folder / "a.gguf", "128"))


def hf(data, folder):
    """A Hugging Face folder: config.json and model.safetensors."""
    from bitnet_ref.formats.hf import open_hf

    config, _, tensors = data.partition(SEPARATOR)
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(tensors)
    read_all(open_hf(folder))


def index(data, folder):
    """An index of shards beside one shard, and the small files."""
    from bitnet_ref.formats.hf import open_hf

    parts = data.split(SEPARATOR)
    names = ("model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer_config.json")
    for name, part in zip(names, parts):
        (folder / name).write_bytes(part)
    read_all(open_hf(folder))


def tokenizer(data, folder):
    """A tokenizer.json."""
    from bitnet_ref.data.tokenizer import load

    (folder / "tokenizer.json").write_bytes(data)
    made = load(folder / "tokenizer.json")
    made.decode(made.encode("a <s> b"))
    assert len(made.vocabulary) == 64


def sentencepiece(data, folder):
    """A SentencePiece model, or ranks of tiktoken."""
    from bitnet_ref.data.tokenizer_files import load

    (folder / "tokenizer.model").write_bytes(data)
    load(folder / "tokenizer.model").encode("a b")


def chains(data, folder):
    """A table of chains, as a drafter and as text."""
    from bitnet_ref.chain import draft, show
    from bitnet_ref.chain.table import read_table
    from bitnet_ref.data.tokenizer import train_bpe

    (folder / "chains.json").write_bytes(data)
    table = read_table(folder / "chains.json")
    draft.chains(table)([1, 2])
    show.page(table, train_bpe(["a"], 257)).encode()


TARGETS = {f.__name__: f for f in (bitnet, gguf, hf, index, tokenizer, sentencepiece, chains)}


def seeds(target, folder):
    """Valid inputs to begin with, as bytes."""
    from bitnet_ref.formats.bitnet import write_bitnet
    from bitnet_ref.formats.hf_write import write_hf

    source = small_source()
    if target == "bitnet":
        with no_checksums():
            for bits in ("i2", "b3", "rans"):
                write_bitnet(folder / f"{bits}.bitnet", source, bits)
        yield from (p.read_bytes() for p in sorted(folder.glob("*.bitnet")))
    elif target == "gguf":
        with suppress(ImportError):
            from bitnet_ref.formats.gguf_write import write_gguf

            for kind in ("f32", "f16"):
                write_gguf(folder / f"{kind}.gguf", source, kind)
                yield (folder / f"{kind}.gguf").read_bytes()
    elif target in ("hf", "index"):
        bare = source._replace(tokenizer=None)
        for n, how in enumerate(({}, {"storage": "divide"}, {"storage": "masters", "dtype": "float32"})):
            made = folder / str(n)
            write_hf(made, bare, **how)
            config = (made / "config.json").read_bytes()
            if target == "hf":
                yield config + SEPARATOR + (made / "model.safetensors").read_bytes()
            else:
                names = {s.hf_name: "model-00001-of-00002.safetensors" for s in source.specs.values()}
                index_of = json.dumps({"weight_map": names}).encode()
                yield SEPARATOR.join([index_of, config, b'{"temperature": 0.5}', b"{}"])
    elif target == "tokenizer":
        yield source.tokenizer.encode()
    elif target == "chains":
        from bitnet_ref.chain.table import Chain, Table, write_table

        rows = (Chain((1, 2), 9, 5, (0.5,)), Chain((1, 3, 4, 5, 6, 7, 8, 9), 3, 0, (1.0,) * 7))
        write_table(folder / "chains.json", Table("ab" * 32, 257, "a corpus", 100, rows))
        yield (folder / "chains.json").read_bytes()
    else:
        yield bytes.fromhex("0a0d0a033c733e15000000001803") + b"\x0a\x08\x0a\x01a\x15\x00\x00\x80\xbf"
        yield b"YQ== 0\nYg== 1\nYWI= 2\n"


def attempt(target, data):
    """Feed `data` to a target; what it may raise is swallowed."""
    from bitnet_ref.checks import CheckError

    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, suppress(CheckError):
        TARGETS[target](bytes(data), Path(folder))


def main():
    """Begin with the seeds, and go on for so many seconds."""
    import argparse

    import atheris

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", default=".", metavar="DIR", help="where findings are left")
    args = parser.parse_args()
    with atheris.instrument_imports(include=["bitnet_ref.formats", "bitnet_ref.pack", "bitnet_ref.data"]):
        import bitnet_ref.data.tokenizer_files
        import bitnet_ref.formats.bitnet
        import bitnet_ref.formats.gguf_read
        import bitnet_ref.formats.hf  # noqa: F401
    Path(args.keep).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus, tempfile.TemporaryDirectory() as work:
        kept = sorted((SEEDS / args.target).glob("*"))
        for n, data in enumerate([*seeds(args.target, Path(work)), *(p.read_bytes() for p in kept)]):
            (Path(corpus) / f"seed-{n}").write_bytes(data)
        atheris.Setup([sys.argv[0], corpus, f"-max_total_time={args.seconds}", f"-timeout={LONGEST}",
                       f"-malloc_limit_mb={MOST_MIB}", "-rss_limit_mb=4096", "-max_len=65536",
                       f"-artifact_prefix={args.keep}/{args.target}-", "-print_final_stats=1"],
                      lambda data: attempt(args.target, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
