"""One HTTP/2 connection under test: an application on it, a driver around it, and what must hold.

The application echoes: what a stream is sent comes back, at once or when the client has ended, or
never, as its path says. Whatever arrives,
  - nothing raises, and after each input the books are right: `held_bytes` is what is held, the
    streams are within their limit and in the states that belong in the table;
  - the output is well-formed: whole frames of legal sizes, nothing on a stream that was not opened
    or has ended, no more data than was granted, GOAWAY last;
  - each stream's user hears things in order, nothing after its end, and of each loss once;
  - once the connection is lost nothing is held.
"""

from __future__ import annotations

from random import Random
from typing import Final

from gateway.http2 import frames
from gateway.http2.connection import Connection
from gateway.http2.fields import (
    FieldRules,
    Fields,
    MalformedHead,
    RequestHead,
    content_length,
)
from gateway.http2.hpack import Decoder, literals
from gateway.http2.inbound import Application, Inbound
from gateway.http2.limits import Limits
from gateway.http2.stream import CLOSED, HALF_CLOSED, OPEN, Stream

LIMITS: Final = Limits(
    streams_per_connection=8,
    header_bytes=4_096,
    connection_bytes=1 << 20,
    stream_window_bytes=30_000,
    connection_window_bytes=100_000,
    control_tokens=400,
    burst_bytes=64 << 10,
)
HEAD: Final = literals(((b":status", b"200"), (b"content-type", b"application/grpc")))
TRAILERS: Final = literals(((b"grpc-status", b"0"),))
MOST_CONTROL_BYTES: Final = 4_096
"""Of frames that are no data, beyond twice what came in: heads and ends of answers."""
STEP_NS: Final = 1
"""Between two inputs: no time, as that would bring allowance back."""


class Head(RequestHead):
    """What the echo reads of a request."""

    __slots__ = ("fields", "path")

    def __init__(self, path: bytes, fields: Fields = ()) -> None:
        super().__init__()
        self.path = path
        self.fields = list(fields)


class Echo(Stream):
    """A request whose body is its answer."""

    __slots__ = ("body", "has_ended", "held", "is_lost", "view")

    def __init__(self, connection: Inbound, stream_id: int, head: RequestHead) -> None:
        super().__init__(connection, stream_id, head)
        self.body = bytearray()
        self.has_ended = False
        self.is_lost = False
        self.held = 0
        self.view: bytearray | None = None
        self.is_paused = stream_id % 16 == 5

    @property
    def path(self) -> bytes:
        """Return the request's path."""
        assert isinstance(self.head, Head)
        return self.head.path

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Return the request's header list."""
        assert isinstance(self.head, Head)
        return self.head.fields

    def take_head(self, *, is_last: bool) -> None:
        """Take the head."""
        assert not self.has_ended
        assert not self.is_lost
        if is_last:
            self._end()

    def take_data(self, data: bytes, start: int, end: int, is_last: int) -> None:
        """Take a part of the body."""
        assert not self.is_lost, "data after the loss"
        assert not self.has_ended, "data after the end"
        assert 0 <= start <= end <= len(data)
        piece = data[start:end]
        assert piece or is_last, "nothing was told"
        self._take(piece)
        if is_last and not self.is_lost:
            self._end()

    def body_view(self, size: int) -> memoryview | None:
        """Offer room, on every other stream."""
        if self.stream_id & 2:
            return None
        self.view = bytearray(min(size, 1_000))
        return memoryview(self.view)

    def body_filled(self, size: int) -> None:
        """Take what was read into it."""
        assert self.view is not None
        self._take(bytes(self.view[:size]))

    def _take(self, piece: bytes) -> None:
        if self.is_done:
            return
        self.body += piece
        if b"Stream" in self.path:
            self._answer(piece)
        elif not self.connection.hold(len(piece)):
            self._refuse()
        else:
            self.held += len(piece)

    def _answer(self, piece: bytes) -> None:
        if not self.is_head_sent:
            self.connection.send_head(self, HEAD)
        self.connection.send_data(self, b"", piece)

    def _end(self) -> None:
        self.has_ended = True
        if self.is_done or b"Nothing" in self.path:
            return
        self.release()
        if b"Stream" not in self.path:
            self._answer(bytes(self.body))
        if not self.is_done:
            self.connection.send_end(self, TRAILERS)

    def _refuse(self) -> None:
        self.body.clear()  # how much came until it was too much is a matter of the cuts
        self.release()
        self.connection.reset(self, frames.ErrorCode.REFUSED_STREAM)

    def release(self) -> None:
        """Hold nothing."""
        self.connection.hold(-self.held)
        self.held = 0

    def overflowed(self) -> None:
        """Give up."""
        self._refuse()

    def lost(self) -> None:
        """Give up."""
        assert not self.is_lost, "lost twice"
        self.is_lost = True
        self.release()


