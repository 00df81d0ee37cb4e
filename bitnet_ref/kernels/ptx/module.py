"""A text of PTX as data: its kernel's parameters, registers, shared arrays and instructions.

Parsing only: nothing of a text is ever executed by Python. Operands are taken apart once, so that the machine
never looks at text while it runs. The grammar is the part of the PTX ISA that compilers emit for one kernel:
no functions that are called, one entry.
Read after: kernels/ptx/faults. Read next: kernels/ptx/values.
"""

import re
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple

from bitnet_ref.kernels.ptx.faults import PtxError

SIZE = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4,
        "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8}
SPACES = ("global", "shared", "local", "param", "const")
NAME = r"[\w$%.]+"


@dataclass(frozen=True)
class Register:
    """A register, by the name it has in the text (with its scope). `inverted`: !p."""

    name: str
    inverted: bool = False


@dataclass(frozen=True)
class Number:
    """A constant: an integer, or the bits of a float and their width."""

    value: int
    float_bytes: int = 0


@dataclass(frozen=True)
class Symbol:
    """The address of an array, a special register (%tid.x), a parameter or a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: Any
    offset: int


class Instruction(NamedTuple):
    """One instruction. `op`: "ld.global.f32" as parts; `guard`: the predicate of @p, or None."""

    op: tuple[str, ...]
    operands: tuple[Any, ...]
    guard: Register | None
    text: str
    line: int

    @property
    def type(self) -> str:
        """The last type of the name: of the source where there are two."""
        return next((part for part in reversed(self.op) if part in SIZE), "b32")

    @property
    def space(self) -> str:
        """Where the address lies; "generic" where the name does not say."""
        return next((s for part in self.op for s in SPACES if part.split("::")[0] == s), "generic")


class Module(NamedTuple):
    """A kernel. `shared`, `local`: (name, alignment, bytes); `data`: arrays of the module, as bytes."""

    entry: str
    target: str
    params: tuple[tuple[str, str], ...]          # (name, type)
    registers: dict[str, str]                    # name -> type
    code: tuple[Instruction, ...]
    labels: dict[str, int]
    shared: tuple[tuple[str, int, int], ...]     # 0 bytes: the dynamic array
    local: tuple[tuple[str, int, int], ...]
    data: tuple[tuple[str, int, bytes], ...]
    max_threads: int

    @property
    def name(self) -> str:
        """The kernel's name as its author wrote it."""
        return plain_name(self.entry)


def plain_name(entry: str) -> str:
    """The last name of a mangled one: _ZN3lib4code5hello... -> hello; others as they are."""
    if not entry.startswith("_ZN"):
        return entry
    rest, last = entry[3:], entry
    while (length := re.match(r"\d+", rest)) and int(length[0]) <= len(rest):
        start = length.end()
        last, rest = rest[start:start + int(length[0])], rest[start + int(length[0]):]
    return last


def parse(text: str) -> Module:
    """The module of a text with one kernel. Raises PtxError for what is not PTX, or has functions besides."""
    text = _without_comments(text)
    target = re.search(r"\.target\s+sm_(\w+)", text)
    entry = re.search(rf"\.entry\s+({NAME})\s*\((.*?)\)(.*?)\{{", text, flags=re.DOTALL)
    if not target or not entry:
        raise PtxError("PTX must name its target and hold a kernel (.target sm_90, .entry); got a text "
                       "without; pass the whole text that the compiler gave")
    if re.search(r"^\s*\.(visible\s+|weak\s+)?func\b", text, flags=re.MULTILINE):
        raise PtxError("the interpreter runs PTX whose functions are inlined; got .func; inline them")
    body = _Body(text, entry.end())
    params = re.findall(rf"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\S*\s+)?({NAME})", entry[2])
    bound = re.search(r"\.(?:max|req)ntid\s+([\d,\s]+)", entry[3])
    most = 1
    for n in bound[1].split(",") if bound else ("1024",):
        most *= int(n)
    outside = text[:entry.start()] + text[body.end:]
    return Module(entry[1], target[1], tuple((name, t) for t, name in params), body.registers,
                  tuple(body.code), body.labels, _arrays(text, "shared"), _arrays(text, "local"),
                  _data(outside), most)


