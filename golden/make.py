"""python golden/make.py            writes the golden tensors
python golden/make.py --check    regenerates everything in memory and compares it with what is stored

Needs torch, transformers and gguf (the extra `oracle`); these files are the project's only code that
needs torch, and they import nothing of bitnet_ref. Every case is computed by oracle.py and confirmed by
somebody else's code where that can express it; the two must agree, or nothing is written. `--retrain` trains
the tiny model anew; otherwise the stored one is kept, since another machine's training would end in other
bits.
"""

import argparse
import hashlib
import json
import math
import os
import re
import sys
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # transformers' quantisers are compiled otherwise

try:
    import bitnet_file
    import cases
    import gguf  # noqa: F401  (second.py calls it; missed here rather than at the end)
    import models
    import numpy as np
    import oracle
    import second
    import torch
    import transformers
    from safetensors.numpy import load_file, save
    from safetensors.torch import load as load_torch
    from safetensors.torch import save as save_torch
except ModuleNotFoundError as e:
    sys.exit(
        "error: torch, transformers and gguf must be installed; "
        f"got no {e.name}; python -m pip install '.[oracle]'"
    )

HERE = Path(__file__).resolve().parent
BUDGET = 5 << 20  # bytes of all .safetensors
DTYPES = {"float64": torch.float64, "float32": torch.float32}
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "model float64": 1e-12, "model float32": 1e-5}
GREEDY = 300  # characters of greedy.txt beyond the prompt


class Disagreement(Exception):
    """Two oracles, or an oracle and a stored file, differ by more than the tolerance."""


def worst(ours, theirs, where):
    """The largest error relative to the largest value, of the tensors in both. Integers must be equal."""
    found, both = 0.0, ours.keys() & theirs.keys()
    if not both:
        raise Disagreement(f"{where}: no tensor in common")
    for name in both:
        a, b = np.asarray(ours[name]), np.asarray(theirs[name])
        if a.shape != b.shape or not np.isfinite(np.asarray([a, b], np.float64)).all():
            raise Disagreement(
                f"{where} {name}: shapes {a.shape} and {b.shape}, or values that are not finite"
            )
        if a.dtype.kind in "iu" and not np.array_equal(a, b.astype(a.dtype)):
            raise Disagreement(f"{where} {name}: {np.count_nonzero(a != b)} integers differ")
        a, b = a.astype(np.float64), b.astype(np.float64)
        found = max(found, float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30)))
    return found


def agree(ours, theirs, tolerance, where):
    """The error, which must be within the tolerance."""
    error = worst(ours, theirs, where)
    if error > tolerance:
        raise Disagreement(f"{where}: {error:.1e} between the oracles, {tolerance:.0e} allowed")
    return error


def ops():
    """(files, manifest entries) of all single ops."""
    files, entries = {}, []
    for case in cases.op_cases():
        table = files.setdefault(case.stem, {})
        table |= {f"{case.name}/in.{n}": a for n, a in case.inputs.items()}
        agreed, unseen = {}, []
        for name, dtype in DTYPES.items():
            found = cases.evaluate(case.run, case, dtype)
            table |= {f"{case.name}/{name}/{n}": a for n, a in found.items()}
            if case.second and not (case.second_is_float32 and name == "float64"):
                theirs = cases.evaluate(case.second, case, dtype)
                agreed[name] = agree(found, theirs, TOLERANCE[name], f"{case.stem}/{case.name}/{name}")
                unseen = sorted(found.keys() - theirs.keys())
        entries.append(
            {
                "file": f"{case.stem}.safetensors",
                "case": case.name,
                "about": case.about,
                "tags": case.tags,
                "constants": case.constants,
                "tolerance": {n: TOLERANCE[n] for n in DTYPES},
                "second oracle": case.by if agreed else None,
                "why not": case.why_no_second,
                "agreed to": agreed,
                "first oracle only": unseen,
            }
        )
    return files, entries


