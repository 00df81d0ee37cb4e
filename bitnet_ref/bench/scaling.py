"""python -m bitnet_ref.bench.scaling --rounds 7 --root .
python -m bitnet_ref.bench.scaling --rounds 0 --root .

The cost model of training on several nodes, held against this machine: steps of nano at 1 and 2 ranks of one
thread, predicted from other models' times and from messages. With --root, writes docs/scaling.md: that table,
and what the model says of other machines, which alone is written anew with --rounds 0.
Read after: bench/rank. Read next: bench/speculation.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.bench.page import put
from bitnet_ref.bench.random_model import NANO
from bitnet_ref.bench.rank import ACCUMULATE, BATCH, LARGE, MESSAGES, PIECES, SMALL
from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.config import PRESETS, ModelConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.model import scaling
from bitnet_ref.model.cost import count_params, saved_bytes_per_token, train_ops_per_token
from bitnet_ref.model.scaling import PIECE, Job, Node
from bitnet_ref.train.summary import machine

FIGURES, PICTURE, PAGE = "benchmarks/scaling.json", "pictures/scaling.png", "scaling.md"
REPEATS = 3                  # jobs of each number of ranks: one may land on a slow moment
FLOOR = 0.15                 # how far a prediction may be off
MODELS = ("700m", "1.3b", "3b")
SEQUENCES = 512              # of a step: 1 M tokens, as the paper trains
COUNTS = tuple(2 ** i for i in range(11))
# Inputs, not measurements: a server of 128 cores at 150 Gop/s each, 200 GB/s of memory, on two networks.
SERVER = Node(products=128 * 150e9, activations=100e9, memory=200e9, network=12.5e9, latency=2e-6)
NODES = {"100 Gb/s, 2 us": SERVER, "10 Gb/s, 30 us": SERVER._replace(network=1.25e9, latency=30e-6)}


# ---- measured ----

def jobs(rounds: int) -> dict[int, list[dict[str, Any]]]:
    """{ranks: what their jobs found}, in turns. With 4 ranks only the bits count."""
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 4: []}
    for repeat in range(REPEATS):
        for ranks in (1, 2, 4) if repeat == 0 else (1, 2):
            print(f"{ranks} ranks, {repeat + 1} of {REPEATS}", file=sys.stderr)
            found[ranks].append(job(ranks, rounds))
    sums = {f["parameters"] for same in found.values() for f in same}
    check(len(sums) == 1, "1, 2 and 4 ranks must train the same parameters", f"{len(sums)} checksums",
          "report it, with the processor and the versions")
    return found


def job(ranks: int, rounds: int) -> dict[str, Any]:
    """What bench/rank prints, of `ranks` ranks with a thread each. Raises CheckError where it cannot run."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mpiexec = shutil.which("mpiexec", path=places)
    check(mpiexec is not None, "the measurement needs mpiexec", "none", "in a clone, pip install '.[mpi]'")
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    threads = dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run([str(mpiexec), "-n", str(ranks), sys.executable, "-m", "bitnet_ref.bench.rank",
                           "--rounds", str(rounds)], env={**os.environ, **allowed, **threads},
                          capture_output=True, text=True)
    check(done.returncode == 0, f"a job of {ranks} ranks must run", done.stderr.strip()[-300:],
          "see whether mpiexec runs by itself")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def pooled(found: list[dict[str, Any]]) -> dict[str, float]:
    """{name: the median of all rounds of all jobs}"""
    return {name: statistics.median(t for f in found for t in f["seconds"][name])
            for name in found[0]["seconds"]}


