"""What lanes ask of a device: buffers, streams, events and recorded graphs. The words, no device.

The rules are CUDA's, in short. Work queued on a stream runs later, in the order of the stream;
streams know nothing of each other but by events: `hold` lets a stream wait for what an event has
recorded, `wait` lets the calling thread. Both mean the event's latest record at the time of the
call. Between `begin_capture` and `end_capture` a stream runs nothing and remembers what is queued;
the graph it becomes is queued as a whole, with the addresses it was recorded with.

Ownership. Blocks, streams, events and graphs are given back one by one (`free`, `drop`), after the
device is done with them, and all that is left by `close`. What an array over a pinned block shows
ends with the block.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from engines.tensors import Array


class CaptureFailed(Exception):
    """What was queued could not be recorded; the device is unharmed, and runs it plainly."""


@dataclass(frozen=True, slots=True)
class Block:
    """Memory of a device, or of the host where it is pinned."""

    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HostBlock(Block):
    """Memory of the host that a device copies from and to by itself."""

    # Any: an instance of an array type that ctypes makes for each size.
    buffer: Any = field(repr=False, compare=False)

    # Any: see tensors.Array.
    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset_bytes: int = 0) -> Array:
        """Return a part of the block as an array of that shape, without a copy."""
        return np.ndarray(shape, dtype, self.buffer, offset_bytes)


@dataclass(frozen=True, slots=True)
class Stream:
    """A queue of work on a device; `handle` is the runtime's own."""

    handle: int


@dataclass(frozen=True, slots=True)
class Event:
    """A place in a stream that can be waited for."""

    handle: int


@dataclass(frozen=True, slots=True)
class Graph:
    """Recorded work, ready to be queued again."""

    handle: int


# Any: see HostBlock.
def buffer_at(address: int, size_bytes: int) -> Any:
    """Return the bytes at an address of this process as a buffer, which does not own them."""
    return (ctypes.c_char * size_bytes).from_address(address)


# Any: see tensors.Array.
def array_at(address: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return what lies at an address of this process as an array, which does not own it."""
    return np.ndarray(shape, dtype, buffer_at(address, math.prod(shape) * dtype.itemsize))


class Memory(Protocol):
    """The memory of one device and its streams. Every call may come from any thread.

    Raises:
        OutOfMemory: the device has no room for it; nothing else is wrong.
        DeviceFailed: any other failure; the device's state is not to be trusted any more.
    """

    @property
    def device(self) -> str:
        """Its name, such as cuda:0."""

    def pinned(self, size_bytes: int) -> HostBlock:
        """Allocate on the host; what it holds is undefined."""

    def allocate(self, size_bytes: int) -> Block:
        """Allocate on the device; what it holds is undefined."""

    def free(self, block: Block) -> None:
        """Give a block back, of either kind."""

    def stream(self) -> Stream:
        """Make a stream that is ordered against no other one."""

    def event(self) -> Event:
        """Make an event; until it has recorded something, there is nothing to wait for."""

    def copy_in(self, to: Block, source: HostBlock, size_bytes: int, stream: Stream) -> None:
        """Queue a copy from the start of a pinned block to that of a device's."""

    def copy_out(self, to: HostBlock, source: Block, size_bytes: int, stream: Stream) -> None:
        """Queue a copy from the start of a device's block to that of a pinned one."""

    def record(self, event: Event, stream: Stream) -> None:
        """Let the event stand for all that is queued on the stream by now."""

    def hold(self, stream: Stream, event: Event) -> None:
        """Let what is queued on the stream from now on wait for the event."""

    def wait(self, event: Event) -> None:
        """Block the calling thread, without the GIL, until the event has come to pass."""

    def begin_capture(self, stream: Stream) -> None:
        """Remember what this thread queues on the stream from now on, instead of running it.

        Raises:
            CaptureFailed: the stream cannot.
        """

    def end_capture(self, stream: Stream) -> Graph:
        """Return what was remembered; in the thread that began. The stream runs work again.

        Raises:
            CaptureFailed: something was queued or called that cannot be recorded.
        """

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Queue recorded work."""

    def drop(self, thing: Stream | Event | Graph) -> None:
        """Give a stream, an event or a graph back."""

    def memory_info(self) -> tuple[int, int]:
        """Return the device's free and total bytes."""

    def close(self) -> None:
        """Give everything back that is left. Idempotent; never raises."""
