"""HTTP/2 traffic of clients, good and bad, as bytes: for the long run and as seeds.

Speaks the wire format directly, so it can also say what no client would. A connection is a list of
frames, so that a caller can cut, repeat and mutate between them as well as within.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from random import Random
from typing import Final

from hpack import Encoder

from gateway.http2.hpack import literals

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION: Final = 9
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

Fields = list[tuple[bytes, bytes]]

CALL: Final = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/fuzz.Echo/Unary"),
    (b":authority", b"127.0.0.1:8001"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)
UNARY: Final = tuple(b"/fuzz.Echo/" + name for name in (b"Unary", b"Unary", b"Late", b"Broken"))
STREAMING: Final = (b"/fuzz.Echo/Stream", b"/fuzz.Echo/Stream", b"/fuzz.Echo/Paused")
_PATHS: Final = (*UNARY, *STREAMING, b"/fuzz.Echo/Nothing", b"/", b"")
_MORE_FIELDS: Final = (
    (b"grpc-timeout", b"1S"),
    (b"grpc-timeout", b"0n"),
    (b"grpc-timeout", b"99999999H"),
    (b"grpc-timeout", b"x"),
    (b"grpc-encoding", b"gzip"),
    (b"grpc-encoding", b"deflate"),
    (b"grpc-encoding", b"br"),
    (b"content-length", b"5"),
    (b"content-length", b"18446744073709551616"),
    (b"content-type", b"text/html"),
    (b"connection", b"close"),
    (b"transfer-encoding", b"chunked"),
    (b"te", b"gzip"),
    (b"key-bin", b"AAEC"),
    (b"key-bin", b"*"),
    (b"Upper", b"case"),
    (b":path", b"/twice"),
    (b":unknown", b"x"),
    (b"x", b"a\r\nb"),
    (b"x", b"v" * 3_000),
    (b"", b""),
)
_TYPES: Final = (*range(10), 10, 0xFF)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join([struct.pack(">HI", *pair) for pair in pairs]))


def head(
    stream: int, fields: Iterable[tuple[bytes, bytes]] = CALL, flags: int = END_HEADERS
) -> bytes:
    """Return a HEADERS frame."""
    return frame(HEADERS, flags, stream, literals(fields))


def message(body: bytes, flag: int = 0) -> bytes:
    """Return a gRPC message behind its prefix."""
    return struct.pack(">BI", flag, len(body)) + body


def data(stream: int, payload: bytes, flags: int = END_STREAM) -> bytes:
    """Return a DATA frame."""
    return frame(DATA, flags, stream, payload)


def call(stream: int, body: bytes = b"hello") -> list[bytes]:
    """Return a unary call."""
    return [head(stream), data(stream, message(body))]


class Client:
    """A client that does nothing wrong; its frames, and what it asked for."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._encoder = Encoder()
        self._is_plain = random.random() < 0.5
        self.frames = [PREFACE, settings((4, random.choice((65_535, 1 << 20))), (3, 0))]
        self.calls: dict[int, Fields] = {}
        """Header lists by stream."""

    def call(self, paths: tuple[bytes, ...] = UNARY, *more: tuple[bytes, bytes]) -> bytes:
        """Return the header block of the next call."""
        path = self._random.choice(paths)
        fields = [*CALL[:2], (b":path", path), *CALL[3:], *more]
        fields.append((b"x", b"%d" % self._random.randrange(3)))
        self.calls[2 * len(self.calls) + 1] = fields
        return self._block(fields)

    @property
    def stream(self) -> int:
        """Return the number of the last call."""
        return 2 * len(self.calls) - 1

    def _block(self, fields: Fields) -> bytes:
        """Return a header block: of literals, or of all that an encoder does."""
        if self._is_plain:
            return literals(fields)
        rare = [(name, value, name != b"x") for name, value in fields]
        return self._encoder.encode(rare, huffman=self._random.random() < 0.5)

    def _put(self, kind: int, flags: int, payload: bytes) -> None:
        self.frames.append(frame(kind, flags, self.stream, payload))

    def _body(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 1, 5, 40, 900, 20_000)))

    def whole(self) -> None:
        """Make an ordinary call."""
        self._put(HEADERS, END_HEADERS, self.call())
        body = message(self._body())
        for at in range(0, len(body), 16_384):
            is_last = at + 16_384 >= len(body)
            self._put(DATA, END_STREAM if is_last else 0, body[at : at + 16_384])

    def in_pieces(self) -> None:
        """Send messages as they come; end with nothing, or with trailers."""
        random = self._random
        self._put(HEADERS, END_HEADERS, self.call(STREAMING))
        body = b"".join([message(self._body()[:900]) for _ in range(random.randrange(4))])
        step = random.randrange(1, 300)
        for at in range(0, len(body), step):
            self._put(DATA, 0, body[at : at + step])
        if random.random() < 0.5:
            self._put(DATA, END_STREAM, b"")
        else:
            trailers = self._block([(b"x", b"%d" % random.randrange(3))])
            self._put(HEADERS, END_HEADERS | END_STREAM, trailers)

    def continued(self) -> None:
        """Send the head in several frames."""
        random = self._random
        block = self.call(UNARY, (b"y", b"v" * random.randrange(500)))
        cuts = sorted(random.randrange(len(block)) for _ in range(random.randrange(1, 4)))
        parts = [block[a:b] for a, b in zip([0, *cuts], [*cuts, len(block)], strict=True)]
        self._put(HEADERS, 0, parts[0])
        for part in parts[1:-1]:
            self._put(CONTINUATION, 0, part)
        self._put(CONTINUATION, END_HEADERS, parts[-1])
        self._put(DATA, END_STREAM, message(b"x"))

    def padded(self) -> None:
        """Pad what may be padded."""
        pad = self._random.randrange(256)
        block = b"%c" % pad + struct.pack(">IB", 0, 9) + self.call() + bytes(pad)
        self._put(HEADERS, END_HEADERS | PADDED | PRIORITISED, block)
        body = self._body()[:3_000]  # no more: who answers before the padding came has to reset
        self._put(DATA, END_STREAM | PADDED, b"%c" % pad + message(body) + bytes(pad))

    def with_length(self) -> None:
        """Announce the body's length."""
        body = message(self._body()[:9_000])
        cut = self._random.randrange(len(body))
        length = (b"content-length", b"%d" % len(body))
        self._put(HEADERS, END_HEADERS, self.call(UNARY, length))
        self._put(DATA, 0, body[:cut])
        self._put(DATA, END_STREAM, body[cut:])

    def without_body(self) -> None:
        """Send nothing but a head."""
        self._put(HEADERS, END_HEADERS | END_STREAM, self.call())

    def given_up(self) -> None:
        """Cancel a call."""
        self._put(HEADERS, END_HEADERS, self.call())
        self._put(DATA, 0, message(b"x" * 50)[: self._random.randrange(55)])
        self._put(RST_STREAM, 0, struct.pack(">I", 8))

    def between(self) -> None:
        """Send what is about the connection."""
        random = self._random
        if random.random() < 0.3:
            self.frames.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 5_000)))
        if random.random() < 0.3:
            self.frames.append(frame(PING, 0, 0, random.randbytes(8)))
        if random.random() < 0.2:
            self.frames.append(frame(SETTINGS, ACK, 0))


