"""gRPC on HTTP/2: a small method table behind the real calls, without sockets.

An input is as in target_http2. On top of what `http2_peer` says of every connection,
  - handlers hear of each call once, of its messages in order, of its end or its loss once;
  - a call ends in one way: what was sent is one well-formed answer with one status;
  - what the calls were given, and their statuses, do not depend on how the bytes were cut.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Final

from gateway.grpc_transport.call import Call
from gateway.grpc_transport.head import CallHead, HeadReader, Method, Raw, Sink
from gateway.http2.fields import Fields
from gateway.http2.liveness import sweep
from tests.fuzz import target_http2
from tests.fuzz.frames import (
    CALL,
    END_HEADERS,
    HEADERS,
    PREFACE,
    data,
    frame,
    head,
    message,
    settings,
    split,
)
from tests.fuzz.http2_peer import LIMITS, Driver, compare
from tests.fuzz.target_http2 import short, stream_of

MAX_MESSAGE_BYTES: Final = 30_000
LONG_NS: Final = 3_600 * 1_000_000_000
WORDS: Final = (
    *target_http2.WORDS,
    b"/fuzz.Echo/Unary",
    b"/fuzz.Echo/Late",
    b"/fuzz.Echo/Paused",
    b"/fuzz.Echo/Broken",
    b"\x00\x00\x00\x00\x05hello",
    b"\x00\x00\x00\x00\x00",
    b"\x01\x00\x00\x00\x00",
    b"\x02\x00\x00\x00\x00",
    b"\x00\x0cgrpc-timeout\x021S",
    b"\x00\x0dgrpc-encoding\x04gzip",
    b"\x00\x07key-bin\x04AAEC",
)

Heard = list[bytes | None]
"""What a handler was given: messages, and None for their end."""


class Handlers:
    """The methods, and what they heard."""

    def __init__(self) -> None:
        self.heard: dict[int, Heard] = {}
        self.cancelled: list[int] = []
        self._late: list[tuple[Call, bytes]] = []
        self._waiting: list[Call] = []

    def methods(self) -> dict[str, Method]:
        """Return the table."""
        return {
            "/fuzz.Echo/Unary": Method(self._unary, False),
            "/fuzz.Echo/Late": Method(self._answer_late, False),
            "/fuzz.Echo/Nothing": Method(self._take, False),
            "/fuzz.Echo/Broken": Method(self._break, False),
            "/fuzz.Echo/Stream": Method(self._stream, True),
            "/fuzz.Echo/Paused": Method(self._pause, True),
        }

    def go_on(self) -> None:
        """Answer what was put off, and read on where that was put off."""
        late, self._late = self._late, []
        for call, answer in late:
            call.reply(answer)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call.resume_reading()

    @property
    def owes(self) -> bool:
        """Whether `go_on` would do anything."""
        return bool(self._late or self._waiting)

    def _begin(self, call: Call) -> Heard:
        number = call.stream_id
        assert number not in self.heard, "started twice"
        call.on_cancel = lambda: self.cancelled.append(number)
        heard = self.heard[number] = []
        assert isinstance(call.head.metadata, tuple)
        return heard

    def _take(self, call: Call, given: Raw) -> None:
        self._begin(call).append(bytes(given))

    def _unary(self, call: Call, given: Raw) -> None:
        self._take(call, given)
        call.reply(bytes(given))
        assert call.is_done

    def _answer_late(self, call: Call, given: Raw) -> None:
        self._take(call, given)
        self._late.append((call, bytes(given)))

    def _break(self, call: Call, given: Raw) -> None:
        self._take(call, given)
        raise RuntimeError("a bug of a handler")

    def _stream(self, call: Call) -> Sink:
        heard = self._begin(call)

        def sink(given: Raw | None) -> None:
            assert not heard or heard[-1] is not None, "a message after the end"
            assert call.stream_id not in self.cancelled, "a message after the loss"
            heard.append(None if given is None else bytes(given))
            if given is None:
                call.finish()
            else:
                call.send(bytes(given))

        return sink

    def _pause(self, call: Call) -> Sink:
        sink = self._stream(call)

        def pausing(given: Raw | None) -> None:
            assert not call.is_paused, "a message in the pause"
            sink(given)
            if given is not None:
                call.pause_reading()
                self._waiting.append(call)

        return pausing


class Peer(Driver):
    """A connection whose calls are gRPC's."""

    def __init__(self, compression: str) -> None:
        self.handlers = Handlers()
        self._heads = HeadReader(self.handlers.methods(), MAX_MESSAGE_BYTES, compression)
        super().__init__(self, LIMITS)

    open = Call

    def read_head(self, fields: Fields) -> CallHead:
        """Return what a header list means."""
        return self._heads.read(fields)

    def oversized_head(self) -> CallHead:
        """Return the head of a call whose header list is too large."""
        return self._heads.oversized()

    def go_on(self) -> None:
        """Let the handlers do what they put off, to the end."""
        for _ in range(1_000):
            if not self.handlers.owes:
                return
            self.handlers.go_on()
            self.check()
            self.flush()
        raise AssertionError("paused for ever")

    def sweep(self) -> None:
        """Let a long time pass."""
        self.now_ns += LONG_NS
        sweep(self.connection, self.now_ns)
        self.check()
        self.flush()

    def finish(self) -> tuple[object, ...]:
        """Lose the connection; return what was heard and answered.

        Less the resets with NO_ERROR: who refuses a call before its last frame is complete has to
        send one, and how much has come is a matter of the cuts.
        """
        summary = (
            {number: list(heard) for number, heard in self.handlers.heard.items()},
            sorted(self.handlers.cancelled),
            self.watcher.goaway,
            {number: code for number, code in self.watcher.codes.items() if code},
            self.watcher.blocks,
            self.watcher.answers,
        )
        self.lose()
        self.go_on()
        cancelled = self.handlers.cancelled
        assert len(set(cancelled)) == len(cancelled), "cancelled twice"
        assert set(cancelled) <= set(self.handlers.heard)
        return summary