def node(seconds: dict[str, float]) -> Node:
    """The machine, from what is not the predicted step: micro-batches of two other models, and their update.

    A micro-batch is a x operations + b x saved bytes (SL.3): two models give a and b. Raises CheckError if
    they are not positive.
    """
    kinds, tokens = {"small": SMALL, "large": LARGE}, BATCH * NANO.context
    work = [[tokens * train_ops_per_token(c, c.context), tokens * saved_bytes_per_token(c)]
            for c in kinds.values()]
    a, b = np.linalg.solve(np.array(work, float), [seconds[name] for name in kinds])
    check(a > 0 and b > 0, "times must grow with operations and with bytes", f"{a:.3g} and {b:.3g} s each",
          "measure again while nothing else runs")
    flat = (scaling.UPDATE + scaling.ADD + scaling.CLEAR) * count_params(LARGE).total
    network = PIECES * PIECE / seconds["piece"] if "piece" in seconds else 0.0
    return Node(1 / a, 1 / b, flat / seconds["update"], network, seconds.get("message", 0.0) / MESSAGES)


def measured(rounds: int) -> dict[str, Any]:
    """What docs/benchmarks/scaling.json keeps."""
    found = jobs(rounds)
    rows = []
    for ranks in (1, 2):
        seconds = pooled(found[ranks])
        on = node(seconds)
        rows.append({"ranks": ranks, "measured": seconds["step"], "node": on._asdict(),
                     "predicted": scaling.step(Job(NANO, BATCH, ACCUMULATE, ranks), on)._asdict()})
    return {"machine": machine(), "rounds": rounds * REPEATS, "rows": rows}


def validation_block(f: dict[str, Any]) -> str:
    """Predicted beside measured."""
    about = f["machine"]
    rows = ["| ranks | compute | sums | exchange | update | predicted | measured | predicted / measured | |",
            "|---|---|---|---|---|---|---|---|---|"]
    for row in f["rows"]:
        parts = [1e3 * s for s in row["predicted"].values()]
        off = sum(parts) / 1e3 / row["measured"]
        rows.append(f"| {row['ranks']} | " + " | ".join(f"{p:.1f}" for p in (*parts, sum(parts)))
                    + f" | {1e3 * row['measured']:.1f} | {off:.2f} | "
                    f"{'within' if abs(off - 1) <= FLOOR else 'beyond'} {FLOOR:.0%} |")
    rates = ["| ranks | products | activations | flat buffers | network | latency |",
             "|---|---|---|---|---|---|"]
    for row in f["rows"]:
        on = Node(**row["node"])
        network = on.network and f"{on.network / 1e9:.1f} GB/s | {1e6 * on.latency:.1f} us"
        rates.append(f"| {row['ranks']} | {on.products / 1e9:.0f} Gop/s | {on.activations / 1e9:.2f} GB/s "
                     f"| {on.memory / 1e9:.1f} GB/s | {network or ' | '} |")
    return (f"`nano`, {ACCUMULATE} micro-batches of {BATCH} x {NANO.context} tokens, one thread a rank; "
            f"{about['cores']} cores of {about['processor']}; medians of {f['rounds']} rounds, milliseconds. "
            "4 ranks ended with the same parameters as 1 and 2.\n\n" + "\n".join(rows)
            + "\n\nPredicted from these, per rank, measured on other models and on messages alone:\n\n"
            + "\n".join(rates))


# ---- predicted ----

