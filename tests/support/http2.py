"""A client of the sans-IO HTTP/2 connection: writes frames by hand, reads what comes back.

Header blocks are made by the `hpack` library, so nothing of the tested code is on this side.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import hpack

from gateway.http2.connection import Connection
from gateway.http2.fields import FieldRules, Fields, MalformedHead, RequestHead, content_length
from gateway.http2.inbound import Inbound
from gateway.http2.limits import Limits
from gateway.http2.stream import Stream

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 0x1, 0x1, 0x4, 0x8, 0x20
REQUEST: Final = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t.S/Echo"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)
SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def number(self) -> int:
        """The payload's last four bytes: an error code, an increment."""
        return int(struct.unpack(">I", self.payload[-4:])[0])

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return int(struct.unpack_from(">I", self.payload, 4 if self.kind == GOAWAY else 0)[0])


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags))
    return head + struct.pack(">I", stream_id) + payload


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


def window(stream_id: int, size: int) -> bytes:
    return frame(WINDOW, 0, stream_id, struct.pack(">I", size))


def rst(stream_id: int, code: int = 8) -> bytes:
    return frame(RST, 0, stream_id, struct.pack(">I", code))


def split(data: bytes) -> list[Frame]:
    """Return the frames that bytes consist of."""
    found = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 3], "big")
        kind, flags = data[at + 3], data[at + 4]
        stream_id = int.from_bytes(data[at + 5 : at + 9], "big")
        assert at + 9 + size <= len(data), "the output ends inside of a frame"
        found.append(Frame(kind, flags, stream_id, data[at + 9 : at + 9 + size]))
        at += 9 + size
    return found


class Heard(Stream):
    """A stream that writes down what it hears."""

    def __init__(self, connection: Inbound, stream_id: int, head: RequestHead) -> None:
        super().__init__(connection, stream_id, head)
        self.body = bytearray()
        self.log: list[str] = []

    def take_head(self, *, is_last: bool) -> None:
        self.log.append("head, last" if is_last else "head")

    def take_data(self, data: bytes, start: int, end: int, is_last: int) -> None:
        self.body += data[start:end]
        if is_last:
            self.log.append("end")

    def lost(self) -> None:
        self.log.append("lost")

    def drained(self) -> None:
        self.log.append("drained")

    def overflowed(self) -> None:
        self.log.append("overflowed")
        self.connection.drop_queue(self)


class Application:
    """Makes streams that write down what they hear, and keeps them."""

    def __init__(self) -> None:
        self.rules = FieldRules()
        self.heard: dict[int, Heard] = {}
        self.heads = 0

    def read_head(self, fields: Fields) -> RequestHead:
        self.heads += 1
        head = RequestHead()
        try:
            values = self.rules.check(fields)
            head.content_length = content_length(values)
        except MalformedHead:
            head.is_malformed = True
        head.is_eager = head.is_malformed or head.content_length is not None
        return head

    def oversized_head(self) -> RequestHead:
        head = RequestHead()
        head.is_malformed = head.is_eager = True
        return head

    def open(self, connection: Inbound, stream_id: int, head: RequestHead) -> Heard:
        stream = self.heard[stream_id] = Heard(connection, stream_id, head)
        return stream


class Client:
    """The other end of a connection under test.

    Args:
        limits: of the connection.
        application: Any: of streams, whichever kind the test wants; None: those that write down.
        is_begun: the preface and settings are sent, and the answers are read.
    """

    def __init__(
        self, limits: Limits | None = None, application: Any = None, *, is_begun: bool = True
    ) -> None:
        self.application = Application() if application is None else application
        self.now_ns = SECOND_NS
        self.ready = 0
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.connection = Connection(
            self.application, self, Limits() if limits is None else limits, self.now_ns
        )
        self.connection.start()
        if is_begun:
            self.send(PREFACE + frame(SETTINGS, 0, 0))
            self.read()

    @property
    def heard(self) -> dict[int, Heard]:
        heard: dict[int, Heard] = self.application.heard
        return heard

    def output_ready(self) -> None:
        self.ready += 1

    def send(self, *data: bytes) -> None:
        self.connection.receive(b"".join(data), self.now_ns)

    def read(self) -> list[Frame]:
        """Take the output, as the driver does, until there is no more."""
        found = []
        while self.connection.out:
            found += split(b"".join(self.connection.out))
            self.connection.out.clear()
            self.connection.is_dirty = False
            if self.connection.ready:
                self.connection.flushed()
        return found

    def block(self, *extra: tuple[str, str], fields: Iterable[tuple[str, str]] = REQUEST) -> bytes:
        block: bytes = self.encoder.encode([*fields, *extra])
        return block

    def request(self, stream_id: int, *, is_last: bool = False) -> bytes:
        flags = END_HEADERS | (END_STREAM if is_last else 0)
        return frame(HEADERS, flags, stream_id, self.block())

    def fields(self, found: Frame) -> list[tuple[str, str]]:
        return [(str(name), str(value)) for name, value in self.decoder.decode(found.payload)]

    def goaway(self) -> Frame:
        """Return the GOAWAY that has ended the connection."""
        assert self.connection.is_ended
        last = self.read()[-1]
        assert last.kind == GOAWAY
        return last

    def assert_nothing_is_held(self) -> None:
        assert not self.connection.streams
        assert not self.connection.ready
        assert self.connection.held_bytes == 0
