"""Published tokenizers in the folder of real data as the text of a tokenizer.json, and their test vectors."""

import base64
import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from bitnet_ref.formats.gguf_tokenizer import LLAMA3_REGEX

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def record(cut, vocab, merges, special, **model):
    """The table of a byte-level tokenizer.json."""
    added = [{"id": i, "content": t, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False} for t, i in special.items()]
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
           "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
           "merges": merges}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": cut, "post_processor": None, "decoder": {**LEVEL, "add_prefix_space": True},
            "model": {**bpe, **model}}


def gpt2(folder):
    vocab = json.loads((folder / "gpt2.encoder.json").read_text(encoding="utf-8"))
    merges = (folder / "gpt2.vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    return json.dumps(record(LEVEL, vocab, merges, {"<|endoftext|>": vocab["<|endoftext|>"]}))


def llama2(folder):
    return (folder / "llama2-32k.tinyllama.tokenizer.json").read_text(encoding="utf-8")


def llama3(folder):
    """From tiktoken's ranks: a merge for every way to cut a token in two, the best result first."""
    alphabet = dict(zip(sorted(ByteLevel.alphabet(), key=_byte), range(256)))
    letter = {b: a for a, b in alphabet.items()}
    vocab = {}
    for line in (folder / "llama3-128k.tiktoken.model").read_text().splitlines():
        token, rank = line.split()
        vocab["".join(letter[b] for b in base64.b64decode(token))] = int(rank)
    cuts = ([(t[:i], t[i:]) for i in range(1, len(t))] for t in vocab)
    merges = [p for held in cuts for p in sorted((p for p in held if p[0] in vocab and p[1] in vocab),
                                                 key=lambda p: (vocab[p[0]], vocab[p[1]]))]
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(254))]
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_REGEX}, "behavior": "Isolated", "invert": False}
    cut = {"type": "Sequence", "pretokenizers": [split, {**LEVEL, "use_regex": False}]}
    return json.dumps(record(cut, vocab, [list(p) for p in merges], dict(zip(names, range(128000, 128256))),
                             ignore_merges=True))


def _byte(letter):
    """The byte that a letter of the byte-level alphabet stands for: itself where it prints."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printing]
    return ord(letter) if ord(letter) in printing else rest[ord(letter) - 256]


VECTORS = {"gpt-2": gpt2, "llama-bpe": llama3, "llama-spm": llama2}


def vectors(folder, name):
    """[(text, ids)] of llama.cpp for one of VECTORS."""
    folder = Path(folder)
    texts = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = (folder / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, ids)]
