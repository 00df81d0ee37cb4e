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


def piqa(n=12, seed=1):
    """Two solutions of invented words, as a PIQA file has them."""
    rng, words = np.random.default_rng(seed), tiny.text(200, seed).split()
    return [{"goal": " ".join(rng.choice(words, 3)), "sol1": " ".join(rng.choice(words, rng.integers(1, 5))),
             "sol2": " ".join(rng.choice(words, rng.integers(1, 5))), "label": int(rng.integers(2))}
            for _ in range(n)]


def hellaswag(n=12, seed=2):
    """Four endings of invented words, with the marks of HellaSwag, as its file has them."""
    rng, words = np.random.default_rng(seed), tiny.text(200, seed).split()
    return [{"activity_label": words[i], "ctx_a": f"[header] {' '.join(rng.choice(words, 4))} [title]",
             "ctx_b": str(rng.choice(words)), "label": str(rng.integers(4)),
             "endings": [f"[step] {' '.join(rng.choice(words, rng.integers(1, 5)))}" for _ in range(4)]}
            for i in range(n)]


TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
{texts}
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
TEXTS = {
    "arc": {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "{{choices.text}}",
            "doc_to_target": "{{choices.label.index(answerKey)}}"},
    "piqa": {"doc_to_text": "Question: {{goal}}\nAnswer:", "doc_to_choice": "{{[sol1, sol2]}}",
             "doc_to_target": "label"},
    "hellaswag": {"doc_to_text": "{{query}}", "doc_to_choice": "choices", "doc_to_target": "{{label}}"}}
PREPARED = """from lm_eval.tasks.hellaswag.utils import process_docs as theirs


def process_docs(dataset):
    return theirs(dataset)
"""


def harness_tasks(folder, arc=None, n=12):
    """Writes tasks in the three styles, with a task file for lm_eval each, and returns their names.

    `arc`: a file of such questions, to be taken instead of invented ones.
    """
    rows = {"arc": questions(n), "piqa": piqa(n), "hellaswag": hellaswag(n)}
    for style, invented in rows.items():
        file = folder / f"own_{style}.jsonl"
        written(file, invented)
        if style == "arc" and arc is not None:
            file.write_bytes(arc.read_bytes())
        texts = [f"{key}: {json.dumps(text)}" for key, text in TEXTS[style].items()]
        texts += ["process_docs: !function prepared.process_docs"] if style == "hellaswag" else []
        (folder / f"own_{style}.yaml").write_text(
            TASK.format(name=f"own_{style}", file=file, texts="\n".join(texts)), encoding="utf-8")
    (folder / "prepared.py").write_text(PREPARED, encoding="utf-8")
    return [f"own_{style}" for style in rows]
