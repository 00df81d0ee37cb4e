"""From what the projections give to heads, turned, as attention reads them; and back.

Queries lie by token (M, H, Dh), keys and values as a cache does, (B, KV, T, Dh). One thread turns one pair.
Read after: kernels/numba_cuda/rmsnorm_backward. Read next: kernels/numba_cuda/attention_backward.
"""

from typing import Any

from numba import cuda

from bitnet_ref.kernels.numba_cuda.launch import kernel

THREADS = 256
SIDES = "i32 q_apart, f32* k_in, i32 k_apart, f32* v_in, i32 v_apart, f32* cos, f32* sin"
HEADS = "f32* q, f32* k, f32* v, i32 T, i32 H, i32 KV, i32 half, i64 n"


@cuda.jit(device=True, inline="always")
def place(e: Any, T: Any, heads: Any, half: Any) -> Any:
    """Of pair e: its number within the head, its head among those of q, k and v, its token, time and text."""
    i, e = e % half, e // half
    head, m = e % heads, e // heads
    return i, head, m, m % T, m // T


@kernel(f"f32* q_in, {SIDES}, {HEADS}", THREADS)
def rope_split(q_in: Any, q_apart: Any, k_in: Any, k_apart: Any, v_in: Any, v_apart: Any, cos: Any, sin: Any,
               q: Any, k: Any, v: Any, T: Any, H: Any, KV: Any, half: Any, n: Any) -> None:
    """Rows of q, k and v, `apart` from each other  ->  q (M, H, Dh), k and v (B, KV, T, Dh), q and k turned.

    n: M (H + 2 KV) half, a pair to a thread. cos, sin (T, half).
    """
    e = cuda.grid(1)
    if e < n:
        i, head, m, t, b = place(e, T, H + 2 * KV, half)
        c, s = cos[t * half + i], sin[t * half + i]
        if head < H:
            start = m * q_apart + head * 2 * half + i
            x, y = q_in[start], q_in[start + half]
            at = (m * H + head) * 2 * half + i
            q[at] = x * c - y * s                                                           # (RO.2)
            q[at + half] = y * c + x * s                                                    # (RO.3)
        elif head < H + KV:
            start = m * k_apart + (head - H) * 2 * half + i
            x, y = k_in[start], k_in[start + half]
            at = ((b * KV + head - H) * T + t) * 2 * half + i
            k[at] = x * c - y * s
            k[at + half] = y * c + x * s
        else:
            start = m * v_apart + (head - H - KV) * 2 * half + i
            at = ((b * KV + head - H - KV) * T + t) * 2 * half + i
            v[at] = v_in[start]
            v[at + half] = v_in[start + half]


@kernel(f"f32* q_in, {SIDES}, {HEADS}", THREADS)
def rope_join(q_in: Any, q_apart: Any, k_in: Any, k_apart: Any, v_in: Any, v_apart: Any, cos: Any, sin: Any,
              q: Any, k: Any, v: Any, T: Any, H: Any, KV: Any, half: Any, n: Any) -> None:
    """The way back, for gradients: from q (M, H, Dh), k, v (B, KV, T, Dh) to rows, q and k turned back."""
    e = cuda.grid(1)
    if e < n:
        i, head, m, t, b = place(e, T, H + 2 * KV, half)
        c, s = cos[t * half + i], sin[t * half + i]
        if head < H:
            start = m * q_apart + head * 2 * half + i
            at = (m * H + head) * 2 * half + i
            q_in[start] = q[at] * c + q[at + half] * s                                      # (RO.4)
            q_in[start + half] = q[at + half] * c - q[at] * s
        elif head < H + KV:
            start = m * k_apart + (head - H) * 2 * half + i
            at = ((b * KV + head - H) * T + t) * 2 * half + i
            k_in[start] = k[at] * c + k[at + half] * s
            k_in[start + half] = k[at + half] * c - k[at] * s
        else:
            start = m * v_apart + (head - H - KV) * 2 * half + i
            at = ((b * KV + head - H - KV) * T + t) * 2 * half + i
            v_in[start] = v[at]
            v_in[start + half] = v[at + half]


def blocks(n: int) -> tuple[int]:
    """The grid in which every number has a thread."""
    return (-(-n // THREADS),)
