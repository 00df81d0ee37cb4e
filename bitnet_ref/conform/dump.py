"""python -m bitnet_ref.conform dump --model PATH --ids 1,2,3 [--layers 0,1] [--output DIR]

Write the reference's own tensors of a real checkpoint, by the names of docs/porting.md, and their norms, to
compare a port with. Of a Hugging Face folder one layer is in memory at a time.
What a block does not keep (q and k before RoPE, normalised inputs, the projections that go into the stream)
is computed anew from what it keeps, by the same ops: it is what the block used, bit for bit.
Read after: conform/checkpoint. Read next: conform/__main__.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import DONE, text
from bitnet_ref.config import ModelConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.formats import hf
from bitnet_ref.formats.checkpoint import latest, model_config, read_params, read_state
from bitnet_ref.formats.source import in_memory
from bitnet_ref.layers.rope import rope_table
from bitnet_ref.model.block import Plan, block, build
from bitnet_ref.model.layout import Entry
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.projection import Entered, Projection
from bitnet_ref.model.saved import SavedBlock
from bitnet_ref.model.weights import Trits, Weights, ternarise

FILE = "dump.safetensors"
Table = dict[str, np.ndarray]


class Source(NamedTuple):
    """A model, read piece by piece: rows of the embedding, named weights, the head by blocks of rows."""

    cfg: ModelConfig
    rows: Callable[[np.ndarray], np.ndarray]
    weights: Callable[[list[str]], Weights]
    head: Callable[[], Iterator[Any]]


def source(path: str | Path) -> Source:
    """Of a Hugging Face folder, streaming, or of a run of ours, whole. Raises CheckError for neither."""
    if hf.is_folder(path):
        opened = hf.open_folder(path)
        return Source(opened.config.model, lambda ids: hf.embedding_rows(opened, ids),
                      lambda names: Weights({n: in_memory(hf.tensor(opened, n)) for n in names}),
                      lambda: hf.head_rows(opened))
    checkpoint = latest(path)
    state = read_state(checkpoint)
    cfg = model_config(state)
    held = ternarise(cfg, read_params(checkpoint, state), kernels.load())
    return Source(cfg, lambda ids: held["embedding"][ids],                      # type: ignore[index]
                  lambda names: Weights({n: held[n] for n in names}), lambda: iter([held["head"]]))


def dump(model: Source, ids: list[int], layers: list[int] | None = None) -> Table:
    """Every named tensor of the chosen layers (all), in dataflow order; the logits if all layers are run.

    ids (T,)  ->  name -> float32 or int8 (T, ...). Raises CheckError: ids, layers or a layout that cannot be.
    """
    cfg = model.cfg
    check(not cfg.inner_gain, "the layout must have one norm at each place", "a gain per projection",
          "dump a model of norm = sub, pre, or inner without gains")
    tokens, chosen = _checked_ids(ids, cfg), _checked_layers(layers, cfg)
    plan = build(cfg, kernels.load())
    x = model.rows(tokens)[None]
    held: Table = {"embedding_out": x[0]}
    table = rope_table(np.arange(len(tokens)), cfg.head_dim, cfg.rope_theta, x.dtype.type)
    for l in range(max(chosen) + 1):
        x, made = _layer(model, plan, f"layers.{l}.", x, table, l in chosen)
        held |= made
    if max(chosen) == cfg.n_layers - 1:
        held |= _ending(model, plan, x)
    return held


def _checked_ids(ids: list[int], cfg: ModelConfig) -> np.ndarray:
    check(0 < len(ids) <= cfg.context, f"--ids must be 1 to {cfg.context} ids", len(ids), "give fewer")
    check(min(ids) >= 0 and max(ids) < cfg.vocab_size, f"--ids must lie in 0..{cfg.vocab_size - 1}",
          f"{min(ids)}..{max(ids)}", "use the model's tokenizer")
    return np.array(ids)


def _checked_layers(layers: list[int] | None, cfg: ModelConfig) -> set[int]:
    chosen = set(range(cfg.n_layers) if layers is None else layers)
    check(bool(chosen) and min(chosen) >= 0 and max(chosen) < cfg.n_layers,
          f"--layers must lie in 0..{cfg.n_layers - 1}", sorted(chosen), "name layers that the model has")
    return chosen


def _layer(model: Source, plan: Plan, at: str, x: np.ndarray, table: tuple[np.ndarray, np.ndarray],
           wanted: bool) -> tuple[np.ndarray, Table]:
    """One block, its tensors if they are wanted. Its weights are gone when it returns."""
    w = model.weights([s.name for s in param_specs(model.cfg) if s.name.startswith(at)]).ready(plan.ops)
    out, saved = block(x, w, at, table, plan)
    return out, {at + name: t for name, t in block_tensors(plan, w, at, saved, out)} if wanted else {}


def block_tensors(plan: Plan, w: dict[str, Any], at: str, s: SavedBlock,
                  out: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(name, (T, ...)) of all that happens in one block, in dataflow order."""
    places, rows = plan.layout, s.x.shape[1]
    yield "x", s.x[0]
    yield from _entering("attn_norm", s.x, places.qkv[0], s.in_qkv[0], plan, w, at)
    q, k, v = _products(places.qkv[0], s.in_qkv[0], plan.linear, w, at)
    yield from (("q", q[0]), ("k", k[0]), ("v", v[0]))
    yield from (("q_rope", s.q[0].reshape(rows, -1)), ("k_rope", s.k[0].reshape(rows, -1)))
    o = s.o.reshape(s.x.shape)
    yield "attn", o[0]
    yield from _entering("attn_sub_norm", o, places.out[0], s.in_out[0], plan, w, at, without="attn")
    yield "o", _products(places.out[0], s.in_out[0], plan.linear, w, at)[0][0]
    yield "h", s.h[0]
    yield from _entering("ffn_norm", s.h, places.gate_up[0], s.in_gate_up[0], plan, w, at)
    yield from (("gate", s.gate[0]), ("up", s.up[0]), ("act", s.u[0]))
    yield from _entering("ffn_sub_norm", s.u, places.down[0], s.in_down[0], plan, w, at, without="act")
    yield "down", _products(places.down[0], s.in_down[0], plan.linear, w, at)[0][0]
    yield "out", out[0]