def _without_comments(text: str) -> str:
    """Comments gone; every line keeps its number."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def _arrays(text: str, space: str) -> tuple[tuple[str, int, int], ...]:
    found = re.findall(rf"\.{space}\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+({NAME})(?:\[(\d*)\])?\s*;", text)
    return tuple((name, int(align or SIZE[kind]), SIZE[kind] * int(n or 0)) for align, kind, name, n in found)


def _data(text: str) -> tuple[tuple[str, int, bytes], ...]:
    """Arrays of the module: .global and .const, with their first values or 0."""
    made = []
    for align, kind, name, n, values in re.findall(
            rf"\.(?:global|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+({NAME})(?:\[(\d*)\])?"
            r"\s*(?:=\s*\{?([^;}]*)\}?)?\s*;", text):
        size = SIZE[kind]
        numbers = [_number(v.strip()) for v in values.split(",") if v.strip()]
        packed = b"".join((v.value & (1 << 8 * size) - 1).to_bytes(size, "little") for v in numbers if v)
        made.append((name, int(align or size), packed.ljust(size * int(n or 1), b"\0")))
    return tuple(made)


def _number(text: str) -> Number | None:
    """12, -3, 0x1F, 0f3F800000 (float32 by its bits), 0d... (float64), 1.5; None for anything else."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Number(int(text[2:], 16), 4)
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Number(int(text[2:], 16), 8)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Number(int(text.rstrip("U"), 0 if "x" in text.lower() else 10))
    if re.fullmatch(r"-?\d+\.\d*([eE][-+]?\d+)?", text):
        return Number(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 8)
    return None


class _Body:
    """A kernel's body, read from `start` of `text` to its closing brace. Braces make scopes of names."""

    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.lines = [m.start() for m in re.finditer(r"\n", text)]
        self.registers: dict[str, str] = {}
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.scopes: list[dict[str, str]] = [{}]
        self.end = self._read(start)

    def _read(self, at: int) -> int:
        while True:
            at = re.compile(r"[\s;]*").match(self.text, at).end()     # type: ignore[union-attr]
            if at >= len(self.text):
                raise PtxError("a kernel's body must end with a brace; got the end of the text; "
                               "pass all of it")
            label = re.compile(r"([\w$%]+)\s*:(?!:)").match(self.text, at)
            if self.text[at] == "{":
                self.scopes.append({})
                at += 1
            elif self.text[at] == "}":
                self.scopes.pop()
                at += 1
                if not self.scopes:
                    return at
            elif label:
                self.labels[label[1]] = len(self.code)
                at = label.end()
            else:
                end = self.text.find(";", at)
                self._statement(" ".join(self.text[at:end].split()), bisect_right(self.lines, at) + 1)
                at = end if end >= 0 else len(self.text)

    def _statement(self, text: str, line: int) -> None:
        if text.startswith(".reg"):
            _, kind, names = text.split(maxsplit=2)
            for name in names.split(","):
                self._declare(name.strip(), kind[1:])
        elif not text.startswith("."):                                # .loc, .pragma, .local: not code
            found = re.fullmatch(rf"(?:@(!?)({NAME})\s+)?([\w.:]+)\s*(.*)", text)
            if not found:
                raise PtxError(f"a statement must be an instruction; got {text[:200]!r} in line {line}; "
                               "is this PTX?")
            guard = Register(self._named(found[2]), bool(found[1])) if found[2] else None
            operands = tuple(self._operand(part) for part in _parts(found[4]))
            self.code.append(Instruction(tuple(found[3].split(".")), operands, guard, text, line))

    def _declare(self, name: str, kind: str) -> None:
        many = re.fullmatch(r"(.*)<(\d+)>", name)
        for each in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]:
            scoped = each if len(self.scopes) == 1 else f"{each}@{len(self.registers)}"
            self.scopes[-1][each] = scoped
            self.registers[scoped] = kind

    def _named(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)

    def _operand(self, text: str) -> Any:
        if text[0] == "{":
            return tuple(self._operand(part) for part in _parts(text[1:-1]))
        if text[0] == "[":
            inside = _parts(text[1:-1])
            found = re.fullmatch(r"(.+?)\s*(?:([+-])\s*(-?\w+))?", inside[0])
            base, sign, offset = found.groups() if found else (inside[0], "", "")
            distance = int(offset or "0", 0)
            return Address(self._operand(base), -distance if sign == "-" else distance)
        if "|" in text:
            return tuple(self._operand(part) for part in text.split("|"))
        if text[0] == "!":
            return Register(self._named(text[1:]), True)
        scoped = self._named(text)
        return Register(scoped) if scoped in self.registers else _number(text) or Symbol(text)


def _parts(text: str) -> list[str]:
    """Split at commas outside of braces and brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text) if part.strip()]
