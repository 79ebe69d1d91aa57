"""A `Memory` on the host that keeps a device's rules, for tests and for machines without one.

Knows no engine. Blocks are plain memory at real addresses; "device" blocks are apart from pinned
ones, so that an answer is right only if it was copied both ways. Queued work does not run when it
is queued. It runs when somebody waits for an event, and then only what that event stands for: the
stream up to the record, and whatever its `hold`s stand for. So a wait, a hold or a record that is
missing leaves bytes unwritten, or reads them too late, and the answer is wrong.

The other extreme, a device that runs ahead of the host, is had with `haste`: random steps of random
streams, as far as their holds let them, after each call. What is right must be right in both.

Fresh and freed memory is filled with bytes that no answer has. Work on freed memory, and any
exception of a `call`, loses the device: the error is raised by the next wait and every call after
it, as CUDA does. Faults of single calls are asked for with `fail_next`.
"""

from __future__ import annotations

import ctypes
import math
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from engines.errors import DeviceFailed, OutOfMemory
from engines.gpu.host_streams import Mark, Streams, Work
from engines.gpu.memory import Block, Event, Graph, HostBlock, Stream
from engines.tensors import Array

FRESH: Final = 0xDB
FREED: Final = 0xFD
WORK: Final = "work"
"""Name of a fault in queued work, when it runs; every other one is named for its method."""

_B = TypeVar("_B", bound=Block)


@dataclass(slots=True)
class _Fault:
    exc: Exception
    after: int
    """Calls that still go well."""


