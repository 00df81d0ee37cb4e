"""python -m bitnet_ref.bench.golden

The reference (or another backend) beside the golden tensors: every case is run in both precisions and the
worst error of each is written into docs/golden.md. The tests hold the same functions to the tolerances.
golden/README.md says what the files hold; they are made by golden/make.py, which shares no code with this.
Read after: bench/__main__. Read next: conform.
"""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from bitnet_ref import kernels
from bitnet_ref.bench.page import put
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.layers.rope import rope_table
from bitnet_ref.model.params import Params, param_specs
from bitnet_ref.model.transformer import Transformer, backward, forward
from bitnet_ref.train.optim import Adam, clip_, update_
from bitnet_ref.train.schedule import lr_at, wd_at

Table = dict[str, Any]
DTYPES = {"float64": np.float64, "float32": np.float32}
MODEL = {"width": "d_model", "vocab": "vocab_size", "layers": "n_layers", "heads": "n_heads",
         "kv_heads": "n_kv_heads", "ffn": "d_ff", "tied": "tied_embeddings", "theta": "rope_theta",
         "eps": "norm_eps"}                                # golden/oracle.py's words -> ours


class Case(NamedTuple):
    """A golden case: its manifest entry, and its tensors by the parts of their names."""

    entry: Table
    tensors: dict[str, np.ndarray]

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """{rest of the name: tensor} of names that begin with `prefix`."""
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}


def folder() -> Path:
    """golden/: inside the package when installed, beside it in a clone. Raises CheckError if absent."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "golden", package.parent / "golden"):
        if (place / "manifest.json").is_file():
            return place
    check(False, "the golden tensors must be there", f"none beside {package}", "run python golden/make.py")
    raise AssertionError


@cache
def manifest() -> list[Table]:
    """Every case's entry."""
    return json.loads((folder() / "manifest.json").read_text(encoding="utf-8"))["cases"]


@cache
def read(file: str) -> dict[str, np.ndarray]:
    """The tensors of one golden file."""
    return load_file(folder() / file)


def cases(stem: str) -> dict[str, Case]:
    """{name: Case} of one file."""
    own = [e for e in manifest() if e["file"] == f"{stem}.safetensors"]
    held = read(f"{stem}.safetensors")
    return {e["case"]: Case(e, {n.removeprefix(f"{e['case']}/"): t for n, t in held.items()
                                if n.startswith(f"{e['case']}/")}) for e in own}


def errors(case: Case, stem: str, dtype: str, ops: Any) -> dict[str, float]:
    """{tensor: error relative to its largest value} of backend `ops`; integers that differ are infinite."""
    run = RUN["model" if stem.startswith("model") else stem]
    inputs = {n: t.astype(DTYPES[dtype]) if t.dtype.kind == "f" else t
              for n, t in {**case.part("in."), **case.part("param.")}.items()}
    with np.errstate(all="ignore"):
        ours = run(inputs, case.entry.get("constants", case.entry), ops)
    theirs = case.part(f"{dtype}/")
    check(ours.keys() == theirs.keys(), f"{stem} {case.entry['case']} must give {sorted(theirs)}",
          sorted(ours), "bring bench/golden.py and golden/ together")
    return {name: error(ours[name], theirs[name]) for name in theirs}


def error(ours: Any, theirs: np.ndarray) -> float:
    """Largest difference relative to the largest value; infinite for other shapes or integers."""
    ours = np.asarray(ours)
    if ours.shape != theirs.shape or (theirs.dtype == np.int8 and not np.array_equal(ours, theirs)):
        return np.inf
    off = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0)
    return float(off / max(np.abs(theirs, dtype=np.float64).max(initial=0), 1e-30))


# ---- the ops, by the names of the cases ------------------------------------------------------------------


def _embedding(i: Table, c: Table, ops: Any) -> Table:
    dw = np.zeros_like(i["w"])
    ops.embedding_backward(i["dy"], i["ids"], dw)
    return {"out.y": ops.embedding(i["ids"], i["w"]), "grad.dw": dw}


def _rmsnorm(i: Table, c: Table, ops: Any) -> Table:
    g = i.get("g")
    y, rstd = ops.rmsnorm(i["x"], g)
    dg = None if g is None else np.zeros_like(g)
    found = {"out.y": y, "out.rstd": rstd, "grad.dx": ops.rmsnorm_backward(i["dy"], i["x"], g, rstd, dg)}
    return found if g is None else {**found, "grad.dg": dg}