class Driver:
    """A connection under test, and what drives it. Feed it, then `finish`."""

    def __init__(self, application: Application, limits: Limits) -> None:
        self.now_ns = 1
        self.watcher = Watcher()
        self._limits = limits
        self._is_due = False
        self.connection = Connection(application, self, limits, self.now_ns)
        self.connection.start()
        self.flush()

    def output_ready(self) -> None:
        """Note that there is output; it is taken after each input."""
        assert self.connection.is_dirty
        self._is_due = True

    def feed(self, data: bytes, *, is_direct: bool = False) -> None:
        """Give the connection bytes; directly where it offers room, if that is wanted."""
        self.now_ns += STEP_NS
        while is_direct and data:
            view = self.connection.body_view()
            if view is None:
                break
            size = min(len(view), len(data))
            assert size, "room for nothing"
            view[:size] = data[:size]
            view.release()
            data = data[size:]
            self.connection.body_received(size, self.now_ns)
        self.connection.receive(data, self.now_ns)
        self.check()
        self.flush()

    def feed_full(self, data: bytes) -> None:
        """Give the connection bytes while the socket takes none: hardly more may come out."""
        self.connection.socket_full()
        self.now_ns += STEP_NS
        self.connection.receive(data, self.now_ns)
        self.check()
        made = sum(map(len, self.connection.out))
        assert made <= 2 * len(data) + MOST_CONTROL_BYTES, f"{made} bytes come of {len(data)}"
        self.flush()
        self.connection.socket_drained()
        self.flush()

    def flush(self) -> None:
        """Take the output as a socket does, as long as there is some."""
        connection = self.connection
        for _ in range(1_000):
            if not self._is_due:
                assert not connection.out, "output that nobody was told of"
                may_go = connection.send_window > 0 and not connection.is_full
                assert not (connection.ready and may_go), "output that stalls"
                return
            self._is_due = connection.is_dirty = connection.is_bulky = False
            taken, connection.out = b"".join(connection.out), []
            self.watcher.last_id = connection.last_id
            self.watcher.take(taken)
            if not connection.is_ended:
                connection.flushed()
        raise AssertionError("the output never ends")

    def check(self) -> None:
        """Compare the books with what there is."""
        connection = self.connection
        streams = list(connection.streams.values())
        assert len(streams) <= self._limits.streams_per_connection
        queued = 0
        for stream in streams:
            assert stream.state is OPEN or stream.state is HALF_CLOSED
            queued += stream.queue.size_bytes if stream.queue is not None else 0
        assert queued <= connection.held_bytes <= self._limits.connection_bytes
        assert connection.held_bytes == 0 or streams
        waiting = {
            stream.stream_id
            for stream in streams
            if stream.queue is not None and connection.initial_window + stream.window_bytes > 0
        }
        assert set(connection.ready) == waiting, "a stream waits for nothing, or is forgotten"
        assert connection.send_window >= 0
        assert self.watcher.data_bytes <= connection.granted_bytes

    def lose(self) -> None:
        """Lose the connection; nothing may be left."""
        self.connection.lost()
        assert not self.connection.streams
        assert not self.connection.ready
        assert self.connection.held_bytes == 0