def whole_models():
    """(files, manifest entries): one file a norm layout."""
    files, entries = {}, []
    for name, shape in models.shapes().items():
        seed, margin = models.clear_seed(shape)
        params, ids, targets = models.draw(shape, seed)
        table = files.setdefault(f"model_{shape.norm}", {})
        table |= {f"{name}/in.ids": ids, f"{name}/in.targets": targets}
        table |= {f"{name}/param.{n}": p for n, p in params.items()}
        found = {d: models.run(shape, params, ids, targets, dtype) for d, dtype in DTYPES.items()}
        for d, outs in found.items():
            table |= {f"{name}/{d}/{n}": a for n, a in outs.items()}
        agreed, why = {}, second.why_not(shape)
        if not why:
            theirs = second.run(
                shape,
                {n: torch.from_numpy(p) for n, p in params.items()},
                torch.from_numpy(ids),
                torch.from_numpy(targets),
            )
            agreed["float32"] = agree(found["float32"], theirs, TOLERANCE["model float32"], name)
        entries.append(
            {
                "file": f"model_{shape.norm}.safetensors",
                "case": name,
                "about": "logits, loss, stream between blocks, every gradient",
                "tags": "BK.1 TR.1",
                "model": shape._asdict(),
                "seed": seed,
                "margin": margin if math.isfinite(margin) else None,
                "tolerance": {d: TOLERANCE[f"model {d}"] for d in DTYPES},
                "second oracle": None if why else f"transformers {second.confirms(shape)}",
                "why not": why,
                "agreed to": agreed,
            }
        )
    return files, entries


def training():
    """(files, manifest entries, train10.json)."""
    tensors, record = models.train10()
    initial = {n: torch.from_numpy(p) for n, p in models.named("initial.", tensors).items()}
    theirs, figures = second.train(models.TRAIN_SHAPE, initial, models.TRAIN, record["steps"])
    theirs |= figures
    ours = {**tensors, **{n: np.array([s[n] for s in record["steps"]]) for n in figures}}
    error = agree(ours, theirs, TOLERANCE["model float32"], "train10")
    about = "ten AdamW steps, two-stage schedule, float64: initial and final parameters, both moments"
    return (
        {"train10": tensors},
        [
            {
                "file": "train10.safetensors",
                "case": "train10",
                "about": about,
                "tags": "SC.1 SC.3 SC.4 OP.1 OP.2 OP.3 AW.1",
                "seed": models.TRAIN_SEED,
                "tolerance": {
                    "float64": TOLERANCE["model float64"],
                    "float32 quantisers": TOLERANCE["model float32"],
                },
                "second oracle": "transformers BitNetForCausalLM, online; torch.optim.AdamW, clip_grad_norm_",
                "agreed to": {"float32 quantisers": error},
                "first oracle only": ["lr", "weight_decay"],
                "why not": "",
            }
        ],
        record,
    )


def other_files():
    """(files, manifest entries): bytes of other projects' layouts."""
    found = models.rosetta()
    for name, data in found.items():
        at, kind = name.split("/")
        if kind == "hf":
            w_q = found[f"{at}/w_q"]
            if not np.array_equal(second.packed(w_q), data):
                raise Disagreement(f"rosetta {name}: transformers packs otherwise")
            if len(w_q) % 4 == 0 and not np.array_equal(second.unpacked(data), w_q):
                raise Disagreement(f"rosetta {name}: transformers unpacks otherwise")
    found |= models.layouts()
    unseen = [n for n in found if n.split("/")[1] in ("i2", "b3", "base3", "keras", "gpu", "torchao")]
    unseen += [n for n in found if n.split("/")[1] in ("q2_0", "pq2_0", "ptq1_0") or "i2s" in n]
    confirm_layouts(found)
    products = second.offline_products(
        found["products/x"],
        found["8x128/hf"],
        found["8x128/w_q"],
        found["products/weight_scale_autobitlinear"],
        found["products/weight_scale_bitlinear"],
    )
    error = max(agree({"y": found["products/y"]}, {"y": y}, 2e-6, "rosetta products") for y in products)
    return {"rosetta": found}, [
        {
            "file": "rosetta.safetensors",
            "case": "rosetta",
            "tags": "",
            "about": "trits and the bytes that hold them in fifteen layouts; a product",
            "tolerance": {"float32": 2e-6},
            "second oracle": "transformers pack_weights, unpack_weights, AutoBitLinear offline, BitLinear; "
            "gguf TQ1_0, TQ2_0",
            "agreed to": {"float32": error},
            "first oracle only": sorted(unseen),
            "why not": "the others: no installable Python code of those who define them",
        }
    ]


