"""Large tensors between a front and the engine process: one arena per direction of a link.

An arena is anonymous memory (memfd) that its writer makes and maps, and whose file descriptor goes
to the reader with the link's greeting. It has no name, so nothing is left behind whoever is killed
when: the memory is gone with the last of the two mappings. It belongs to one link; a link that
follows has an arena of its own, so that nobody can write where a peer of before still reads.

Ownership of a slot, in this order and never shared:
  writer   from `put` until the message that names it is sent;
  reader   until the last view of it is gone, wherever that is: a batch, the log's buffer, a twin.
           The reader's views end in one numpy array; when that dies, the offset goes into `freed`
           and from there to the writer, in a FREE message;
  writer   from then on it is free.
A reader that is slow to let go therefore makes the writer run out of slots, never overwrite one;
`put` then says so, and the bytes travel on the socket.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from bisect import insort
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from engines.tensors import Raw
from gateway.workers.frames import INLINE, FrameError

THRESHOLD_BYTES: Final = 64 << 10
"""From this size on a tensor goes through an arena."""
ARENA_BYTES: Final = 256 << 20
"""Size of an arena; only what was written to takes memory."""
KEPT_BYTES: Final = 16 << 20
"""What an arena keeps when it has been idle; the rest goes back to the system."""
_PAGE_BYTES: Final = 4_096


class Arena:
    """The writer's side. Used from one thread.

    Invariant: `_free` are disjoint extents (start, size) in order, no two of which touch; together
    with `_taken` they cover the arena.
    """

    def __init__(self, size_bytes: int = ARENA_BYTES) -> None:
        self.fd = os.memfd_create("sluice", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size_bytes)
        # Nobody can cut it: reading what is mapped can never fail.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._map = mmap.mmap(self.fd, size_bytes)
        self.size_bytes = size_bytes
        self._free: list[tuple[int, int]] = [(0, size_bytes)]
        self._taken: dict[int, int] = {}
        self._touched = 0
        """End of what may hold memory."""
        self._reached = 0
        """End of what was in use since the last `trim`."""

    @property
    def taken_bytes(self) -> int:
        """Bytes of the slots that are not free."""
        return sum(self._taken.values())

    @property
    def taken_slots(self) -> int:
        """How many slots are not free."""
        return len(self._taken)

    def put(self, data: Raw) -> int:
        """Copy bytes into a slot and return its offset; INLINE if there is no room."""
        size = -(-len(data) // _PAGE_BYTES) * _PAGE_BYTES
        fitting = (index for index, (_, room) in enumerate(self._free) if room >= size)
        index = next(fitting, -1)
        if index < 0:
            return INLINE
        start, room = self._free[index]
        if room == size:
            del self._free[index]
        else:
            self._free[index] = start + size, room - size
        self._taken[start] = size
        self._reached = max(self._reached, start + size)
        self._touched = max(self._touched, start + size)
        self._map[start : start + len(data)] = data
        return start

    def free(self, offset: int) -> None:
        """Take a slot back; ValueError if it is none."""
        size = self._taken.pop(offset, 0)
        if not size:
            raise FrameError(f"no slot at {offset}")
        free = self._free
        insort(free, (offset, size))
        at = free.index((offset, size))
        if at + 1 < len(free) and free[at + 1][0] == offset + size:
            size += free.pop(at + 1)[1]
            free[at] = offset, size
        if at and sum(free[at - 1]) == offset:
            start, before = free[at - 1]
            free[at - 1 : at + 1] = [(start, before + size)]

    def trim(self) -> None:
        """Give memory beyond KEPT_BYTES back if nothing was there since the last call."""
        in_use = max((start + size for start, size in self._taken.items()), default=0)
        keep = max(KEPT_BYTES, self._reached, in_use)
        if self._touched > keep:
            self._map.madvise(mmap.MADV_REMOVE, keep, self._touched - keep)
            self._touched = keep
        self._reached = in_use

    def handed_over(self) -> None:
        """Close the file descriptor: the reader has its own, and this side its mapping."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Let go of the memory; the reader may still have it. Idempotent."""
        self.handed_over()
        self._map.close()


class _Held(weakref.ref["np.ndarray[Any, Any]"]):  # Any: shape and element type do not matter
    """A slot's last view; knows which one it is of."""

    __slots__ = ("offset",)
    offset: int


class SharedReader:
    """The reader's side.

    Args:
        fd: of the arena; stays the caller's.
        size_bytes: of the arena.
        on_freed: told that `freed` has something to send; from whatever thread dropped the view.
    """

    def __init__(self, fd: int, size_bytes: int, on_freed: Callable[[], None]) -> None:
        if os.fstat(fd).st_size != size_bytes:
            raise FrameError(f"the arena is not of {size_bytes} bytes")
        self._map = mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ)
        self._size_bytes = size_bytes
        self._held: dict[int, _Held] = {}
        self.freed: list[int] = []
        self._on_freed = on_freed

    @property
    def held_slots(self) -> int:
        """How many slots are still being looked at."""
        return len(self._held)

    def fetch(self, offset: int, size: int) -> Raw:
        """Return a read-only view of a slot; the slot is given back when nobody has it any more."""
        if not 0 <= offset <= self._size_bytes - size or size <= 0 or offset in self._held:
            raise FrameError(f"no slot at {offset} of {size} bytes")
        array = np.frombuffer(self._map, np.uint8, size, offset)
        held = _Held(array, self._let_go)
        held.offset = offset
        self._held[offset] = held
        return memoryview(array)  # type: ignore[arg-type]  # 3.11 has no type for buffers

    def _let_go(self, held: weakref.ref[Any]) -> None:  # Any: as in _Held
        # In the thread of whoever dropped the last view: only operations that are atomic.
        if isinstance(held, _Held) and self._held.pop(held.offset, None) is not None:
            self.freed.append(held.offset)
            self._on_freed()
