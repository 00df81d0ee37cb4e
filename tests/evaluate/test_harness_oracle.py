"""Our scores against transformers: its models in lm-evaluation-harness on the same tasks, and by a loop.

The models are random, written by transformers in float32. A LLaMA has no codes that could flip, so each
log-likelihood agrees to CLOSE. Of a BitNet they do where every value before a rounding is MARGIN from a tie;
elsewhere a code may flip (docs/numerics.md, NU.14), and they agree to FLIPPED.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
from questions import harness_tasks
from tiny import own_cache  # noqa: F401

from bitnet_ref.data.download import DATA
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.evaluate.harness import adapted
from bitnet_ref.evaluate.likelihood import encode_pairs
from bitnet_ref.evaluate.tasks import read_task
from bitnet_ref.evaluate.zero_shot import correct, score_task
from bitnet_ref.generate.language_model import load

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"                   # its quantisers are compiled otherwise
os.environ.setdefault("HF_HOME", str(tiny.folder() / "hf"))

CLOSE, FLIPPED, MARGIN = 1e-4, 1e-2, 1e-4
SHORT = 40                   # tokens of texts whose margin is looked at: longer ones hardly have one
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}


@pytest.fixture(scope="module")
def torch():
    """torch, with transformers' demand for a library that places models on devices lifted."""
    found = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.quantizers import quantizer_bitnet

    found.set_num_threads(1)                               # at this size others only wait for each other
    patch = pytest.MonkeyPatch()
    patch.setattr(quantizer_bitnet, "is_accelerate_available", lambda *args: True)
    yield found
    patch.undo()


@pytest.fixture(scope="module", params=["llama", "bitnet"])
def pair(request, torch, tmp_path_factory):
    """(which, our model, theirs, their tokenizer) of one folder that transformers has written."""
    import transformers

    folder = tmp_path_factory.mktemp(request.param)
    arc = Path(os.environ.get(DATA, "none"), "arc", "arc_easy.validation.jsonl")
    words = arc.read_text(encoding="utf-8") if arc.is_file() else tiny.text()
    (folder / "tokenizer.json").write_text(train_bpe([words], 1000).json, encoding="utf-8")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"),
                                                     eos_token="<|endoftext|>")
    torch.manual_seed(1)
    made = {"vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 0, **SHAPE}
    kind = request.param == "bitnet"
    theirs = (transformers.BitNetForCausalLM(transformers.BitNetConfig(**made, hidden_act="relu2")) if kind
              else transformers.LlamaForCausalLM(transformers.LlamaConfig(**made, initializer_range=0.2)))
    if kind:
        off_the_threshold(torch, theirs)
    theirs.save_pretrained(folder)
    if kind:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                         "quantization_mode": "online"}
        (folder / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.nn.Module.float(theirs.eval())
    return request.param, load(folder), theirs, tokenizer


def off_the_threshold(torch, model):
    """Masters of which no |w| / mean|w| is near 1/2: a trit must not depend on how a mean is summed."""
    for name, w in model.named_parameters():
        for _ in range(100 if "_proj" in name else 0):
            wide = w.data.double().abs()
            near = (wide / wide.mean() - 0.5).abs() < 1e-3
            w.data = torch.where(near, w.data * 1.01, w.data)


def margin(model, requests):
    """For each short request how near its quantised inputs come to a tie, by the reference; 0 for others."""
    from types import SimpleNamespace

    from bitnet_ref.kernels import load as ops
    from bitnet_ref.model import Transformer

    seen, plain = [], ops("numpy")

    def absmax_int8(x):
        z = x * (127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5))
        seen.append(float(np.abs(z - np.floor(z) - 0.5).min()))
        return plain.absmax_int8(x)

    def rmsnorm_int8(x, g, eps=1e-5):
        y, rstd = plain.rmsnorm(x, g, eps)
        return *absmax_int8(y), rstd

    watched = Transformer(model.cfg, model.transformer.weights, SimpleNamespace(
        **{**vars(plain), "absmax_int8": absmax_int8, "rmsnorm_int8": rmsnorm_int8}))
    found = []
    for context, continuation in requests:
        ids = [*context, *continuation[:-1]]
        seen.clear()
        if len(ids) <= SHORT:
            watched(np.array(ids))
        found.append(min(seen, default=0.0))
    return np.array(found)


def assert_close(which, model, requests, ours, theirs, said):
    """Each log-likelihood, as near as its margin allows."""
    error = np.abs(np.array(ours) - np.array(theirs))
    print(f"{which} {said}: {len(error)} log-likelihoods, largest difference {error.max():.1e}")
    if which == "llama":
        assert error.max() <= CLOSE
        return
    clear = margin(model, requests) >= MARGIN
    print(f"{which} {said}: {clear.sum()} with a margin, largest difference {error[clear].max():.1e}")
    assert clear.sum() >= 5
    assert error[clear].max() <= CLOSE
    assert error.max() <= FLIPPED


@pytest.mark.data
def test_the_harness_finds_the_same_of_ours_and_of_its_own_model(pair, tmp_path):
    """ARC-Easy's 570 questions, and invented ones in the styles of PIQA and HellaSwag."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    which, ours, theirs, tokenizer = pair
    names = harness_tasks(tmp_path, Path(os.environ[DATA], "arc", "arc_easy.validation.jsonl"), 60)
    models = {"ours": adapted(ours, 16, False),
              "theirs": HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=16, device="cpu")}
    found = {who: lm_eval.simple_evaluate(
        model=model, tasks=names, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False))
        for who, model in models.items()}
    for name in names:
        mine, other = (sorted(found[who]["samples"][name], key=lambda s: s["doc_id"]) for who in found)
        assert len(mine) == (570 if name == "own_arc" else 60)
        asked = encode_pairs(ours.tokenizer, [a for s in mine for a in s["arguments"]], None)
        values = [[r[0][0] for s in samples for r in s["resps"]] for samples in (mine, other)]
        assert_close(which, ours, asked, *values, name)
        for metric in ("acc", "acc_norm"):
            assert [s[metric] for s in mine] == [s[metric] for s in other]
            assert found["ours"]["results"][name][f"{metric},none"] == found["theirs"]["results"][name][
                f"{metric},none"]


@pytest.mark.data
def test_the_request_file_has_the_same_answers_by_transformers(pair, torch):
    """1,140 groups: 570 questions, and their choices after "Answer:" alone."""
    which, ours, theirs, _ = pair
    task = read_task(Path(os.environ[DATA], "arc", "arc_easy.val.rc_0shot.requests.jsonl.gz"))
    mine = score_task(ours, task, first=False)
    requests = encode_pairs(ours.tokenizer, [(context, choice) for q in task.questions for context in
                                             (q.context, q.without) for choice in q.choices], None)
    other = iter(by_transformers(torch, theirs, requests))
    there = [[next(other) for _ in row] for row in mine.found]
    assert_close(which, ours, requests, np.concatenate(mine.found), np.concatenate(there), "requests")
    for q, a, b in zip(task.questions, mine.found, there):
        n = len(q.choices)
        assert np.argmax(a[:n]) == np.argmax(b[:n])
        assert np.argmax(a[n:]) == np.argmax(b[n:])
        assert correct(q, a) == correct(q, b)


def by_transformers(torch, model, requests):
    """log p of each, one text a call."""
    for context, continuation in requests:
        ids = [*context, *continuation]
        with torch.no_grad():
            rows = torch.log_softmax(model(torch.tensor([ids[:-1]])).logits[0].double(), -1)
        yield float(rows[len(context) - 1:].gather(1, torch.tensor(continuation)[:, None]).sum())