def _rope(i: Table, c: Table, ops: Any) -> Table:
    cos, sin = rope_table(i["positions"], i["x"].shape[-1], c["theta"], i["x"].dtype)
    return {"out.y": ops.rope(i["x"], cos, sin), "grad.dx": ops.rope_backward(i["dy"], cos, sin)}


def _attention(i: Table, c: Table, ops: Any) -> Table:
    q, k, v = i["q"], i["k"], i["v"]
    o, lse = ops.attention(q, k, v)
    dq, dk, dv = ops.attention_backward(i["do"], q, k, v, o, lse)
    B, T, H, _ = q.shape
    return {"out.o": o, "out.lse": lse.reshape(B, H, T), "grad.dq": dq, "grad.dk": dk, "grad.dv": dv}


def _glu(i: Table, c: Table, ops: Any) -> Table:
    unit, unit_backward = getattr(ops, c["unit"]), getattr(ops, f"{c['unit']}_backward")
    dgate, dup = unit_backward(i["dy"], i["gate"], i["up"])
    return {"out.y": unit(i["gate"], i["up"]), "grad.dgate": dgate, "grad.dup": dup}


def _linear(i: Table, c: Table, ops: Any) -> Table:
    dw = np.zeros_like(i["w"])
    return {"out.y": ops.linear(i["x"], i["w"]), "grad.dx": ops.linear_backward(i["dy"], i["x"], i["w"], dw),
            "grad.dw": dw}


def _quant(i: Table, c: Table, ops: Any) -> Table:
    names, found = (("x_q", "x_scale"), ops.absmax_int8(i["x"])) if "x" in i else (
        ("w_q", "w_scale"), ops.absmean_ternary(i["w"], c["rule"]))
    return {f"out.{n}": t for n, t in zip(names, found)}


def _bitlinear(i: Table, c: Table, ops: Any) -> Table:
    if "x_q" in i:
        w = ops.prepare(i["w_q"].astype(np.int8), i["w_scale"])
        return {"out.y": ops.ternary_linear(i["x_q"].astype(np.int8), i["x_scale"], w)}
    x, w, g = i["x"], i["w"], i.get("g")
    y, x_q, x_scale, ternary, rstd = ops.bitlinear(x, g, w)
    w_q, w_scale = ops.absmean_ternary(w)
    dw, dg = np.zeros_like(w), None if g is None else np.zeros_like(g)
    dx = ops.bitlinear_backward(i["dy"], x, g, x_q, x_scale, ternary, rstd, dg, dw)
    found = {"out.y": y, "out.x_q": x_q, "out.x_scale": x_scale, "out.w_q": w_q, "out.w_scale": w_scale,
             "grad.dx": dx, "grad.dw": dw}
    return found if g is None else {**found, "grad.dg": dg}


def _cross_entropy(i: Table, c: Table, ops: Any) -> Table:
    loss, lse = ops.cross_entropy(i["logits"], i["targets"])
    return {"out.loss": loss, "out.lse": lse[:, 0],
            "grad.dlogits": ops.cross_entropy_backward(i["dloss"], i["logits"], i["targets"], lse)}


def _adamw(i: Table, c: Table, ops: Any) -> Table:
    p, m, v = i["p"].copy(), np.zeros_like(i["p"]), np.zeros_like(i["p"])
    found: Table = {}
    for step in (1, 2, 3):
        ops.adamw_(p, i[f"g{step}"], m, v, step, c["lr"], c["decay"], c["beta1"], c["beta2"], c["eps"])
        found |= {f"out.p{step}": p.copy(), f"out.m{step}": m.copy(), f"out.v{step}": v.copy()}
    return found


def model_config(shape: Table) -> ModelConfig:
    """Our config of a golden model."""
    return ModelConfig(context=64, **{MODEL.get(n, n): value for n, value in shape.items()})


def _filled(cfg: ModelConfig, tensors: Table, dtype: Any) -> Params:
    params = Params(param_specs(cfg), dtype)
    for name, view in params.view.items():
        view[...] = tensors[name]
    return params


