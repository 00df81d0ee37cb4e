"""An instruction of PTX as a function of Numba: its text, and what its operands are.

`emit` is the body of every @intrinsic of this package. Operands are letters, in the order of the arguments:
i (32-bit integer), h (16-bit), l (64-bit), f (float32), ? (a condition), g and s (an array and an index: the
address of that number in global or in shared memory), # (a literal, which the text has already), T (a tuple
of int32), a (a local array of int32, which the results replace). $0, $1 ... in the text: results, operands.
Read after: kernels/numba_cuda/memory. Read next: kernels/numba_cuda/device.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types

I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
LETTER = {"i": ("r", I32), "l": ("l", I64), "f": ("f", F32), "?": ("r", I32),     # constraint, type
          "h": ("h", I16), "g": ("l", I64), "s": ("r", I32)}


def emit(text: str, operands: str, results: str = "", keep: bool = False, memory: bool = False,
         warp: bool = False) -> Callable[..., Any]:
    """The code of one instruction for @intrinsic. `results`: a letter each, "iiii" becomes a tuple of four.

    `keep`: it stays where it is, in this order; `memory`: it reads or writes what others write (implies
    keep); `warp`: all lanes take part, so no branch may be made around it. "&" before the results: they are
    set before all operands are read. With an operand a, the results go to its first numbers, and are also
    the instruction's first operands.
    """
    early = "&" if "&" in results else ""
    out = results.replace("&", "")

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values, letters, place = _operands(context, builder, sig, args, operands, len(out))
        tied = [str(i) if letter == "a" else LETTER[letter][0] for i, letter in enumerate(letters)]
        constraints = [f"={early}{LETTER[r][0]}" for r in out] + tied + (["~{memory}"] if memory else [])
        returned = _returned([LETTER[r][1] for r in out])
        code = ir.InlineAsm(ir.FunctionType(returned, [v.type for v in values]), text, ",".join(constraints),
                            side_effect=keep or memory)
        made = builder.call(code, values, attrs=("convergent",) if warp else ())
        if place is not None:
            for i in range(len(out)):
                builder.store(builder.extract_value(made, i), builder.gep(place, [I32(i)]))
        if not out or place is not None:
            return context.get_dummy_value()
        if len(out) == 1:
            return made
        return cgutils.pack_array(builder, [builder.extract_value(made, i) for i in range(len(out))])

    return codegen


def four() -> Any:
    """The type of a tuple of four int32: 16 bytes in registers."""
    return types.UniTuple(types.int32, 4)


def _returned(each: list[Any]) -> Any:
    if not each:
        return ir.VoidType()
    return each[0] if len(each) == 1 else ir.LiteralStructType(each)


def _operands(context: Any, builder: Any, sig: Any, args: Any, operands: str,
              n_results: int) -> tuple[list[Any], str, Any]:
    """The values of the instruction's operands, a letter for each, and where a local array lies."""
    at, values, letters, place = 0, [], "", None
    for letter in operands:
        kind, value = sig.args[at], args[at]
        at += 2 if letter in "gs" else 1
        if letter == "#":
            continue
        if letter in "gs":
            values.append(_address(context, builder, kind, value, sig.args[at - 1], args[at - 1], letter))
        elif letter == "T":
            values += [builder.extract_value(value, i) for i in range(kind.count)]
            letters += "i" * kind.count
            continue
        elif letter == "a":                                # the first operand: its numbers are 0, 1 ...
            place = context.make_array(kind)(context, builder, value).data
            values += [builder.load(builder.gep(place, [I32(i)])) for i in range(n_results)]
            letters += "a" * n_results
            continue
        elif letter == "?":
            values.append(builder.zext(context.cast(builder, value, kind, types.boolean), I32))
        else:
            want = {"h": types.uint16, "i": types.int32, "l": types.int64, "f": types.float32}[letter]
            values.append(context.cast(builder, value, kind, want))
        letters += letter
    return values, letters, place


def _address(context: Any, builder: Any, kind: Any, array: Any, index_kind: Any, index: Any,
             letter: str) -> Any:
    """Of number `index` of an array or a pointer: 64 bits in global memory, 32 in shared."""
    i = context.cast(builder, index, index_kind, types.intp)
    if not isinstance(kind, types.CPointer):
        array = context.make_array(kind)(context, builder, array).data
    place = builder.gep(array, [i])
    space = 1 if letter == "g" else 3
    address = builder.ptrtoint(builder.addrspacecast(place, ir.PointerType(place.type.pointee, space)), I64)
    return address if letter == "g" else builder.trunc(address, I32)
