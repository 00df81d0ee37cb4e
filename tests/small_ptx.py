"""Tiny kernels in PTX, written by hand, and what the interpreter makes of them."""

import numpy as np

from bitnet_ref.kernels.ptx.machine import Machine
from bitnet_ref.kernels.ptx.memory import GlobalMemory
from bitnet_ref.kernels.ptx.module import SIZE, parse
from bitnet_ref.kernels.ptx.values import DTYPE

FILE = {1: "%h", 2: "%h", 4: "%r", 8: "%d"}                # registers by bytes
HEAD = """.version 9.0
.target sm_{target}
.address_size 64
{outside}
.visible .entry small(
{params}
)
{{
.reg .pred %p<16>;
.reg .b16 %h<16>;
.reg .b32 %r<64>;
.reg .f32 %f<16>;
.reg .b64 %d<32>;
.reg .f64 %g<16>;
.reg .b64 %a<8>;
.reg .b64 %at<3>;
.reg .b32 %t, %block;
{inside}
{loads}
mov.u32 %t, %tid.x;
mov.u32 %block, %ctaid.x;
mul.wide.u32 %at0, %t, 4;
{body}
ret;
}}
"""


def kernel(body, arrays=1, outside="", inside="", target="90"):
    """A kernel whose parameters are pointers: %a0, %a1 ...; %t is the thread, %at0 = 4 %t."""
    params = ",\n".join(f".param .u64 q{i}" for i in range(arrays))
    loads = "\n".join(f"ld.param.u64 %a{i}, [q{i}];" for i in range(arrays))
    return HEAD.format(target=target, outside=outside, inside=inside, params=params, loads=loads, body=body)


def machine():
    return Machine(GlobalMemory(1 << 26))


def execute(text, *arrays, threads=32, grid=1, dynamic=0, on=None):
    """The arrays after a kernel ran on copies of them; an integer is that many bytes, never written."""
    m = on or machine()
    places = [m.memory.allocate(a if isinstance(a, int) else a.nbytes) for a in arrays]
    for a, place in zip(arrays, places):
        if not isinstance(a, int):
            m.memory.write(place, np.ascontiguousarray(a).reshape(-1).view(np.uint8))
    m.run(parse(text), (grid,), (threads,), [np.uint64(place).tobytes() for place in places], dynamic)
    return [m.memory.read(place, a if isinstance(a, int) else a.nbytes).copy()
            .view(np.uint8 if isinstance(a, int) else a.dtype) for a, place in zip(arrays, places)]


def register(kind, i):
    """Register number `i` for values of a type."""
    return f"{ {'f32': '%f', 'f64': '%g', 'pred': '%p'}.get(kind) or FILE[SIZE[kind]]}{i}"


def vector(kind, values):
    """Numbers of a PTX type; integers modulo its width."""
    dtype = np.dtype(DTYPE[kind])
    if isinstance(values, np.ndarray) or dtype.kind == "f":
        return np.asarray(values, dtype)
    bits = [v % (1 << 8 * dtype.itemsize) for v in values]
    return np.array(bits, f"u{dtype.itemsize}").view(dtype)


def apply(instruction, result, *inputs, constants=()):
    """An array of type `result`: an instruction on vectors (type, values), constants as further operands."""
    n, lines = len(inputs[0][1]), []
    for i, (kind, _) in enumerate(inputs):
        lines += [f"mul.wide.u32 %at1, %t, {SIZE[kind]};", f"add.s64 %at1, %at1, %a{i};",
                  f"ld.global.{'b' + kind[1:] if kind.startswith('bf') else kind.replace('f16', 'b16')} "
                  f"{register(kind, i)}, [%at1];"]
    d = register(result, 9)
    operands = [register(kind, i) for i, (kind, _) in enumerate(inputs)] + [str(c) for c in constants]
    lines.append(f"{instruction} {', '.join([d, *operands])};")
    out = "u32" if result == "pred" else result
    if result == "pred":
        lines.append(f"selp.u32 %r9, 1, 0, {d};")
    store = {"f16": "b16", "bf16": "b16"}.get(out, out)
    lines += [f"mul.wide.u32 %at2, %t, {SIZE[out]};", f"add.s64 %at2, %at2, %a{len(inputs)};",
              f"st.global.{store} [%at2], {register(out, 9)};"]
    arrays = [vector(kind, values) for kind, values in inputs]
    made = execute(kernel("\n".join(lines), len(inputs) + 1), *arrays, np.zeros(n, DTYPE[out]), threads=n)[-1]
    return made.astype(bool) if result == "pred" else made
