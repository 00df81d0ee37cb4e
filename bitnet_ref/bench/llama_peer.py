"""python -m bitnet_ref.bench.llama_peer --format TQ2_0 --threads 2

llama.cpp on the same model, for bench: a GGUF file of arch "bitnet" with our random trits as TQ2_0 or TQ1_0
(or float16), head and embedding in float16, then prompts and single tokens by its own low-level calls.
Answers requests on stdin (bench/child). Its arch gates by SiLU where 2B4T has ReLU2, and it quantises
activations by blocks of 256; neither costs it time worth counting. Needs llama-cpp-python and gguf.
Read after: bench/random_model. Read next: bench/onnx_peer.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.bench.child import serve
from bitnet_ref.bench.random_model import BLOCKS, QUICK, SCALE, random_weights
from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.config import ModelConfig
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits

FORMATS = {"TQ2_0": 66, "TQ1_0": 54, "F16": 512}           # bytes of 256 weights
BATCH = 512                                                # tokens that llama.cpp computes at once
NAMES = {"embedding": "token_embd", "final_norm": "output_norm", "attn.wq": "attn_q", "attn.wk": "attn_k",
         "attn.wv": "attn_v", "attn.wo": "attn_output", "ffn.w_gate": "ffn_gate", "ffn.w_up": "ffn_up",
         "ffn.w_down": "ffn_down"}                         # what has another name in a GGUF file


def bytes_per_token(cfg: ModelConfig, kind: str) -> float:
    """Bytes of weights that llama.cpp reads for a token: the matrices in `kind`, a float16 head."""
    matrices = [s.shape for s in param_specs(cfg) if s.ternary]
    return sum(n * k for n, k in matrices) * FORMATS[kind] / 256 + cfg.vocab_size * cfg.d_model * 2


def modules() -> tuple[Any, Any]:
    """(llama_cpp, gguf), or a CheckError that says how to get them."""
    try:
        import gguf
        import llama_cpp
    except ImportError as e:
        raise CheckError(f"llama.cpp must be installed to time it as a peer; got {e}; "
                         "pip install llama-cpp-python gguf") from None
    return llama_cpp, gguf


def write_gguf(path: Path, cfg: ModelConfig, kind: str, seed: int = 0) -> None:
    """The model of random_weights(cfg) as a GGUF file that loads without a tokenizer.

    Raises CheckError for what arch "bitnet" does not know.
    """
    _, gguf = modules()
    check(cfg.norm == "sub" and cfg.tied_embeddings and cfg.head == "full" and cfg.linear == "ternary",
          "llama.cpp's arch bitnet has norm = sub and a tied, full head",
          f"{cfg.norm}, {cfg.head}, {'' if cfg.tied_embeddings else 'not '}tied", "choose these")
    check(cfg.d_model % 256 == 0 == cfg.d_ff % 256, f"widths must be multiples of 256 for {kind}",
          f"{cfg.d_model} and {cfg.d_ff}", "choose others")
    file = gguf.GGUFWriter(path, "bitnet")
    for add, value in (
            (file.add_vocab_size, cfg.vocab_size), (file.add_context_length, cfg.context),
            (file.add_embedding_length, cfg.d_model), (file.add_block_count, cfg.n_layers),
            (file.add_feed_forward_length, cfg.d_ff), (file.add_head_count, cfg.n_heads),
            (file.add_head_count_kv, cfg.n_kv_heads), (file.add_layer_norm_rms_eps, cfg.norm_eps),
            (file.add_rope_freq_base, cfg.rope_theta), (file.add_tokenizer_model, "no_vocab")):
        add(value)
    for name, data, how in tensors(cfg, getattr(gguf.GGMLQuantizationType, kind), gguf, seed):
        file.add_tensor(name, data, raw_dtype=how)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def tensors(cfg: ModelConfig, kind: Any, gguf: Any, seed: int) -> Iterator[tuple[str, np.ndarray, Any]]:
    """(GGUF name, data, type or None for the data's own) of every tensor; equal matrices are packed once."""
    packed: dict[int, np.ndarray] = {}
    for name, t in random_weights(cfg, np.float16, seed).items():
        if name == "head":                                 # tied: the arch reads the embedding
            continue
        layer, stem = name.split(".", 2)[1:] if name.startswith("layers.") else ("", name)
        full = f"{f'blk.{layer}.' if layer else ''}{NAMES.get(stem, stem)}.weight"
        if not isinstance(t, Trits):
            yield full, t, None
            continue
        if id(t) not in packed:
            packed[id(t)] = gguf.quants.quantize(t.w_q * np.float32(SCALE), kind)
        yield full, packed[id(t)], None if kind == gguf.GGMLQuantizationType.F16 else kind


class Engine:
    """llama.cpp with one model and one text. Raises CheckError if it refuses the file."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self.lib, _ = modules()
        self.lib.llama_log_set(_QUIET(self.lib), None)
        how = self.lib.llama_model_default_params()
        how.use_mmap = False                               # memory of its own, in large pages, as ours
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), how)
        check(bool(self.model), "llama.cpp must load the file", path, "install a release with these types")
        run = self.lib.llama_context_default_params()
        run.n_ctx, run.n_batch, run.n_ubatch = context, BATCH, BATCH
        run.n_threads = run.n_threads_batch = threads
        self.context = self.lib.llama_init_from_model(self.model, run)
        check(bool(self.context), "llama.cpp must make a context", "none", "see whether memory lacks")
        self.batch = self.lib.llama_batch_init(BATCH, 0, 1)
        self.length = 0

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), 0, length, -1)
        self.length = length

    def advance(self, ids: list[int], vocab: int = 0) -> np.ndarray:
        """Append at most BATCH ids; the first `vocab` logits of the last, float32."""
        b = self.batch
        b.n_tokens = len(ids)
        for i, token in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0] = token, self.length + i, 1, 0
            b.logits[i] = i + 1 == len(ids)
        failed = self.lib.llama_decode(self.context, b)
        check(failed == 0, "llama.cpp must compute the tokens", f"code {failed}", "see whether memory lacks")
        self.length += len(ids)
        logits = self.lib.llama_get_logits_ith(self.context, len(ids) - 1)       # waits for them
        return np.ctypeslib.as_array(logits, (vocab,)).copy()


def _QUIET(lib: Any) -> Any:
    """A callback for its log that drops it; kept alive here."""
    _KEPT.append(lib.llama_log_callback(lambda level, text, data: None))
    return _KEPT[-1]


_KEPT: list[Any] = []


def start(cfg: ModelConfig, kind: str, threads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The greeting and the answers: prefill(tokens), decode(context, tokens), logits(ids)."""
    lib, _ = modules()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, cfg, kind)
        engine = Engine(path, threads, cfg.context)

    def prefill(tokens: int) -> dict[str, Any]:
        engine.rewind(0)
        parts = [min(BATCH, tokens - at) for at in range(0, tokens, BATCH)]
        return _timed(lambda: [engine.advance([1] * n) for n in parts])

    def decode(context: int, tokens: int) -> dict[str, Any]:
        if engine.length < context:
            prefill(context)
        engine.rewind(context)
        return _timed(lambda: [engine.advance([1]) for _ in range(tokens)])

    def logits(ids: list[int]) -> dict[str, Any]:
        engine.rewind(0)
        return {"logits": engine.advance(ids, cfg.vocab_size).tolist()}

    features = [part.split("=")[0].strip() for part in lib.llama_print_system_info().decode().split("|")
                if "= 1" in part]
    return ({"about": f"llama-cpp-python {lib.__version__} ({' '.join(features)})"},
            {"prefill": prefill, "decode": decode, "logits": logits})


def _timed(run: Any) -> dict[str, Any]:
    began = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - began}


def main(argv: list[str]) -> int:
    """Parse, load, answer until stdin ends."""
    parser = Parser("python -m bitnet_ref.bench.llama_peer", __doc__)
    parser.add_argument("--format", choices=tuple(FORMATS), default="TQ2_0",
                        help="of the weights (default: TQ2_0)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a small model instead of 2B4T's blocks")
    args = parser.parse_args(argv)
    cfg = QUICK if args.quick else replace(BLOCKS, context=4096)
    serve(lambda: start(cfg, args.format, args.threads))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