def confirm_layouts(found):
    """Hugging Face's rows by transformers; TQ1_0 and TQ2_0, both ways and with other scales, by gguf."""
    for at in ("layouts", "odd"):
        if not np.array_equal(second.packed(found[f"{at}/w_q"]).reshape(-1), found[f"{at}/hf"]):
            raise Disagreement(f"rosetta {at}/hf: transformers packs otherwise")
    for kind in ("tq1_0", "tq2_0"):
        w_q, data = found["layouts/w_q"], found[f"layouts/{kind}"]
        if not np.array_equal(second.in_blocks(w_q, kind), data):
            raise Disagreement(f"rosetta layouts/{kind}: gguf packs otherwise")
        w_q, data, d = found["scaled/w_q"], found[f"scaled/{kind}"], found[f"scaled/{kind}_scale"]
        if not np.array_equal(second.from_blocks(data, w_q.shape, kind), w_q * np.repeat(d, 256, axis=1)):
            raise Disagreement(f"rosetta scaled/{kind}: gguf unpacks otherwise")


def tiny(retrain):
    """(safetensors bytes, config.json, greedy text, manifest entry) of the trained model."""
    file = HERE / "tiny" / "model.safetensors"
    data = (
        file.read_bytes() if file.exists() and not retrain else save_torch(_packed_tiny(models.train_tiny()))
    )
    params = _unpacked_tiny(load_torch(data))
    text, lead = models.greedy(lambda ids: oracle.Model(models.TINY, params).logits(ids), GREEDY)
    theirs = second.build(models.TINY)
    with torch.no_grad():
        for name, t in params.items():
            second.parameter(theirs, name).copy_(t)
    other, _ = models.greedy(lambda ids: theirs(ids).logits, GREEDY)
    if other != text:
        raise Disagreement("tiny: the oracles write different texts")
    if text != models.TEXT[: len(text)]:
        raise Disagreement(f"tiny: the model has not learnt its text: {text!r}")
    return (
        data,
        _tiny_config(),
        text,
        {
            "file": "tiny/model.safetensors",
            "case": "tiny",
            "tags": "",
            "tolerance": {},
            "about": "a model of the 2B4T shape that knows a text by heart; greedy.txt is what it says",
            "margin": lead,
            "second oracle": "transformers BitNetForCausalLM, online",
            "agreed to": {"text": "equal"},
            "why not": "",
        },
    )


HF = {**second.PROJECTIONS, **second.NORMS}