class HostMemory:
    """See the top of the file.

    Args:
        total_bytes: of the device; an allocation over it is refused.
        haste: draws how far the streams run ahead; None: nothing runs before it is waited for.
        device: the name in its errors.
    """

    def __init__(
        self,
        *,
        total_bytes: int = 1 << 30,
        haste: random.Random | None = None,
        device: str = "host",
    ) -> None:
        self.device = device
        self.calls: Counter[str] = Counter()
        """By method: how often it was called."""
        self.leaks: tuple[str, ...] = ()
        """What `close` had to give back itself."""
        self._total_bytes = total_bytes
        self._lock = threading.RLock()
        # Any: an instance of an array type that ctypes makes for each size.
        self._blocks: dict[int, tuple[Block, Any]] = {}
        """By address, with the bytes."""
        self._streams = Streams(self._run, haste)
        self._events: dict[int, Mark | None] = {}
        """By handle: the latest record."""
        self._graphs: dict[int, tuple[Work, ...]] = {}
        self._last_handle = 0
        self._faults: dict[str, _Fault] = {}
        self._lost: DeviceFailed | None = None
        self._is_closed = False

    def pinned(self, size_bytes: int) -> HostBlock:
        """Allocate host memory."""
        with self._lock:
            self._enter("pinned", is_recordable=False)
            buffer = (ctypes.c_char * size_bytes)()
            return self._keep(HostBlock(ctypes.addressof(buffer), size_bytes, buffer), buffer)

    def allocate(self, size_bytes: int) -> Block:
        """Allocate what stands for device memory."""
        with self._lock:
            self._enter("allocate", is_recordable=False)
            if size_bytes > self.memory_info()[0]:
                raise OutOfMemory(self.device)
            buffer = (ctypes.c_char * size_bytes)()
            return self._keep(Block(ctypes.addressof(buffer), size_bytes), buffer)

    def free(self, block: Block) -> None:
        """Give a block back; what is still queued on it will lose the device."""
        with self._lock:
            found = self._blocks.pop(block.address, None)
            if found is not None:
                ctypes.memset(block.address, FREED, block.size_bytes)
            self._enter("free", is_recordable=False)
            if found is None:
                raise self._fault("free: not a block of this memory, or freed before")

    def stream(self) -> Stream:
        """Make a stream."""
        with self._lock:
            self._enter("stream")
            made = Stream(self._handle())
            self._streams.add(made.handle)
            return made

    def event(self) -> Event:
        """Make an event."""
        with self._lock:
            self._enter("event")
            made = Event(self._handle())
            self._events[made.handle] = None
            return made

    def copy_in(self, to: Block, source: HostBlock, size_bytes: int, stream: Stream) -> None:
        """Queue a copy to the device."""
        with self._lock:
            self._enter("copy_in", stream)
            self._queue_copy(to, source, size_bytes, stream, to_host=False)

    def copy_out(self, to: HostBlock, source: Block, size_bytes: int, stream: Stream) -> None:
        """Queue a copy to the host."""
        with self._lock:
            self._enter("copy_out", stream)
            self._queue_copy(to, source, size_bytes, stream, to_host=True)

    def call(self, stream: Stream, work: Callable[[], object]) -> None:
        """Queue a function: what stands for a kernel."""
        with self._lock:
            self._enter("call", stream)
            self._streams.queue(stream.handle, work)

    def record(self, event: Event, stream: Stream) -> None:
        """Mark the stream's end as it is now."""
        with self._lock:
            self._enter("record", stream, event)
            if (mark := self._streams.mark(stream.handle)) is not None:
                self._events[event.handle] = mark

    def hold(self, stream: Stream, event: Event) -> None:
        """Let the stream wait for the event's latest record."""
        with self._lock:
            self._enter("hold", stream, event)
            self._streams.hold(stream.handle, self._events[event.handle])

    def wait(self, event: Event) -> None:
        """Run what the event stands for, and only that."""
        with self._lock:
            self._enter("wait", event)
            if (mark := self._events[event.handle]) is not None:
                self._streams.reach(mark)
            self._raise_if_lost()

    def begin_capture(self, stream: Stream) -> None:
        """Remember what is queued on the stream."""
        with self._lock:
            self._enter("begin_capture", stream)
            self._streams.begin_capture(stream.handle)

    def end_capture(self, stream: Stream) -> Graph:
        """Make a graph of what was queued."""
        with self._lock:
            try:
                self._enter("end_capture", stream)
            except Exception:
                self._streams.abandon_capture(stream.handle)
                raise
            recorded = self._streams.end_capture(stream.handle)
            made = Graph(self._handle())
            self._graphs[made.handle] = recorded
            return made

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Queue what was recorded, as it was recorded."""
        with self._lock:
            self._enter("launch", stream, graph)
            for work in self._graphs[graph.handle]:
                self._streams.queue(stream.handle, work)

    def drop(self, thing: Stream | Event | Graph) -> None:
        """Give a stream, an event or a graph back."""
        with self._lock:
            is_there = self._has(thing)
            if isinstance(thing, Stream):
                self._streams.remove(thing.handle)
            elif isinstance(thing, Event):
                self._events.pop(thing.handle, None)
            else:
                self._graphs.pop(thing.handle, None)
            self._enter("drop")
            if not is_there:
                raise self._fault(f"drop: no such {type(thing).__name__}, or dropped before")

    def memory_info(self) -> tuple[int, int]:
        """Return what `total_bytes` leaves, and itself."""
        with self._lock:
            self._raise_if_lost()
            blocks = [block for block, _ in self._blocks.values()]
            taken = sum(b.size_bytes for b in blocks if not isinstance(b, HostBlock))
            return self._total_bytes - taken, self._total_bytes

    def close(self) -> None:
        """Give everything back; what there was is named in `leaks`."""
        with self._lock:
            if self._is_closed:
                return
            self.leaks = self.live()
            self._is_closed = True
            for block, _ in self._blocks.values():
                ctypes.memset(block.address, FREED, block.size_bytes)
            self._blocks.clear()

    def live(self) -> tuple[str, ...]:
        """Return what was made and not given back yet, by kind."""
        blocks = [f"{type(b).__name__} of {b.size_bytes}" for b, _ in self._blocks.values()]
        counts = (len(self._streams), len(self._events), len(self._graphs))
        named = zip(("Stream", "Event", "Graph"), counts, strict=True)
        return (*blocks, *(name for name, count in named for _ in range(count)))

    # Any: see tensors.Array.
    def array_at(self, address: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """Return memory inside a live block as an array: how a `call` reads its tensors.

        Raises:
            DeviceFailed: the address is nobody's, or the array goes past the block's end.
        """
        size = math.prod(shape) * dtype.itemsize
        for start, (block, buffer) in self._blocks.items():
            if start <= address and address + size <= start + block.size_bytes:
                return np.ndarray(shape, dtype, buffer, address - start)
        raise self._fault(f"illegal access of {size} bytes at {address:#x}")

    def fail_next(self, what: str, exc: Exception, *, after: int = 0) -> None:
        """Let a call raise, once.

        Args:
            what: a method's name, or `WORK` for queued work when it runs.
            exc: what it raises. Of `WORK` the waits raise it, and the device is lost.
            after: calls that go well before.
        """
        with self._lock:
            self._faults[what] = _Fault(exc, after)

    def _enter(
        self, what: str, *things: Stream | Event | Graph, is_recordable: bool = True
    ) -> None:
        """Count a call, and fail it if it is to fail."""
        self.calls[what] += 1
        if self._is_closed:
            raise self._fault(f"{what}: the memory is closed")
        self._raise_if_lost()
        if (fault := self._due(what)) is not None:
            raise fault
        for thing in things:
            if not self._has(thing):
                raise self._fault(f"{what}: no such {type(thing).__name__}, or dropped before")
        if not is_recordable:
            self._streams.refuse_in_capture(what)

    def _has(self, thing: Stream | Event | Graph) -> bool:
        if isinstance(thing, Stream):
            return thing.handle in self._streams
        return thing.handle in (self._events if isinstance(thing, Event) else self._graphs)

    def _due(self, what: str) -> Exception | None:
        fault = self._faults.get(what)
        if fault is None:
            return None
        if fault.after:
            fault.after -= 1
            return None
        return self._faults.pop(what).exc

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost.with_traceback(None)

    def _fault(self, why: str) -> DeviceFailed:
        return DeviceFailed(self.device, why)

    def _handle(self) -> int:
        self._last_handle += 1
        return self._last_handle

    # Any: see _blocks.
    def _keep(self, block: _B, buffer: Any) -> _B:
        ctypes.memset(block.address, FRESH, block.size_bytes)
        self._blocks[block.address] = (block, buffer)
        return block

    def _queue_copy(
        self, to: Block, source: Block, size_bytes: int, stream: Stream, *, to_host: bool
    ) -> None:
        if isinstance(to, HostBlock) is not to_host or isinstance(source, HostBlock) is to_host:
            raise self._fault("a copy between blocks of the wrong kinds")
        if size_bytes > min(to.size_bytes, source.size_bytes):
            raise self._fault(f"a copy of {size_bytes} bytes past the end of a block")
        self._streams.queue(stream.handle, partial(self._copy, to, source, size_bytes))

    def _copy(self, to: Block, source: Block, size_bytes: int) -> None:
        for block in (to, source):
            found = self._blocks.get(block.address)
            if found is None or found[0] is not block:
                raise self._fault("a copy from or to memory that was freed")
        ctypes.memmove(to.address, source.address, size_bytes)

    def _run(self, work: Work) -> bool:
        """Run a piece of queued work; what it raises loses the device."""
        try:
            if (fault := self._due(WORK)) is not None:
                raise fault
            work()
        except Exception as exc:  # whatever it is: a device says no more than that it is lost
            self._lost = exc if isinstance(exc, DeviceFailed) else self._fault(repr(exc))
            return False
        return True
