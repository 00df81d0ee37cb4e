"""Memory of three kinds: global, shared (of a block), local (of a thread); and what is known of each byte.

A byte is forbidden (outside of every array), given but never written, or written. Arrays of global memory lie
apart (red zones), and freed ones are forbidden; shared arrays lie at the alignment they ask for and at no
better one. What a card would let pass in silence is a Fault here: misaligned, out of bounds, never written.
Read after: kernels/ptx/values. Read next: kernels/ptx/races.
"""

from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.kernels.ptx.faults import Fault, PtxError, demand

GLOBAL, SHARED, LOCAL = 0x7F0000000000, 0x01000000, 0x02000000     # windows of generic addresses
RED = 256                                                          # bytes between arrays of global memory
FORBIDDEN, UNWRITTEN, WRITTEN = 0, 1, 3
GAP = 16                                                           # and at least of the others
POISON = 0xA5                                                      # in bytes that nobody wrote
WIDE = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
FULL = {n: int.from_bytes(bytes([WRITTEN] * n), "little") for n in WIDE}


class Bytes:
    """Bytes and what is known of each, read and written by vectors of offsets, n bytes each."""

    def __init__(self, size: int, what: str, known: int = FORBIDDEN) -> None:
        self.what, self.strict = what, True
        self._set(np.full(-(-size // 16) * 16, POISON, np.uint8),
                  np.full(-(-size // 16) * 16, known, np.uint8))

    def _set(self, data: np.ndarray, known: np.ndarray) -> None:
        self.data, self.known = data, known
        self.views = {n: (data.view(t), known.view(t)) for n, t in WIDE.items()}
        self.views[16] = data.view(np.uint64).reshape(-1, 2), known.view(np.uint64).reshape(-1, 2)

    def load(self, at: np.ndarray, n: int) -> np.ndarray:
        """The n bytes at each offset, as integers of n bytes, or pairs of 8. Raises Fault (see above)."""
        data, known = self.views[n]
        place = self._place(at, n)
        state = known[place]
        if not (state == FULL[min(n, 8)]).all():
            each = np.ascontiguousarray(state).view(np.uint8).reshape(len(at), n)
            self._inside(each, at, n)
            if self.strict:
                demand((each == UNWRITTEN).any(1), f"{self.what} must be written before it is read",
                       lambda i: f"{n} bytes at {self.where(at[i])} never written",
                       "write it, or set it to 0")
        return data[place]

    def store(self, at: np.ndarray, n: int, values: np.ndarray) -> None:
        """Write n bytes to each offset; `values` as load gives them. Raises Fault (see the module)."""
        data, known = self.views[n]
        place = self._place(at, n)
        state = known[place]
        if not (state == FULL[min(n, 8)]).all():
            self._inside(np.ascontiguousarray(state).view(np.uint8).reshape(len(at), n), at, n)
            known[place] = FULL[min(n, 8)]
        data[place] = values

    def _place(self, at: np.ndarray, n: int) -> np.ndarray:
        """Indices of a view of width n; `at` is unsigned, so that one comparison finds both ends."""
        if n > 1 and int(np.bitwise_or.reduce(at)) & (n - 1):
            demand(at % np.uint64(n) != 0, f"an access of {n} bytes must be aligned to {n}",
                   lambda i: f"address {self.where(at[i])}, {int(at[i]) % n} past a multiple",
                   "align the array")
        if int(at.max()) + n > self.data.size:
            demand(at + np.uint64(n) > self.data.size, f"{self.what} must be accessed inside of its arrays",
                   lambda i: f"address {self.where(at[i])}", "check the index and its bound")
        return (at >> np.uint64(n.bit_length() - 1)).astype(np.int64)

    def _inside(self, known: np.ndarray, at: np.ndarray, n: int) -> None:
        demand((known == FORBIDDEN).any(1), f"{self.what} must be accessed inside of its arrays",
               lambda i: f"{n} bytes at {self.where(at[i])}", "check the index and its bound")

    def where(self, at: Any) -> str:
        """An offset in words."""
        return f"byte {int(at)}"


class GlobalMemory(Bytes):
    """The memory of a device of `total` bytes. Host memory is taken as it is asked for."""

    def __init__(self, total: int) -> None:
        super().__init__(1 << 16, "global memory")
        self.total, self.used, self.end = total, 0, RED
        self.sizes: dict[int, int] = {}                    # offset -> bytes, of what is allocated
        self.free: dict[int, list[int]] = {}               # rounded bytes -> offsets that were released

    def allocate(self, n: int) -> int | None:
        """The address of n bytes, never written; None where they do not fit."""
        if self.used + n > self.total:
            return None
        room = -(-n // 256) * 256
        if self.free.get(room):
            at = self.free[room].pop(0)
        else:
            at, self.end = self.end, self.end + room + RED
            self._grow(self.end)
        self.sizes[at] = n
        self.used += n
        self.known[at:at + n] = UNWRITTEN
        self.data[at:at + n] = POISON
        return GLOBAL + at

    def _grow(self, size: int) -> None:
        if size > self.data.size:
            room = max(size, min(2 * self.data.size, self.data.size + (1 << 28)))
            room = -(-room // 16) * 16
            data, known = np.empty(room, np.uint8), np.zeros(room, np.uint8)
            data[:self.data.size], known[:self.data.size] = self.data, self.known
            self._set(data, known)

    def release(self, address: int) -> None:
        """Give n bytes back. Raises PtxError for an address that was not allocated, or not since."""
        n = self.sizes.pop(address - GLOBAL, None)
        if n is None:
            raise PtxError(f"memory must be freed once, by its first address; got {address:#x}; "
                           "free what was allocated")
        self.used -= n
        at = address - GLOBAL
        self.known[at:at + n] = FORBIDDEN
        self.free.setdefault(-(-n // 256) * 256, []).append(at)

    def read(self, address: int, n: int) -> np.ndarray:
        """n bytes for the host. Raises PtxError outside of the arrays."""
        at = self._range(address, n)
        return self.data[at:at + n]

    def write(self, address: int, values: np.ndarray) -> None:
        """Bytes from the host. Raises PtxError outside of the arrays."""
        at = self._range(address, values.size)
        self.data[at:at + values.size] = values
        self.known[at:at + values.size] = WRITTEN

    def copy(self, into: int, source: int, n: int) -> None:
        """n bytes from `source` to `into`; what was never written stays so."""
        a, b = self._range(into, n), self._range(source, n)
        self.data[a:a + n], self.known[a:a + n] = self.data[b:b + n].copy(), self.known[b:b + n].copy()

    def _range(self, address: int, n: int) -> int:
        at = address - GLOBAL
        if at < 0 or at + n > self.data.size or not self.known[at:at + n].all():
            raise PtxError(f"a copy must lie in one array of the device; got {n} bytes at {address:#x}; "
                           "check the address and the size")
        return at

    def offsets(self, addresses: np.ndarray) -> np.ndarray:
        """Offsets of addresses (n,); what lies before all arrays becomes a large one."""
        return addresses - np.uint64(GLOBAL)

    def where(self, at: Any) -> str:
        """The array that an offset lies in or after."""
        at = int(at)
        before = [start for start in self.sizes if start <= at]
        if at >= self.data.size or not before:
            return f"{(at + GLOBAL) % 2 ** 64:#x}, in no array"
        start = max(before)
        return f"byte {at - start} of an array of {self.sizes[start]}"


class PrivateMemory(Bytes):
    """Shared memory of every block, or local memory of every thread: `size` bytes each, `owners` of them."""

    def __init__(self, owners: int, layout: "Layout", what: str) -> None:
        self.size = layout.end
        self.stride = -(-self.size // 16) * 16 + 16
        super().__init__(owners * self.stride, what)
        for start, size in layout.spans:                   # all other bytes are forbidden
            self.known.reshape(-1, self.stride)[:, start:start + size] = UNWRITTEN

    def offsets(self, addresses: np.ndarray, owner: np.ndarray, n: int) -> np.ndarray:
        """Offsets of addresses (n,), each in its owner's part. Raises Fault outside of it."""
        if int(addresses.max()) + n > self.size:
            demand(addresses + np.uint64(n) > self.size, f"{self.what} must be accessed inside of its arrays",
                   lambda i: f"{n} bytes at byte {int(addresses[i].astype(np.int64))}, behind all of them",
                   "check the index and its bound, and the bytes the launch asks for")
        return owner.astype(np.uint64) * np.uint64(self.stride) + addresses

    def where(self, at: Any) -> str:
        """An offset in its owner's part."""
        return f"byte {int(at) % self.stride}"


class Layout(NamedTuple):
    """Where arrays lie: addresses by name, (start, bytes) of each, and where the last one ends."""

    address: dict[str, int]
    spans: list[tuple[int, int]]
    end: int


def place(arrays: tuple[tuple[str, int, int], ...], dynamic: int = 0) -> Layout:
    """A layout of arrays (name, alignment, bytes): aligned as promised and never better, with bytes between.

    The dynamic array (0 bytes) comes last and is given `dynamic` bytes; all of its names are one array.
    """
    address: dict[str, int] = {}
    spans, end = [], 0
    strictest = max((a[1] for a in arrays if not a[2]), default=1)
    for name, alignment, size in (*(a for a in arrays if a[2]), ("", strictest, dynamic)):
        at = -(-end // alignment) * alignment
        address[name] = at + (alignment if at % (2 * alignment) == 0 else 0)
        spans.append((address[name], size))
        end = address[name] + size + GAP
    address |= {name: address[""] for name, _, size in arrays if not size}
    return Layout(address, spans, end - GAP)


def refuse(what: str) -> Fault:
    """The Fault for something outside of what the interpreter knows."""
    return Fault("the interpreter must know the instruction", what, "add it to kernels/ptx, with a test")