def _model(i: Table, c: Table, ops: Any) -> Table:
    cfg, dtype = model_config(c["model"]), i["embedding"].dtype
    model = Transformer(cfg, _filled(cfg, i, dtype), ops)
    logits, saved = forward(model.plan, model.ready, i["ids"])
    assert saved is not None
    rows, targets = logits.reshape(-1, cfg.vocab_size), i["targets"].reshape(-1)
    loss, lse = ops.cross_entropy(rows, targets)
    assert model.params is not None
    grads = model.params.zeros_like()
    dlogits = ops.cross_entropy_backward(dtype.type(1), rows, targets, lse)
    backward(model.plan, model.ready, i["ids"], dlogits.reshape(logits.shape), saved, grads)
    last = ops.rmsnorm(saved.x, model.params["final_norm"], cfg.norm_eps)[0]
    hidden = [*(s.x for s in saved.blocks), saved.x, last]
    return {"out.logits": logits, "out.loss": loss, **{f"out.hidden{n}": h for n, h in enumerate(hidden)},
            **{f"grad.{n}": g for n, g in grads.view.items()}}


RUN: dict[str, Callable[[Table, Table, Any], Table]] = {
    "embedding": _embedding, "rmsnorm": _rmsnorm, "rope": _rope, "attention": _attention, "glu": _glu,
    "linear": _linear, "quant": _quant, "bitlinear": _bitlinear, "cross_entropy": _cross_entropy,
    "adamw": _adamw, "model": _model}
STEMS = (*(s for s in RUN if s != "model"), "model_pre", "model_sub", "model_inner")


def train10(ops: Any, dtype: str = "float64") -> dict[str, float]:
    """{tensor or figure: error} of ten training steps beside golden/train10, which was made in float64.

    Parameters, gradients and moments lie where the backend has those it trains.
    """
    record = json.loads((folder() / "train10.json").read_text(encoding="utf-8"))
    held, cfg = read("train10.safetensors"), model_config(record["model"])
    train = TrainConfig(schedule="two-stage", **record["train"])
    initial = {n.removeprefix("initial."): t for n, t in held.items() if n.startswith("initial.")}
    params = Params(param_specs(cfg), DTYPES[dtype], ops)
    params.store(_filled(cfg, initial, DTYPES[dtype]))
    model, grads = Transformer(cfg, params, ops), params.zeros_like()
    adam = Adam(params.zeros_like(), params.zeros_like())
    found: dict[str, float] = {}
    for step, want in enumerate(record["steps"]):
        loss = model.loss_and_grads([(np.array(want["ids"]), np.array(want["targets"]))], grads)
        norm, lr, wd = clip_(grads.flat, train.max_norm, ops), lr_at(step, train), wd_at(step, train)
        update_(params, grads, adam, step + 1, lr, wd, train, ops)
        model.requantise()
        for name, ours in (("loss", loss), ("gradient_norm", norm), ("lr", lr), ("weight_decay", wd)):
            found[f"step {step} {name}"] = error(ours, np.array(want[name]))
    for kind, table in (("final", params), ("first_moment", adam.first), ("second_moment", adam.second)):
        found |= {f"{kind}.{n}": error(t, held[f"{kind}.{n}"]) for n, t in table.fetched().view.items()}
    return found


def page(ops: Any) -> str:
    """The table of docs/golden.md: the worst error of every file and precision, and where."""
    lines = ["| file | cases | confirmed by a second oracle | float64: worst error | where "
             "| float32: worst error | where |", "|---|---|---|---|---|---|---|"]
    for stem in STEMS:
        own, cells = cases(stem), []
        for dtype in DTYPES:
            all_errors = {f"{name} {t}": e for name, case in own.items()
                          for t, e in errors(case, stem, dtype, ops).items()}
            where = max(all_errors, key=lambda t: all_errors[t])
            cells += [f"{all_errors[where]:.1e}", where]
        confirmed = sum(bool(c.entry["second oracle"]) for c in own.values())
        lines.append(f"| {stem} | {len(own)} | {confirmed} | " + " | ".join(cells) + " |")
    cells, confirmed = [], sum(bool(c.entry["second oracle"]) for c in cases("train10").values())
    for dtype in DTYPES:
        ten = train10(ops, dtype)
        where = max(ten, key=lambda t: ten[t])
        cells += [f"{ten[where]:.1e}", where]
    return "\n".join([*lines, f"| train10 | 1 | {confirmed} | " + " | ".join(cells) + " |"])


def main(argv: list[str]) -> int:
    """Parse, compare, write."""
    parser = Parser("python -m bitnet_ref.bench.golden", __doc__)
    parser.add_argument("--root", default=".", metavar="DIR", help="the clone to write into (default: here)")
    parser.add_argument("--backend", default="numpy", help="implementation of the ops (default: numpy)")
    args = parser.parse_args(argv)
    put(Path(args.root) / "docs" / "golden.md", page(kernels.load(args.backend)), "bench.golden")
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
