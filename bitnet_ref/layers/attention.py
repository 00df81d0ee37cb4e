"""Causal grouped-query attention: each query reads the keys at or before its own position.

H query heads share KV key/value heads; head h reads key/value head h // R, R = H / KV. With S > T the queries
are the last T of S positions, as when decoding with a cache. Kept for backward: the log-sum-exp of each row
of scores, S times smaller than the probabilities, which backward recomputes.
Port note: repeat each KV head R times in place (0 0 1 1), do not tile them (0 1 0 1); scale by 1/sqrt(Dh).
Read after: layers/rope. Read next: layers/glu.
"""

import numpy as np


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """o = softmax(mask(q k^T / sqrt(Dh))) v, lse = the log-sum-exp of each masked row.

    q (B, T, H, Dh)  k, v (B, S, KV, Dh)  ->  o (B, T, H, Dh), lse (B, KV, R, T, 1)
    Source: Vaswani et al., arXiv 1706.03762 eq. 1; grouped queries: Ainslie et al., arXiv 2305.13245.
    >>> q, v = np.zeros((1, 2, 1, 2)), np.arange(4.0).reshape(1, 2, 1, 2)
    >>> attention(q, q, v)[0].tolist()          # equal scores: the mean of the values seen so far
    [[[[0.0, 1.0]], [[1.0, 2.0]]]]
    """
    p = _scores(q, k)
    top = p.real.max(axis=-1, keepdims=True)
    p = np.exp(np.subtract(p, top, out=p), out=p)                               # (AT.3)
    total = p.sum(axis=-1, keepdims=True)
    p /= total
    return _ungroup(p @ _group(v, k.shape[2])), np.log(total) + top             # (AT.4)


def attention_backward(do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray,
                       lse: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns dq (B, T, H, Dh), dk and dv (B, S, KV, Dh).
    >>> q = np.zeros((1, 2, 1, 2)); o, lse = attention(q, q, q)
    >>> dq, dk, dv = attention_backward(np.ones_like(q), q, q, q, o, lse)
    >>> dv[0, :, 0, 0].round(6).tolist()
    [1.5, 0.5]
    """
    n_kv = k.shape[2]
    p = _scores(q, k)
    p = np.exp(np.subtract(p, lse, out=p), out=p)                               # (AT.5)
    do_g = _group(do, n_kv)
    dv = np.matmul(p.swapaxes(-1, -2), do_g).sum(axis=2)                        # (AT.6)
    ds = do_g @ _group(v, n_kv).swapaxes(-1, -2)                                # (AT.7)
    ds -= np.sum(do_g * _group(o, n_kv), axis=-1, keepdims=True)                # (AT.8)
    ds *= p
    ds *= q.shape[-1] ** -0.5
    dq = ds @ _group(k, n_kv)                                                   # (AT.9)
    dk = np.matmul(ds.swapaxes(-1, -2), _group(q, n_kv)).sum(axis=2)            # (AT.10)
    return _ungroup(dq), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def _scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Masked scores (B, KV, R, T, S): -inf where the key lies after the query."""
    s = (_group(q, k.shape[2]) * q.shape[-1] ** -0.5) @ _group(k, k.shape[2]).swapaxes(-1, -2)  # (AT.1)
    T, S = s.shape[-2:]
    s += np.where(np.arange(S) > np.arange(S - T, S)[:, None], -np.inf, 0).astype(s.dtype)      # (AT.2)
    return s


def _group(x: np.ndarray, n_kv: int) -> np.ndarray:
    """(B, T, H, Dh) -> (B, KV, R, T, Dh), a view; keys and values have R = 1 and broadcast."""
    B, T, H, Dh = x.shape
    return x.reshape(B, T, n_kv, H // n_kv, Dh).transpose(0, 2, 3, 1, 4)


def _ungroup(x: np.ndarray) -> np.ndarray:
    """(B, KV, R, T, Dh) -> (B, T, H, Dh)."""
    B, n_kv, R, T, Dh = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(B, T, n_kv * R, Dh)