def _hf_name(name):
    if name in ("embedding", "final_norm"):
        return {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight"}[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{HF[rest]}.weight"


def _packed_tiny(params):
    """A Hugging Face checkpoint: trits in 2 bits, the rest bfloat16, weight_scale = mean|W|."""
    held = {}
    for name, p in params.items():
        p = p.detach()
        if name.startswith("layers") and p.ndim == 2:
            w_q, scale = oracle.weight_codes(p)
            held[_hf_name(name)] = torch.from_numpy(second.packed(w_q.numpy()))
            held[_hf_name(name) + "_scale"] = scale.reshape(1).to(torch.bfloat16)
        else:
            held[_hf_name(name)] = p.to(torch.bfloat16)
    return held


def _unpacked_tiny(held):
    """Float32 parameters whose absmean ternarisation gives the stored trits and scale again.

    They are +-s and 0, with s such that the mean magnitude is the stored scale.
    """
    params = {}
    for name, size in oracle.tensor_shapes(models.TINY).items():
        t = held[_hf_name(name)]
        if t.dtype == torch.uint8:
            w_q = torch.from_numpy(second.unpacked(t.numpy())).float()[: size[0]]
            scale = held[_hf_name(name) + "_scale"].float()
            params[name] = w_q * (scale / w_q.abs().mean())
        else:
            params[name] = t.float()
    return params


def tiny_bitnet(data):
    """The same model as a .bitnet file. Trits, scales and bfloat16 as they are."""
    held = load_torch(data)
    matrices, floats = {}, {}
    for name, size in oracle.tensor_shapes(models.TINY).items():
        t = held[_hf_name(name)]
        if t.dtype == torch.uint8:
            trits = second.unpacked(t.numpy())[: size[0]]
            matrices[name] = (trits.astype(np.int8), held[_hf_name(name) + "_scale"].float().item())
        else:
            floats[name] = ("BF16", list(t.shape), t.contiguous().view(torch.uint8).numpy().tobytes())
    s = models.TINY
    config = {
        "vocab_size": s.vocab,
        "d_model": s.width,
        "n_layers": s.layers,
        "n_heads": s.heads,
        "n_kv_heads": s.kv_heads,
        "d_ff": s.ffn,
        "context": 512,
        "norm": s.norm,
        "inner_gain": False,
        "glu": s.glu,
        "linear": "ternary",
        "head": "full",
        "tied_embeddings": s.tied,
        "rope_theta": s.theta,
        "norm_eps": s.eps,
        "init_std": 0.02,
    }
    return bitnet_file.bitnet_file(config, "tiny", floats, matrices)


def _tiny_config():
    s = models.TINY
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": s.vocab,
        "hidden_size": s.width,
        "intermediate_size": s.ffn,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "hidden_act": "relu2",
        "rms_norm_eps": s.eps,
        "rope_theta": s.theta,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": None,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }


def everything(retrain):
    """({path: bytes}, entries, {path: tensors}) of all that golden/ holds but README.md and the checksums."""
    tables, entries = {}, []
    for part in (ops, whole_models, other_files):
        files, more = part()
        tables |= files
        entries += more
    files, more, record = training()
    tables |= files
    data, config, text, entry = tiny(retrain)
    entries += [*more, entry]
    made = {
        f"{stem}.safetensors": in_order(
            save({n: np.asarray(a, order="C") for n, a in table.items()}, _metadata(stem, entries))
        )
        for stem, table in tables.items()
    }
    made |= {
        "tiny/model.safetensors": data,
        "tiny/config.json": _json(config),
        "tiny.bitnet": tiny_bitnet(data),
        "greedy.txt": text.encode(),
        "train10.json": _json(record),
    }
    made["manifest.json"] = _json(
        {"torch": torch.__version__, "transformers": transformers.__version__, "cases": entries}
    )
    return made, entries, tables


def _metadata(stem, entries):
    own = [e for e in entries if e["file"] == f"{stem}.safetensors"]
    return {
        "made by": "golden/make.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tags": " ".join(sorted({t for e in own for t in e["tags"].split()})),
        "tolerance": json.dumps(own[0]["tolerance"]),
        "cases": json.dumps({e["case"]: e["about"] for e in own}),
        "seeds": json.dumps({e["case"]: e["seed"] for e in own if "seed" in e}),
    }


def in_order(data):
    """The same file with its header's names sorted: the library writes them in another order every time."""
    n = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + n]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + n :]


def _json(value):
    return (json.dumps(value, indent=1) + "\n").encode()


