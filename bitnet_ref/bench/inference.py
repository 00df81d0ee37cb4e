"""Decode and prefill of whole models: ours packed as i2 and b3, our full-precision twins, llama.cpp.

The model is the blocks of 2B4T, 8 of them, under a head of 32,000 outputs in float16 for all; and `nano`,
small enough for a cache, where launches and not bytes decide. A token's limit is the time to read its
weights, a prompt's that of its operations.
Read after: bench/kernels. Read next: bench/training.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.bench.child import Child
from bitnet_ref.bench.limits import FLOAT32, INT8, READ, Limit, limits, rates, runs, share, unrest, worst
from bitnet_ref.bench.llama_peer import FORMATS, bytes_per_token
from bitnet_ref.bench.part import (
    Claim,
    Measure,
    Part,
    Setup,
    Times,
    by_turns,
    children,
    memory_left,
    middle,
    over,
    ratio,
)
from bitnet_ref.bench.random_model import BLOCKS, NANO, QUICK, random_weights
from bitnet_ref.config import ModelConfig
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.generate.continuation import Continuation
from bitnet_ref.generate.sampling import GREEDY, Sampling
from bitnet_ref.generate.window import Window
from bitnet_ref.model.cost import (
    BITS_PER_TRIT,
    count_params,
    forward_ops_per_token,
    inference_bytes,
    kv_bytes_per_token,
)
from bitnet_ref.model.transformer import Transformer

TOKENS, CONTEXT = 16, 64     # tokens of a turn of decode, after a prompt of CONTEXT
PROMPTS = (64, 512)
TWINS = {"float16 twin": np.float16, "float32 twin": np.float32}
OURS = ("i2", "b3")
HEAD = "b3, int8 head"       # our own choice of head
GENERATE = "b3, generate"    # the whole of what the command does
Runs = dict[str, Callable[[], object]]


def model(cfg: ModelConfig, bits: str) -> Transformer:
    """A random model of `cfg` on the Numba backend: packed as `bits`, HEAD, or a twin of TWINS."""
    ops: Any = SimpleNamespace(**vars(kernels.load("numba")))
    if bits in TWINS:
        cfg = replace(cfg, linear="full")
        return Transformer(cfg, random_weights(cfg, TWINS[bits]), ops)
    ops.prepare = partial(ops.prepare, bits=bits[:2])
    return Transformer(cfg, random_weights(cfg), ops, bits == HEAD)


def token_bytes(cfg: ModelConfig, bits: str) -> float:
    """Bytes of weights that a token must read, by model/cost.py; of llama.cpp, by its formats."""
    if bits in FORMATS:
        return bytes_per_token(cfg, bits)
    bits = "b3" if bits == GENERATE else bits
    if bits in TWINS:
        return inference_bytes(replace(cfg, linear="full"), 0, np.dtype(TWINS[bits]).itemsize)
    whole = inference_bytes(cfg, next(b for name, b in BITS_PER_TRIT.items() if f"({bits[:2]})" in name))
    return whole if bits != HEAD else whole - cfg.vocab_size * (cfg.d_model - 4)


def decoder(cfg: ModelConfig, bits: str, tokens: int, context: int = CONTEXT) -> Callable[[], object]:
    """A run that decodes `tokens` tokens after a prompt."""
    ours, token = model(cfg, bits), np.ones(1, np.int64)
    _, after_prompt = ours.prefill(np.ones((1, context), np.int64))

    def run() -> None:
        state = after_prompt                               # an earlier state: what came after is overwritten
        for _ in range(tokens):
            _, state = ours.decode_step(token, state)

    return run


def generator(cfg: ModelConfig, bits: str, tokens: int, how: Sampling = GREEDY) -> Callable[[], object]:
    """A run that generates as many tokens as `decoder` does, as the command does: sampled, and made text."""
    window, tokenizer = Window(model(cfg, bits)), train_bpe(["quick"], 257)
    prompt = [1] * CONTEXT
    window.read(prompt)
    return lambda: list(Continuation(window, tokenizer, prompt, tokens, how))


# ---- decode ----

def decode(setup: Setup) -> Part:
    """Tokens per second of the large model, seconds per token of nano."""
    cfg, tokens = (QUICK, 2) if setup.quick else (BLOCKS, TOKENS)
    notes: list[str] = []
    found = limits(setup.threads, setup.quick, READ)
    with llama(setup, notes) as peers:
        setup.say("decode: making the models")
        who: Runs = {bits: decoder(cfg, bits, tokens) for bits in (*OURS, HEAD, *fitting(cfg, notes))}
        who[GENERATE] = generator(cfg, "b3", tokens)
        who |= {kind: partial(child.ask, "decode", context=CONTEXT, tokens=tokens)
                for kind, child in peers.items()}
        setup.say(f"decode: {setup.rounds} rounds of {', '.join(who)}")
        times = by_turns(setup, {**runs(found), **who})
    shares = {name: share(times, name, {READ: tokens * token_bytes(cfg, name)}, found) for name in who}
    measures = [Measure("memory, read only", rates(times, found)[READ] / 1e9, "GB/s")]
    measures += [Measure(_named(name), tokens / middle(times, name), "tokens/s", shares[name], READ,
                         name in FORMATS) for name in who]
    others = nano(setup), with_context(setup, cfg)
    return Part("Decode, one token at a time", measures + [m for p in others for m in p.measures],
                decode_claims(times, shares) + [c for p in others for c in p.claims],
                notes + unrest(times, found, setup.machine))


def decode_claims(times: Times, shares: dict[str, float | None]) -> list[Claim]:
    """The rows of decode, from the times of all engines."""
    best = min(OURS, key=lambda bits: middle(times, bits))
    return [Claim(f"decode ({best}, float16 head), against llama.cpp TQ2_0", ratio(times, best, "TQ2_0"), "x",
                  1.0, 1.15),
            Claim(f"decode ({HEAD}), against llama.cpp TQ2_0", ratio(times, HEAD, "TQ2_0"), "x", 1.2, 1.5),
            Claim(f"decode ({best}), against its float16 twin", ratio(times, best, "float16 twin"), "x", 3.5),
            Claim(f"decode ({best}), against its float32 twin", ratio(times, best, "float32 twin"), "x", 7.0),
            Claim("decode (b3) by generate, time against the kernels alone",
                  over(1.0, ratio(times, GENERATE, "b3")), "x", 1.1, most=True),
            *(Claim(f"decode, {twin}, of read bandwidth", shares.get(twin), "%", 0.85) for twin in TWINS)]


def nano(setup: Setup) -> Part:
    """Seconds per token of nano and its float16 twin, which fit in a cache."""
    tokens = 2 if setup.quick else 4 * TOKENS
    times = by_turns(setup, {
        **{bits: decoder(NANO, bits, tokens) for bits in (*OURS, HEAD, "float16 twin")},
        GENERATE: generator(NANO, "b3", tokens),
        f"{GENERATE}, sampled": generator(NANO, "b3", tokens, Sampling())})
    each = {bits: 1e6 * middle(times, bits) / tokens for bits in times}
    best = min(OURS, key=lambda bits: each[bits])
    slower = over(1.0, ratio(times, best, "float16 twin"))
    return Part("", [Measure(f"nano, {bits}", us, "us/token") for bits, us in each.items()], [
        Claim(f"nano ({best}), time per token", each[best], "us", 250, 100, most=True),
        Claim(f"nano ({best}), time per token against its float16 twin", slower, "x", 1.0, most=True),
        Claim("nano (b3) by generate, time against the kernels alone",
              over(1.0, ratio(times, GENERATE, "b3")), "x", 1.1, most=True)], [])


def with_context(setup: Setup, cfg: ModelConfig) -> Part:
    """Tokens per second after a short text and after the longest, beside the bytes that each must read."""
    tokens = 2
    contexts = CONTEXT, cfg.context - tokens
    setup.say(f"decode: after {contexts[0]} and {contexts[1]} tokens")
    times = by_turns(setup, {str(n): decoder(cfg, "i2", tokens, n) for n in contexts})
    needs = [token_bytes(cfg, "i2") + n * kv_bytes_per_token(cfg) for n in contexts]
    slower = over(1.0, ratio(times, *reversed(list(times))))
    measures = [Measure(f"i2, after {n} tokens", tokens / middle(times, n), "tokens/s") for n in times]
    return Part("", measures, [
        Claim(f"decode (i2) after {contexts[1]} tokens against {contexts[0]}, time over the formula's",
              over(slower, needs[1] / needs[0]), "x", 1.1, most=True)], [])


# ---- prefill ----

def prefill(setup: Setup) -> Part:
    """Tokens per second of prompts of PROMPTS tokens; only the last position's logits are made."""
    cfg, prompts = (QUICK, (16,)) if setup.quick else (BLOCKS, PROMPTS)
    notes: list[str] = []
    measures, claims = [], []
    found = limits(setup.threads, setup.quick, INT8, FLOAT32)
    with llama(setup, notes) as peers:
        setup.say("prefill: making the models")
        ours = {bits: model(cfg, bits) for bits in (*OURS, *fitting(cfg, notes))}
        for length in prompts:
            ids = np.ones((1, length), np.int64)
            who: Runs = {bits: partial(m.prefill, ids) for bits, m in ours.items()}
            who |= {kind: partial(child.ask, "prefill", tokens=length) for kind, child in peers.items()}
            setup.say(f"prefill: {setup.rounds} rounds of {length} tokens of {', '.join(who)}")
            times = by_turns(setup, {**runs(found), **who})
            for name in who:
                work, limit = prefill_work(cfg, length, name, found)
                measures.append(Measure(f"{length} tokens, {_named(name)}", length / middle(times, name),
                                        "tokens/s", share(times, name, work, found), limit, name in FORMATS))
            best = min(OURS, key=lambda bits: middle(times, bits))
            claims.append(Claim(f"prefill of {length} tokens ({best}), against llama.cpp TQ2_0",
                                ratio(times, best, "TQ2_0"), "x", 2.0, 3.5))
            notes += unrest(times, found, setup.machine)
    return Part("Prefill", measures, claims, worst(notes))


