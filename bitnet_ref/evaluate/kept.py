"""Scoring that can be interrupted: beside the record to be written lies a file with a line for each request.

What is scored is on the disk after each call of the model, and the same command goes on from there. The file
is of one model, one task and one way of scoring: their checksums are in its name.
Read after: evaluate/tasks. Read next: evaluate/zero_shot.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bitnet_ref.data.atomic import unwritable
from bitnet_ref.evaluate.likelihood import Likelihood, Request, likelihoods
from bitnet_ref.model import Transformer

Keep = Callable[[int, Likelihood], None]


def score_requests(model: Transformer, requests: Sequence[Request], name: str, batch: int = 16,
                   kept: Path | None = None, shared: bool = True) -> list[Likelihood]:
    """Their likelihoods in order, with a bar called `name`. `kept`: a file in which those that are scored are
    kept, and looked for. `batch`, `shared`: as likelihoods, which see for errors.

    >>> from bitnet_ref import kernels
    >>> from bitnet_ref.config import ModelConfig
    >>> from bitnet_ref.model.params import init_params
    >>> cfg = ModelConfig(vocab_size=16, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, context=8)
    >>> model = Transformer(cfg, init_params(cfg, 0), kernels.load("numpy"))
    >>> found = score_requests(model, [Request((0, 1), (2,)), Request((0,), (3, 4))], "example")
    >>> [value.logprob < 0 for value in found]
    [True, True]
    """
    held = read_kept(kept, len(requests))
    left = [i for i in range(len(requests)) if i not in held]
    with tqdm(total=len(requests), initial=len(held), desc=name, unit="choice", file=sys.stderr,
              disable=None) as bar, keeping(kept) as keep:
        for n, value in likelihoods(model, [requests[i] for i in left], batch, shared):
            held[left[n]] = value
            keep(left[n], value)
            bar.update()
    return [held[i] for i in range(len(requests))]


def kept_file(output: str | Path, *identity: str) -> Path:
    """Where what is scored for the record `output` is kept; `identity`: all that decides its numbers.

    >>> kept_file("out/arc.json", "weights", "task").name
    '.arc.json.30e0a3e2634d.part'
    """
    mark = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:12]
    return Path(output).with_name(f".{Path(output).name}.{mark}.part")


def read_kept(path: Path | None, n: int) -> dict[int, Likelihood]:
    """{number of a request: what it has}, of n; a line that was not written to its end counts for nothing.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "part")
    >>> _ = path.write_text("[0, -1.5, true]\\n[1, -2.")
    >>> read_kept(path, 2)
    {0: Likelihood(logprob=-1.5, greedy=True)}
    """
    found: dict[int, Likelihood] = {}
    with suppress(OSError, UnicodeDecodeError):
        for line in path.read_text(encoding="ascii").splitlines() if path else ():
            with suppress(ValueError, TypeError, RecursionError):
                i, logprob, greedy = json.loads(line)
                fits = type(i) is int and 0 <= i < n and type(logprob) is float and type(greedy) is bool
                if fits and -math.inf < logprob <= 0:
                    found[i] = Likelihood(logprob, greedy)
    return found


@contextmanager
def keeping(path: Path | None) -> Iterator[Keep]:
    """Yields what appends a line for each request to the file `path`, at once; or does nothing for None.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "part")
    >>> with keeping(path) as keep:
    ...     keep(1, Likelihood(-2.5, False))
    >>> read_kept(path, 2)
    {1: Likelihood(logprob=-2.5, greedy=False)}
    """
    if path is None:
        yield lambda i, value: None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file: Any = open(path, "a", encoding="ascii")      # noqa: SIM115  (closed below)
    except OSError as e:
        raise unwritable(path, e) from None
    with file:
        file.write("\n")                                   # behind a line that was not written to its end

        def keep(i: int, value: Likelihood) -> None:
            file.write(json.dumps([i, *value]) + "\n")
            file.flush()

        yield keep