def table(entries):
    """The table of cases for README.md."""
    lines = ["| file | case | second oracle | agreed to | margin |", "|---|---|---|---|---|"]
    for e in entries:
        agreed = ", ".join(
            f"{d} {v:.0e}" if isinstance(v, float) else f"{d} {v}" for d, v in e["agreed to"].items()
        )
        margin = f"{e['margin']:.1e}" if e.get("margin") else ""
        lines.append(
            f"| {e['file']} | {e['case']} | {e['second oracle'] or 'none: ' + e['why not']} | {agreed} | "
            f"{margin} |"
        )
    return "\n".join(lines)


def write(made, entries):
    """Everything, then README's table, then the checksums."""
    size = sum(len(data) for name, data in made.items() if name.endswith(".safetensors"))
    if size > BUDGET:
        raise Disagreement(f"{size:,} bytes of tensors, {BUDGET:,} allowed")
    for name, data in made.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_bytes(data)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(made.items()))
    (HERE / "SHA256SUMS").write_text(sums, encoding="utf-8")
    readme = HERE / "README.md"
    marked = re.compile(r"(<!-- generated: python golden/make.py -->\n).*?(<!-- end -->)", re.DOTALL)
    text = marked.sub(lambda m: m[1] + table(entries) + "\n" + m[2], readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")
    print(f"{len(made)} files, {size:,} bytes of tensors, {len(entries)} cases")


def check(made, entries, tables):
    """Checksums, then every tensor beside what was just made of it. Another BLAS may round otherwise."""
    for line in (HERE / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ")
        if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            raise Disagreement(f"{name} does not have the checksum in SHA256SUMS")
    largest = 0.0
    for stem, new in tables.items():
        stored = load_file(HERE / f"{stem}.safetensors")
        if stored.keys() != new.keys():
            raise Disagreement(f"{stem}: other tensors are stored: {sorted(stored.keys() ^ new.keys())[:3]}")
        for name, a in new.items():
            whole = stem.startswith(("model", "train"))
            allowed = (1e-5 if whole else 2e-6) if "/float32/" in name else 1e-12
            largest = max(largest, agree({name: stored[name]}, {name: a}, allowed, stem) / allowed)
    figures = (models.figures(json.loads(data)) for data in (_stored("train10.json"), made["train10.json"]))
    largest = max(largest, agree(*figures, 1e-12, "train10.json") / 1e-12)
    if _stored("tiny.bitnet") != made["tiny.bitnet"]:
        raise Disagreement("tiny.bitnet: the stored model is packed otherwise")
    if _stored("greedy.txt") != made["greedy.txt"]:
        raise Disagreement("greedy.txt: the stored model writes another text")
    if _told(json.loads(_stored("manifest.json"))["cases"]) != _told(entries):
        raise Disagreement("manifest.json: other cases, seeds or oracles than these")
    confirmed = sum(bool(e["second oracle"]) for e in entries)
    print(
        f"{len(entries)} cases regenerated, {confirmed} confirmed by a second oracle; "
        f"stored tensors within {largest:.1%} of the tolerance"
    )


def _stored(name):
    return (HERE / name).read_bytes()


def _told(entries):
    """What the manifest says, less the errors and margins, whose last digits are the machine's."""
    return [{n: e[n] for n in e if n not in ("agreed to", "margin")} for e in json.loads(json.dumps(entries))]


def main():
    """Write, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with what is stored; write nothing")
    parser.add_argument("--retrain", action="store_true", help="train the tiny model anew")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the same sums on every number of cores
    try:
        made, entries, tables = everything(args.retrain and not args.check)
        if args.check:
            check(made, entries, tables)
        else:
            write(made, entries)
    except (Disagreement, OSError) as e:
        sys.exit(f"error: the golden tensors must be confirmed; got {e}; find out which is wrong")


if __name__ == "__main__":
    main()
