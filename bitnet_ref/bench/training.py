"""Training steps: our two backends, PyTorch in each of its modes, and what grows with the length of the text.

A step is the trainer's own: gradients, clipping, AdamW, new trits, checks for NaN. Its limit is the products
of model/cost.py alone: the forward's ternary ones as int8 dot products, all the others in float32.
Read after: bench/inference. Read next: bench/saving.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bitnet_ref import kernels
from bitnet_ref.bench.child import Child
from bitnet_ref.bench.limits import FLOAT32, INT8, limits, runs, share, unrest, worst
from bitnet_ref.bench.part import Claim, Measure, Part, Setup, Times, by_turns, children, middle, over, ratio
from bitnet_ref.bench.random_model import NANO, QUICK, SIX, random_data
from bitnet_ref.bench.torch_peer import MODES
from bitnet_ref.checks import CheckError
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.model.cost import count_params, train_ops_per_token
from bitnet_ref.train.checkpoint import new_run
from bitnet_ref.train.loop import optimise

MODELS = {"nano": (NANO, 8), "6 layers, width 768": (SIX, 4)}            # config, sequences of a step
EAGER, BF16 = "torch float32", "numba bf16"
LENGTHS = (256, 1024, 4096)
PRODUCTS = "product-only ceiling"
FEW_MINUTES = 180.0          # seconds: what the README's first command may take


def stepper(cfg: ModelConfig, batch: int, backend: str) -> Callable[[], object]:
    """A run that makes one optimiser step on random tokens, as the trainer does: numpy, numba, or BF16.

    Without the guard: each timed step is a whole one, and none goes back, for the run has no folder.
    """
    backward = "bf16" if backend == BF16 else "float32"
    how = TrainConfig(batch=batch, backend=backend.split()[0], backward=backward, guard=False)
    run = new_run(Path(), cfg, how, {}, kernels.load(how.backend, None, how.backward))
    data = random_data(cfg, 4 * batch)
    return lambda: optimise(run, data)


def least_work(cfg: ModelConfig, tokens: float, found: Any) -> dict[str, float]:
    """{limit: operations} of a step of that many tokens; all in float32 where int8 has no instruction."""
    forward = 2.0 * count_params(cfg).projections if INT8 in found and cfg.linear == "ternary" else 0.0
    work = {INT8: tokens * forward, FLOAT32: tokens * (train_ops_per_token(cfg, cfg.context) - forward)}
    return {name: ops for name, ops in work.items() if ops}


def part(setup: Setup) -> Part:
    """Both models against PyTorch; nano with longer texts."""
    models = {"quick": (replace(QUICK, n_layers=1), 2)} if setup.quick else MODELS
    found = limits(setup.threads, setup.quick, INT8, FLOAT32)
    parts = [against_torch(setup, name, cfg, batch, found) for name, (cfg, batch) in models.items()]
    parts.append(with_length(setup, found))
    notes = worst(note for p in parts for note in p.notes)
    return Part("Training", [m for p in parts for m in p.measures],
                [c for p in parts for c in p.claims], notes)


# ---- against PyTorch ----

def against_torch(setup: Setup, name: str, cfg: ModelConfig, batch: int, found: Any) -> Part:
    """Tokens per second of a model's training step, and ours against PyTorch's."""
    from bitnet_ref.kernels.numba_cpu.bf16 import available
    notes: list[str] = []
    setup.say(f"train {name}: making the models; torch.compile takes a minute")
    ours = ("numpy", "numba", *((BF16,) if available() else ()))
    who = {backend: stepper(cfg, batch, backend) for backend in ours}
    with children({"torch": (setup.pythons["torch"], *torch_arguments(cfg, batch))}, notes) as peers:
        for child in peers.values():
            notes.append(f"peer: {child.about['about']}")
            who |= modes(child, setup, notes)
        setup.say(f"train {name}: {setup.rounds} rounds of {', '.join(who)}")
        times = by_turns(setup, {**runs(found), **who})
    tokens = batch * cfg.context
    work = least_work(cfg, tokens, found)
    measures = [Measure(f"{name}, {mode}", tokens / middle(times, mode), "tokens/s",
                        share(times, mode, work, found), PRODUCTS, mode.startswith("torch")) for mode in who]
    limit = sum(ops * middle(times, l) / found[l].amount for l, ops in work.items())
    measures.append(Measure(f"{name}, {PRODUCTS}", tokens / limit, "tokens/s"))
    return Part("", measures, torch_claims(name, times), notes + unrest(times, found, setup.machine))


def torch_claims(name: str, times: Times) -> list[Claim]:
    """The rows of training; and of the README's first command, whose steps these are."""
    peers = [mode for mode in times if mode.startswith("torch")]
    best = min(peers, key=lambda mode: middle(times, mode), default="none")
    own = BF16 if BF16 in times else "numba"
    claims = [Claim(f"train {name}, against PyTorch eager float32", ratio(times, "numba", EAGER), "x",
                    1.6, 2.0),
              Claim(f"train {name}{' (--backward bf16)' * (own == BF16)}, against PyTorch's best mode "
                    f"({best.removeprefix('torch ')})", ratio(times, own, best), "x", 1.0, 1.3)]
    if name == "nano":
        seconds = TrainConfig().steps * middle(times, "numba")
        claims.append(Claim(f"the {TrainConfig().steps} steps of the default run", seconds, "s", FEW_MINUTES,
                            most=True))
    return claims


