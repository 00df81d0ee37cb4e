"""An exponential moving average of the parameters, kept beside them: what it would score, ternarised anew.

It changes no step of the run. A checkpoint holds it under the prefix "ema."; loading, generating and
converting use the parameters themselves.
Read after: train/checkpoint. Read next: train/compression.
"""

from bitnet_ref.data.prepare import Dataset
from bitnet_ref.evaluate.perplexity import Score, score
from bitnet_ref.model import Params, Transformer
from bitnet_ref.train import log
from bitnet_ref.train.checkpoint import Run


def average_(ema: Params, params: Params, step: int, decay: float) -> None:
    """Move `ema` towards `params` in place, after update number `step` (from 1).

    The first 1 / (1 - decay) updates weigh alike, so that the initial parameters leave no trace.
    >>> from bitnet_ref import layers
    >>> from bitnet_ref.model.params import Spec
    >>> ema, params = (Params([Spec("w", (1,), 0.0, True, False, "")]) for _ in range(2))
    >>> params.flat[:] = 1.0; average_(ema, params, step=100, decay=0.75); ema.flat.tolist()
    [0.25]
    """
    ema.ops.approach_(ema.flat, params.flat, max(1.0 - decay, 1.0 / step))      # (AV.1)


def ema_score(run: Run, data: Dataset) -> Score | None:
    """Score of the whole validation text by the averaged parameters, also logged; None without cfg.ema.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run(ema=0.5)
    >>> ema_score(run, data).tokens == len(data.val.tokens) - 1, ema_score(*small_run())
    (True, None)
    """
    if run.ema is None:
        return None
    assert data.val is not None
    model = Transformer(run.model.cfg, run.ema, run.model.plan.ops)
    result = score(model, data.val.tokens, data.tokenizer.token_bytes,
                   what="the loss of the averaged weights")
    log.append(run.folder, "final ema", run.step, run.cursor, loss=result.loss,
               bits_per_byte=result.bits_per_byte)
    return result