def prefill_work(cfg: ModelConfig, length: int, name: str,
                 found: dict[str, Limit]) -> tuple[dict[str, float], str]:
    """({limit: operations}, its name): ternary projections as int8 dot products, the rest in float32."""
    n = count_params(cfg)
    projections = 2.0 * length * n.projections
    rest = length * forward_ops_per_token(cfg, length) - projections - 2 * (length - 1) * n.embedding
    if name in TWINS or name == "F16" or INT8 not in found:
        return {FLOAT32: projections + rest}, FLOAT32
    return {INT8: projections, FLOAT32: rest}, "int8 and float32 peaks"


# ---- who takes part ----

def fitting(cfg: ModelConfig, notes: list[str]) -> Iterator[str]:
    """The twins for which there is memory, when it is their turn; a line for each of the others."""
    for bits in TWINS:
        needed = 1.5 * token_bytes(cfg, bits)              # a block is drawn beside the whole of them
        if needed < memory_left():
            yield bits
        else:
            notes.append(f"{bits}: left out, for it needs {needed / 2**30:.1f} GiB of memory more")


@contextmanager
def llama(setup: Setup, notes: list[str]) -> Iterator[dict[str, Child]]:
    """llama.cpp with the large model in each of its formats, as far as it is installed."""
    how = ("--threads", str(setup.threads), *(("--quick",) if setup.quick else ()))
    wanted = {kind: (setup.pythons["llama"], "bitnet_ref.bench.llama_peer", "--format", kind, *how)
              for kind in FORMATS}
    missing: list[str] = []
    with children(wanted, missing) as found:
        notes += dict.fromkeys(words.partition(": ")[2] for words in missing)
        notes += [f"peer: {c.about['about']}" for c in list(found.values())[:1]]
        yield found


def _named(name: str) -> str:
    return f"llama.cpp {name}" if name in FORMATS else name