def torch_arguments(cfg: ModelConfig, batch: int) -> tuple[str, ...]:
    """The command line of the peer: the fields in which the model is not nano."""
    own = [(name, value) for name, value in vars(cfg).items() if value != getattr(NANO, name)]
    flags = [part for name, value in own for part in (f"--{name.replace('_', '-')}", str(value))]
    return ("bitnet_ref.bench.torch_peer", "--serve", "--batch", str(batch), *flags)


def modes(child: Child, setup: Setup, notes: list[str]) -> dict[str, Callable[[], object]]:
    """{name: run} of each mode of torch that works here, already compiled."""
    found: dict[str, Callable[[], object]] = {}
    for mode in ("float32", "bf16") if setup.quick else MODES:
        ask = partial(child.ask, "step", mode=mode, threads=setup.threads)
        try:
            ask()
        except CheckError as e:
            notes.append(f"torch {mode}: {e}")
            continue
        found[f"torch {mode}"] = ask
    return found


# ---- with the length of the text ----

def with_length(setup: Setup, found: Any) -> Part:
    """Memory (as the workspace is carved) and time of a step of nano of equal tokens, as texts get longer."""
    from bitnet_ref.kernels.numba_cpu.workspace import needed
    from bitnet_ref.model.block import build
    lengths = (32, 64) if setup.quick else LENGTHS
    cfgs = {f"nano, texts of {T}": replace(NANO, context=T) for T in lengths}
    setup.say(f"train: texts of {', '.join(map(str, lengths))} tokens")
    longest = max(lengths)                                 # all make a step of as many tokens
    times = by_turns(setup, {**runs(found), **{n: stepper(cfg, longest // cfg.context, "numba")
                                               for n, cfg in cfgs.items()}})
    ops = kernels.load("numba")
    memory = {n: needed(build(cfg, ops), 1, cfg.context) / cfg.context for n, cfg in cfgs.items()}
    measures = [Measure(n, longest / middle(times, n), "tokens/s",
                        share(times, n, least_work(cfg, longest, found), found), PRODUCTS)
                for n, cfg in cfgs.items()]
    measures += [Measure(f"{n}, workspace", size / 1024, "KiB/token") for n, size in memory.items()]
    (first, short), *_, (last, long) = cfgs.items()
    expected = over(train_ops_per_token(long, long.context), train_ops_per_token(short, short.context))
    title = f"training {long.context} tokens at once against {short.context}"
    return Part("", measures, [
        Claim(f"{title}, memory per token", memory[last] / memory[first], "x", 1.0, most=True),
        Claim(f"{title}, time per token over the formula's", over(ratio(times, first, last), expected),
              "x", 1.1, most=True)], [])
