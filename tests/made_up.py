"""Records of evaluations that nobody made: figures chosen so that a test knows what must come of them."""

import math

import numpy as np

from bitnet_ref.evaluate.records import Data, Made, Metric, Model, Record

MADE = Made("python -m bitnet_ref.evaluate report", "2026-01-01T00:00:00+00:00", 1.0, {"python": "3.11"},
            {"cpu": "none", "cores": 2})


def model(**given):
    """A model whose checksums are words."""
    return Model(**{"path": "runs/model", "format": "hf", "weights": "weights", "linear": "ternary",
                    "parameters": 1000, "bytes": 400, "vocabulary": "words", "vocab_size": 300, "context": 32,
                    **given})


def perplexity(nats=2.0, noise=0.05, windows=40, size=4000, seed=0, sha256="text", text=0, **about):
    """Windows of `size` bytes and a quarter as many tokens; `nats` per token. `text`: which windows are hard;
    `seed`: of what differs beside."""
    hard = 1 + 0.3 * np.random.default_rng(text).standard_normal(windows)
    own = 1 + noise * np.random.default_rng(1000 + seed).standard_normal(windows)
    rows = [[float(nats * size / 4 * h * o), size / 4, size] for h, o in zip(hard, own)]
    total, tokens, n_bytes = np.sum(rows, axis=0).tolist()
    metrics = {"bits per byte": Metric(total / math.log(2) / n_bytes, windows, None, "lower"),
               "perplexity": Metric(math.exp(total / tokens), windows, None, "lower")}
    return Record("perplexity", "wikitext-2", model(**about), MADE, Data("text", sha256, windows), metrics,
                  rows, ["nats", "tokens", "bytes"])


def choice(share, n=400, seed=0, chance=0.25, task="arc_easy", **about):
    """Questions of which `share` is answered right."""
    right = np.random.default_rng(seed).permutation(n) < round(share * n)
    rows = [[float(r), float(r)] for r in right]
    metrics = {name: Metric(float(right.mean()), n, None, "higher", chance) for name in ("acc", "acc_norm")}
    return Record("choice", task, model(**about), MADE, Data(task, "questions", n), metrics, rows,
                  ["correct", "correct_norm"])


def efficiency(rates, n_bytes=400, **about):
    """Tokens per second, round by round."""
    metrics = {"decode tokens/s": Metric(float(np.mean(rates)), len(rates), 1.0, "higher"),
               "model bytes": Metric(n_bytes, 1, None, "lower")}
    return Record("efficiency", "generation", model(bytes=n_bytes, **about), MADE,
                  Data("a prompt", "prompt", len(rates)), metrics, [[float(r)] for r in rates],
                  ["decode tokens/s"])


def code(linear="ternary", passed=0.25, n=164):
    """One sample of each problem of HumanEval, of which `passed` passes."""
    rows = [[float(i < round(passed * n)), 1.0] for i in range(n)]
    share = sum(row[0] for row in rows) / n
    return Record("code", "humaneval", model(linear=linear, path=f"runs/{linear}"), MADE,
                  Data("HumanEval", "problems", n), {"pass@1": Metric(share, n)}, rows,
                  ["correct", "samples"])