def _entering(name: str, x: np.ndarray, entry: Entry, entered: Entered, plan: Plan, w: dict[str, Any],
              at: str, without: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The normalised input and its codes; where the layout has no norm, the codes of `without`."""
    if entry.norm is None:
        name = without
    else:
        yield name, plan.ops.rmsnorm(x, w.get(at + entry.norm), plan.cfg.norm_eps)[0][0]
    if len(entered.operand) == 2:
        yield f"{name}.x_q", entered.operand[0][0]
        yield f"{name}.x_scale", entered.operand[1][0]


def _products(entry: Entry, entered: Entered, kind: Projection, w: dict[str, Any],
              at: str) -> list[np.ndarray]:
    return [kind.multiply(*entered.operand, w[at + name]) for name in entry.weights]


def _ending(model: Source, plan: Plan, x: np.ndarray) -> Table:
    """Final norm and logits, from blocks of rows of the head: of 2B4T it would be 1.3 GB in float32."""
    gain = model.weights(["final_norm"])["final_norm"]
    *operand, _ = plan.head.normalise(x, gain, plan.cfg.norm_eps)
    parts = (plan.ops.prepare(*w) if isinstance(w, Trits) else w for w in model.head())
    logits = np.concatenate([plan.head.multiply(*operand, w) for w in parts], axis=-1)
    return {"final_norm": plan.ops.rmsnorm(x, gain, plan.cfg.norm_eps)[0][0], "logits": logits[0]}


def norms(held: Table) -> list[dict[str, Any]]:
    """For each tensor: name, dtype, shape, L2 norm, largest magnitude."""
    wide = {name: t.astype(np.float64) for name, t in held.items()}
    return [{"name": name, "dtype": str(held[name].dtype), "shape": list(t.shape),
             "l2": float(np.sqrt(np.sum(t * t))), "max": float(np.abs(t).max())} for name, t in wide.items()]


def write(held: Table, ids: list[int], folder: str | Path) -> Path:
    """Write DIR/dump.safetensors: the tensors and the ids. Returns its path."""
    from safetensors.numpy import save

    tensors = {"ids": np.array(ids, np.int32), **{n: np.ascontiguousarray(t) for n, t in held.items()}}
    path = Path(folder) / FILE
    with whole_file(path) as f:
        f.write(save(tensors, {"format": "bitnet_ref dump"}))
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `conform dump`."""
    parser.add_argument("--model", type=text, required=True, metavar="PATH",
                        help="a Hugging Face folder, or the folder of a training run")
    parser.add_argument("--ids", type=text, required=True, metavar="1,2,3", help="token ids, with commas")
    parser.add_argument("--layers", type=text, metavar="0,1",
                        help="layers to write (default: all, and the logits)")
    parser.add_argument("--output", type=text, metavar="DIR", help=f"write {FILE} there")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the layers, write, print the table of norms."""
    ids = _integers("--ids", args.ids)
    held = dump(source(args.model), ids, None if args.layers is None else _integers("--layers", args.layers))
    if args.output is not None:
        write(held, ids, args.output)
    lines = norms(held)
    if args.json:
        print(json.dumps(lines, indent=1))
    else:
        print(f"{'tensor':<32} {'dtype':<8} {'shape':>14} {'L2':>14} {'max':>14}")
        for t in lines:
            shape = " x ".join(map(str, t["shape"]))
            print(f"{t['name']:<32} {t['dtype']:<8} {shape:>14} {t['l2']:>14.7g} {t['max']:>14.7g}")
    return DONE


def _integers(flag: str, typed: str) -> list[int]:
    try:
        return [int(part) for part in typed.split(",")]
    except ValueError:
        raise CheckError(f"{flag} must be integers with commas between; got {typed!r}; write 1,2,3") from None
