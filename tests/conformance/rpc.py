"""One RPC as data: the frames that a client sends, and the complete outcome that it sees.

An Rpc is a list of steps on stream 1 of a connection of its own. After it, whatever became of it, a
plain call on the same connection tells whether the connection has survived.

Masked is what differs between two runs of the same server (request ids; when exactly a deadline
found its request), and two things that no client is given by its library: the empty message that
grpcio sends before the status of an error (a head, an empty message and an error are the same as
the error alone), and an empty grpc-message (the same as none).
"""

from __future__ import annotations

import re
import struct
import time
import zlib
from dataclasses import dataclass
from typing import Final

from gateway.pb import inference_pb2 as pb
from tests.conformance import frames
from tests.conformance.frames import Closed, FieldList, RawConnection, Received

SERVICE: Final = "/inference.GRPCInferenceService/"
BASE: Final[FieldList] = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", SERVICE + "ModelInfer"),
    (":authority", "sluice"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "corpus"),
)
CUT_S: Final = 0.003
"""Between the two parts of what is cut: enough for the server to read the first one alone."""
_ID: Final = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_MASK: Final = b"x" * 36
_WHEN: Final = re.compile(rb"after [0-9.]+ ms while the request was (queued|executing)")
_PROBE: Final = 3


@dataclass(frozen=True, slots=True)
class Head:
    """Send HEADERS; a cut sends the rest of the block in a CONTINUATION."""

    fields: FieldList = BASE
    end: bool = False
    cut: int | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """Send bytes in DATA frames, within the windows; `piece` bounds the size of each."""

    data: bytes
    end: bool = True
    piece: int | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """Send bytes as they are."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Rest:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answered:
    """Wait until so many bytes of messages have come; 0: until the head has."""

    byte_count: int = 0


Step = Head | Body | Raw | Rest | Answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """A call, named for what is particular about it."""

    name: str
    steps: tuple[Step, ...]
    cut: int | None = None
    """All frames in one piece, cut here into two writes."""
    offered: tuple[tuple[int, int], ...] = ()
    """The client's SETTINGS."""
    limit_s: float = 5.0
    """No end within this time is an outcome too."""
    is_alone: bool = False
    """Its model makes whole batches fail, so that nobody else may be in the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that a client can see of a call."""

    status: str = ""
    """HTTP status."""
    head: FieldList = ()
    messages: tuple[tuple[int, bytes], ...] = ()
    """Compressed flag, and bytes after decompression."""
    rest: bytes = b""
    """Bytes that are no whole message."""
    trailers: FieldList = ()
    end: str = "open"
    """ended, or reset with a code, or still open at the limit."""
    connection: str = "lives"
    """lives, or closed with a code."""

    def fields(self) -> dict[str, object]:
        """Return the fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def message(data: bytes, flag: int = 0) -> bytes:
    """Return a gRPC message: flag, length, bytes."""
    return struct.pack(">BI", flag, len(data)) + data


def with_fields(**changes: str | None) -> FieldList:
    """Return the usual head with some fields changed (None: left out) or added.

    In names, two underscores stand for the colon and one for a dash.
    """
    found: dict[str, str | None] = dict(BASE)
    for key, value in changes.items():
        found[key.replace("__", ":").replace("_", "-")] = value
    return tuple((name, value) for name, value in found.items() if value is not None)


def play(address: str, rpc: Rpc) -> Outcome:
    """Play a call and return its outcome."""
    with RawConnection(address, offered=rpc.offered) as connection:
        connection.start()
        received = connection.on(1)
        try:
            if rpc.cut is None:
                for step in rpc.steps:
                    _take(connection, step)
            else:
                data = b"".join(_bytes(step) for step in rpc.steps)
                connection.send(data[: rpc.cut])
                time.sleep(CUT_S)
                connection.send(data[rpc.cut :])
        except Closed:
            connection.pump(0.5)
        connection.finish(1, rpc.limit_s)
        return _outcome(received, _life(connection))


def _take(connection: RawConnection, step: Step) -> None:
    match step:
        case Rest(seconds):
            connection.wait(lambda: False, seconds)
        case Answered(byte_count):
            received = connection.on(1)
            connection.wait(lambda: bool(received.heads) and len(received.data) >= byte_count)
        case Body(data, end, None):
            connection.send_data(1, data, end=end)
        case _:
            connection.send(_bytes(step))


def _bytes(step: Step) -> bytes:
    """Return the frames of a step that needs no windows."""
    match step:
        case Head(fields, end, None):
            return frames.headers(1, fields, end=end)
        case Head(fields, end, int(cut)):
            block = frames.literals(fields)
            flags = frames.END_STREAM if end else 0
            return frames.frame(frames.HEADERS, flags, 1, block[:cut]) + frames.frame(
                frames.CONTINUATION, frames.END_HEADERS, 1, block[cut:]
            )
        case Body(data, end, piece):
            size = piece or max(len(data), 1)
            pieces = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
            last = len(pieces) - 1
            return b"".join(
                frames.frame(frames.DATA, frames.END_STREAM if end and n == last else 0, 1, part)
                for n, part in enumerate(pieces)
            )
        case Raw(data):
            return data
        case _:
            raise TypeError(f"{step} has no bytes")


def _life(connection: RawConnection) -> str:
    """Return whether a plain call on the same connection is answered."""
    probe = dict(BASE) | {":path": SERVICE + "ServerLive"}
    try:
        connection.send(
            frames.headers(_PROBE, probe.items())
            + frames.frame(frames.DATA, frames.END_STREAM, _PROBE, message(b""))
        )
        if connection.finish(_PROBE, 5.0).is_ended:
            return "lives"
    except Closed:
        connection.pump(0.5)
    return f"closed with {[code for _, code, _ in connection.goaways]}"


def _outcome(received: Received, connection: str) -> Outcome:
    heads = [_masked(head) for head in received.heads]
    first = heads[0] if heads else ()
    encoding = dict(first).get("grpc-encoding", "")
    head = tuple(pair for pair in first if pair[0] != ":status")
    messages, rest = _messages(bytes(received.data), encoding)
    trailers = heads[1] if len(heads) > 1 else ()
    if any(name == "grpc-status" for name, _ in head):
        head, trailers = (), head
    if messages == ((0, b""),) and dict(trailers).get("grpc-status") not in (None, "0"):
        plain = ("content-type", "application/grpc")
        head, messages, trailers = (), (), tuple(sorted((plain, *trailers)))
    end = "open"
    if received.is_ended:
        end = "ended"
    elif received.reset_code is not None:
        end = f"reset with {received.reset_code}"
    return Outcome(
        status=dict(first).get(":status", ""),
        head=head,
        messages=messages,
        rest=rest,
        trailers=trailers,
        end=end,
        connection=connection,
    )


def _masked(fields: FieldList) -> FieldList:
    def mask(value: str) -> str:
        return _mask(value.encode("latin-1")).decode("latin-1")

    empty = ("grpc-message", "")
    return tuple(sorted((name, mask(value)) for name, value in fields if (name, value) != empty))


def _messages(data: bytes, encoding: str) -> tuple[tuple[tuple[int, bytes], ...], bytes]:
    found, position = [], 0
    while len(data) - position >= 5:
        flag, length = struct.unpack_from(">BI", data, position)
        if len(data) - position - 5 < length:
            break
        body = data[position + 5 : position + 5 + length]
        if flag == 1:
            body = zlib.decompress(body, {"gzip": 31, "deflate": 15}[encoding])
        found.append((flag, _canonical(body)))
        position += 5 + length
    return tuple(found), data[position:]


def _canonical(body: bytes) -> bytes:
    """Return a message of a stream with its parameters in one order; others as they are.

    Protobuf writes a map in an order that differs from process to process.
    """
    if b"triton_final_response" not in body:
        return _mask(body)
    parsed = pb.ModelStreamInferResponse.FromString(_ID.sub(_MASK, body))
    data: bytes = parsed.SerializeToString(deterministic=True)
    return data


def _mask(data: bytes) -> bytes:
    return _WHEN.sub(b"after N ms", _ID.sub(_MASK, data))