def strong(cfg: ModelConfig, nodes: int) -> Job | None:
    """A step of SEQUENCES on `nodes`: micro-batches of 8, or of less for more nodes; None: too many."""
    n = max(SEQUENCES // 8, nodes)
    return Job(cfg, SEQUENCES // n, n, nodes) if n <= SEQUENCES else None


def weak(cfg: ModelConfig, nodes: int) -> Job:
    """Eight micro-batches of 8 for each node."""
    return Job(cfg, 8, 8 * nodes, nodes)


def model_block() -> str:
    """Models on nodes: seconds, efficiency, memory, bytes; then the ways to exchange."""
    rows = ["| model | network | nodes | s/step | exchange, s | could hide, s | efficiency | "
            "the same, weak | sent, GB | memory, GB |", "|---|---|---|---|---|---|---|---|---|---|"]
    for name in MODELS:
        cfg = PRESETS[name].model
        for network, on in NODES.items():
            for nodes in COUNTS[::2]:
                rows.append(f"| {name} | {network} | {nodes:,} | {_strong(strong(cfg, nodes), on)} | "
                            f"{scaling.efficiency(weak(cfg, nodes), on):.0%} | "
                            f"{scaling.sent_bytes(cfg, nodes) / 1e9:.1f} | "
                            f"{scaling.rank_bytes(strong(cfg, nodes) or weak(cfg, nodes)) / 1e9:,.0f} |")
    ways = ["| nodes | halves (here) | whole buffers | ring |", "|---|---|---|---|"]
    cfg, on = PRESETS[MODELS[-1]].model, NODES["10 Gb/s, 30 us"]
    for nodes in COUNTS[1:]:
        times = (way(cfg, nodes, on) for way in (scaling.exchange_seconds, scaling.whole_buffer_seconds,
                                                 scaling.ring_seconds))
        ways.append(f"| {nodes:,} | " + " | ".join(f"{t:.1f}" for t in times) + " |")
    return "\n".join(rows) + f"\n\nSeconds of an exchange of {MODELS[-1]} at 10 Gb/s:\n\n" + "\n".join(ways)


def _strong(job: Job | None, on: Node) -> str:
    """Seconds, exchange, what could be hidden, efficiency."""
    if job is None:
        return "more ranks than sequences | | | "
    s = scaling.step(job, on)
    alone = scaling.efficiency(job, on)
    return f"{s.seconds:,.1f} | {s.exchange:.2f} | {scaling.hidden_seconds(job, on):.2f} | {alone:.0%}"


def draw(path: Path) -> None:
    """Efficiency against nodes: strong and weak, each model, each network."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for ax, (network, on) in zip(axes, NODES.items()):
        for name, color in zip(MODELS, ("#3b6fb6", "#222222", "#d1603d")):
            cfg = PRESETS[name].model
            able = [(n, j) for n in COUNTS if (j := strong(cfg, n)) is not None]
            fixed = [scaling.efficiency(j, on) for _, j in able]
            ax.plot([n for n, _ in able], fixed, color=color, label=name)
            ax.plot(COUNTS, [scaling.efficiency(weak(cfg, n), on) for n in COUNTS], "--", color=color)
        ax.set(xscale="log", xlabel="nodes", ylim=(0, 1.03), title=network)
        ax.set_xticks(COUNTS[::2], [f"{n:,}" for n in COUNTS[::2]])
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("efficiency")
    axes[0].plot([], [], "k-", label="1 M tokens a step, whatever the nodes")
    axes[0].plot([], [], "k--", label="131,072 tokens a step and node")
    axes[0].legend(frameon=False, loc="lower left")
    with whole_file(path) as f:
        fig.savefig(f, format="png", dpi=110)
    plt.close(fig)


def main(argv: list[str]) -> int:
    """Parse, measure, print, write."""
    parser = Parser("python -m bitnet_ref.bench.scaling", __doc__)
    parser.add_argument("--rounds", type=int, default=7, metavar="N",
                        help="turns of a job, of which there are 3 (default: 7; 0: measure nothing)")
    parser.add_argument("--root", metavar="DIR", help="the clone whose docs are to be written")
    args = parser.parse_args(argv)
    check(args.rounds >= 0, "--rounds must not be negative", args.rounds, "give 0 or more")
    docs = None if args.root is None else Path(args.root) / "docs"
    check(docs is None or (docs / PAGE).is_file(), f"--root must be a clone, with docs/{PAGE}", args.root,
          "give another")
    f = measured(args.rounds) if args.rounds else None
    print(validation_block(f) if f else model_block())
    if docs:
        write(docs, f)
    return DONE


def write(docs: Path, f: dict[str, Any] | None) -> None:
    """The page and its picture, with what was measured, if anything was."""
    try:
        if f:
            (docs / FIGURES).write_text(json.dumps(f, indent=1) + "\n", encoding="utf-8")
            put(docs / PAGE, validation_block(f), "bench.scaling --rounds 7 --root .")
        put(docs / PAGE, model_block(), "bench.scaling --rounds 0 --root .")
        draw(docs / PICTURE)
    except OSError as e:
        raise CheckError(f"the docs must be writable; got {e}; check the path") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