def run(pieces: list[bytes], compression: str, choice: Random | None = None) -> tuple[object, ...]:
    """Feed pieces to a connection, then let the handlers go on; return what came of it."""
    peer = Peer(compression)
    for piece in pieces:
        peer.feed(piece, is_direct=choice is not None and choice.random() < 0.5)
    peer.go_on()
    return peer.finish()


def run_on(pieces: list[bytes], compression: str, choice: Random) -> None:
    """Feed pieces while handlers go on and time passes, in any order."""
    peer = Peer(compression)
    for piece in pieces:
        if choice.random() < 0.1:
            peer.feed_full(piece)
        else:
            peer.feed(piece, is_direct=choice.random() < 0.5)
        if choice.random() < 0.5:
            peer.go_on()
        if choice.random() < 0.05:
            peer.connection.drain(peer.now_ns)
            peer.flush()
        if choice.random() < 0.05:
            peer.sweep()
    peer.sweep()
    peer.sweep()
    peer.finish()


def run_good(pieces: list[bytes], choice: Random) -> dict[int, int]:
    """Feed a connection on which all is right; return what the server had to reset."""
    peer = Peer("none")
    for piece in pieces:
        peer.feed(piece, is_direct=choice.random() < 0.5)
    peer.go_on()
    codes = dict(peer.watcher.codes)
    peer.finish()
    return codes


def seeds() -> list[bytes]:
    """Return calls of every method, whole, cut, compressed, too large, late and broken."""
    bodies = [
        [message(b"hello")],
        [message(b"hello")[:7], message(b"hello")[7:]],
        [message(b"")],
        [b""],
        [message(b"a") + message(b"b"), message(b"c" * 300)],
        [message(gzip.compress(b"z" * 500), 1)],
        [message(b"broken", 1)],
        [message(b"x", 2)],
        [message(bytes(MAX_MESSAGE_BYTES + 1))[:200]],
        [message(bytes(9_000))[:4_000], message(bytes(9_000))[4_000:]],
    ]
    more = [
        (),
        ((b"grpc-encoding", b"gzip"), (b"grpc-accept-encoding", b"gzip, identity")),
        ((b"grpc-timeout", b"100m"), (b"key-bin", b"AAEC,AAEC")),
        ((b"content-length", b"10"),),
        ((b"grpc-encoding", b"snappy"),),
    ]
    made = []
    paths = [path.encode() for path in Handlers().methods()]
    for number, parts in enumerate(bodies * 3):
        frames = [PREFACE, settings()]
        for place in range(1 + number % 3):
            stream = 2 * place + 1
            path = (b":path", paths[(number + place) % len(paths)])
            fields = [*CALL[:2], path, *CALL[3:], *more[(number + place) % len(more)]]
            frames.append(head(stream, fields))
            frames += [data(stream, part, 0) for part in parts[:-1]]
            frames.append(data(stream, parts[-1], number % 4 > 0))
        made.append(bytes((number,)) + b"".join(frames))
        made.append(bytes((number | target_http2.SHORT,)) + b"".join(map(short, frames[1:])))
    made.append(b"\0" + PREFACE + frame(HEADERS, END_HEADERS, 1, b"\x83"))
    return [*made, *target_http2.seeds()[:40]]


def one(data: bytes) -> None:
    """Run an input."""
    if data:
        check(stream_of(data), "gzip" if data[0] & 1 else "none", Random(data[0]))


@contextmanager
def silence() -> Iterator[None]:
    """Keep what the broken handler does out of the log."""
    logger = logging.getLogger("gateway.grpc_transport.call")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def check(stream: bytes, compression: str, choice: Random) -> None:
    """Feed bytes in one piece, in many, and in many while other things happen."""
    with silence():
        whole = run([stream], compression)
        cut = run(split(choice, stream), compression, choice)
        compare(cut, whole)
        run_on(split(choice, stream), compression, choice)
