"""Questions of invented words, and requests, as files have them: for the tests of evaluate."""

import json

import numpy as np
import tiny


def request(doc, idx, choice, label=1, context="Question: Why?\nAnswer:"):
    return {"request_type": "loglikelihood", "doc_id": doc, "idx": idx, "label": label,
            "request": {"context": context, "continuation": choice}}


REQUESTS = [request(0, 0, " so"), request(0, 1, " no"), request(7, 0, " up", 0, "Where?"),
            request(7, 1, " down", 0, "Where?"), request(1_000_000, 0, " so", context="Answer:"),
            request(1_000_000, 1, " no", context="Answer:")]


def written(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows),
                    encoding="utf-8")
    return path


def questions(n=12, seed=0):
    """Questions of invented words with three to five choices, as an ARC file has them."""
    rng = np.random.default_rng(seed)
    words = tiny.text(200, seed).split()
    rows = []
    for _ in range(n):
        k = int(rng.integers(3, 6))
        texts = [" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(k)]
        rows.append({"question": " ".join(rng.choice(words, 4)), "answerKey": "ABCDE"[rng.integers(k)],
                     "choices": {"text": texts, "label": list("ABCDE")[:k]}})
    return rows