class Peer(Driver):
    """A connection on which everything is echoed."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.opened: dict[int, Echo] = {}
        self._rules = FieldRules()
        super().__init__(self, limits)

    def read_head(self, fields: Fields) -> RequestHead:
        """Return what a header list means here."""
        try:
            values = self._rules.check(fields)
            head = Head(values[b":path"], fields)
            head.content_length = content_length(values)
            head.is_eager = head.content_length is not None
        except MalformedHead:
            head = Head(b"")
            head.is_malformed = head.is_eager = True
        return head

    def oversized_head(self) -> RequestHead:
        """Return a head that nobody answers."""
        return Head(b"Nothing")

    def open(self, connection: Inbound, stream_id: int, head: RequestHead, /) -> Stream:
        """Return the stream of a new request."""
        assert stream_id & 1
        assert stream_id > max(self.opened, default=0)
        stream = self.opened[stream_id] = Echo(connection, stream_id, head)
        return stream

    def check(self) -> None:
        """Compare the books with what the streams hold, to the byte."""
        super().check()
        streams = self.connection.streams.values()
        queued = sum(stream.queue.size_bytes for stream in streams if stream.queue is not None)
        held = sum(stream.held for stream in self.opened.values())
        assert self.connection.held_bytes == queued + held
        for stream in streams:
            assert isinstance(stream, Echo)
            assert not stream.is_lost

    def finish(self) -> dict[int, tuple[bytes, bool, bool]]:
        """Lose the connection; return each stream's body, its end and its loss."""
        summary = {
            number: (bytes(stream.body), stream.has_ended, stream.is_lost)
            for number, stream in self.opened.items()
        }
        self.lose()
        for stream in self.opened.values():
            assert stream.state is CLOSED
            assert stream.is_done
            assert not stream.held
        return summary


class Watcher:
    """Reads what a server sends, and finds what a client could not accept."""

    def __init__(self) -> None:
        self.data_bytes = 0
        self.last_id = 0
        """The highest stream that the client has opened."""
        self.goaway: int | None = None
        """Code of the last GOAWAY."""
        self.answers: dict[int, bytearray] = {}
        """Bodies of answers by stream."""
        self.blocks: dict[int, list[list[tuple[bytes, bytes]]]] = {}
        """Header lists of answers by stream."""
        self._decoder = Decoder(1 << 20)
        self.codes: dict[int, int] = {}
        """By stream: of the first RST_STREAM."""
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def take(self, output: bytes) -> None:
        """Read whole frames."""
        at = 0
        while at < len(output):
            high, low, kind, flags, stream_id = frames.unpack_head(output, at)
            start = at + frames.HEAD_BYTES
            at = start + (high << 8 | low)
            assert at <= len(output), "a frame cut off"
            assert not stream_id >> 31
            assert at - start <= 1 << 20
            self._frame(kind, flags, stream_id, output[start:at])

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == frames.GOAWAY:
            self.goaway = frames.unpack_u32(payload, 4)[0]
        elif kind == frames.RST_STREAM:
            assert stream_id <= self.last_id, "a reset of an idle stream"
            self.codes.setdefault(stream_id, frames.unpack_u32(payload)[0])
            self._ended.add(stream_id)
        elif kind in (frames.DATA, frames.HEADERS):
            assert stream_id & 1, "an answer to nobody"
            assert stream_id <= self.last_id, "an answer to nobody"
            assert stream_id not in self._ended, "a frame after the end"
            if kind == frames.HEADERS:
                assert flags & frames.END_HEADERS
                self.blocks.setdefault(stream_id, []).append(self._decoder.decode(payload))
                self._begun.add(stream_id)
            else:
                assert stream_id in self._begun, "data before the head"
                self.data_bytes += len(payload)
                self.answers.setdefault(stream_id, bytearray()).extend(payload)
            if flags & frames.END_STREAM:
                self._ended.add(stream_id)
        else:
            assert kind in (frames.SETTINGS, frames.PING, frames.WINDOW_UPDATE), kind


def run(pieces: list[bytes], choice: Random | None = None) -> tuple[object, ...]:
    """Feed pieces to a connection; return all that must not depend on how they were cut."""
    peer = Peer()
    for piece in pieces:
        peer.feed(piece, is_direct=choice is not None and choice.random() < 0.5)
    is_ended = peer.connection.is_ended
    return is_ended, peer.finish(), peer.watcher.goaway, peer.watcher.codes


def compare(cut: tuple[object, ...], whole: tuple[object, ...]) -> None:
    """Find what depends on how the bytes were cut, and say it briefly."""
    for one, other in zip(cut, whole, strict=True):
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            keys = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
            one, other = [{key: part.get(key) for key in keys} for part in (one, other)]
        raise AssertionError(f"{str(one)[:300]} is not {str(other)[:300]}")