_WAYS: Final[tuple[Callable[[Client], None], ...]] = (
    Client.whole,
    Client.in_pieces,
    Client.continued,
    Client.padded,
    Client.with_length,
    Client.without_body,
    Client.given_up,
)


def good_connection(random: Random) -> Client:
    """Return a connection on which nothing is wrong."""
    client = Client(random)
    for _ in range(random.randrange(1, 7)):
        random.choice(_WAYS)(client)
        client.between()
    return client


def odd_frame(random: Random, stream: int) -> bytes:
    """Return a frame that may be wrong in any way, though more often in few."""
    kind = random.choice(_TYPES)
    flags = random.choice((0, 1, 4, 5, 8, 0x20, random.randrange(256)))
    where = random.choice((0, stream, stream, stream, 1, stream + 1, stream + 2, 1 << 31 | 1))
    payload = _payload(random, kind)
    made = frame(kind, flags, where, payload)
    if random.random() < 0.03:
        wrong = random.choice((0, len(payload) + 1, 16_385, 0xFFFFFF))
        made = wrong.to_bytes(3, "big") + made[3:]
    return made


def _payload(random: Random, kind: int) -> bytes:
    if random.random() < 0.1:
        return random.randbytes(random.choice((0, 1, 3, 4, 5, 6, 8, 9, 300)))
    number = random.choice((0, 1, 2, 5, 8, 13, 1 << 16, (1 << 31) - 1, (1 << 32) - 1))
    if kind in (RST_STREAM, WINDOW_UPDATE):
        return struct.pack(">I", number)
    if kind == SETTINGS:
        return b"".join(
            [
                struct.pack(">HI", random.randrange(9), random.choice((0, 1, 2, number)))
                for _ in range(random.randrange(4))
            ]
        )
    if kind in (HEADERS, CONTINUATION, PUSH_PROMISE):
        return literals(odd_fields(random))
    if kind == DATA:
        return message(random.randbytes(random.randrange(30)), random.choice((0, 0, 0, 1, 2)))
    return random.randbytes({PRIORITY: 5, PING: 8, GOAWAY: 8}.get(kind, 4))


def odd_fields(random: Random) -> Fields:
    """Return a header list with something missing, added, repeated or out of order."""
    fields = list(CALL)
    fields[2] = (b":path", random.choice(_PATHS))
    for _ in range(random.randrange(3)):
        fields.insert(random.randrange(len(fields) + 1), random.choice(_MORE_FIELDS))
    if random.random() < 0.2:
        del fields[random.randrange(len(fields))]
    return fields


def odd_connection(random: Random) -> list[bytes]:
    """Return a connection as a hostile client, or a broken one, might have it."""
    frames = good_connection(random).frames
    if random.random() < 0.6:
        for _ in range(random.randrange(1, 8)):
            stream = random.choice((1, 3, 5, 7, 9, 11))
            frames.insert(random.randrange(1, len(frames) + 1), odd_frame(random, stream))
    kind = random.random()
    if kind < 0.2:
        del frames[random.randrange(len(frames))]
    elif kind < 0.4:
        at = random.randrange(1, len(frames))
        frames[at:at] = [random.choice(frames)] * random.choice((1, 2, 50, 120))
    elif kind < 0.5:
        at = random.randrange(len(frames))
        frames[at] = _flipped(random, frames[at])
    elif kind < 0.55:
        random.shuffle(frames)
    return frames


def _flipped(random: Random, piece: bytes) -> bytes:
    changed = bytearray(piece)
    for _ in range(random.randrange(1, 5)):
        at = random.randrange(len(changed))
        changed[at] ^= 1 << random.randrange(8)
    return bytes(changed)


def split(random: Random, stream: bytes) -> list[bytes]:
    """Return bytes as a socket might give them."""
    if random.random() < 0.3:
        return [stream]
    if random.random() < 0.05:
        return [stream[at : at + 1] for at in range(min(len(stream), 2_000))] + [stream[2_000:]]
    cuts = sorted(random.randrange(len(stream) + 1) for _ in range(random.randrange(1, 12)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
