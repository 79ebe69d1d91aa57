"""HTTP/2 connection: what `http2_peer` says holds, whatever comes and however it is cut.

An input is one byte, then what a client sends. The byte seeds the cuts; if its highest bit is set,
the rest is a list of frames in a short form: kind, flags, stream, two bytes of length, payload. So
the fuzzer can change a payload without breaking the frame around it.
"""

from __future__ import annotations

from random import Random
from typing import Final

from gateway.http2 import frames as wire
from tests.fuzz.frames import PREFACE, frame, good_connection, odd_connection, settings, split
from tests.fuzz.http2_peer import compare, run

SHORT: Final = 0x80
WORDS: Final = (
    PREFACE,
    b"\x00\x00\x00\x01\x05",
    b"\x00\x00\x04\x03\x00\x00\x00\x00",
    b"\x00\x00\x04\x08\x00\x00\x00\x00",
    b"\x00\x00\x00\x04\x01\x00\x00\x00\x00",
    b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00",
    b"\x00\x04\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x01",
    b"\x83\x86\x84\xbe",
    b"\x40\x01x\x01y",
    b"\x3f\xe1\x1f",
    b"\x00\x0econtent-length\x015",
    b"\x09\x00\x01",
    b"\x09\x04\x01",
    b"/fuzz.Echo/Stream",
    b"/fuzz.Echo/Nothing",
)


def seeds() -> list[bytes]:
    """Return connections of the long run, in both forms."""
    random = Random(2)
    made = []
    for number in range(60):
        frames = good_connection(random).frames if number & 1 else odd_connection(random)
        if sum(map(len, frames)) > 6_000:
            continue
        made.append(bytes((number,)) + b"".join(frames))
        if frames[0] == PREFACE:
            made.append(bytes((number | SHORT,)) + b"".join(map(short, frames[1:])))
    return made


def short(piece: bytes) -> bytes:
    """Return a frame in the short form."""
    _, low, kind, flags, stream_id = wire.unpack_head(piece)
    payload = piece[wire.HEAD_BYTES :]
    return bytes((kind, flags, stream_id & 0xFF, low >> 8, low & 0xFF)) + payload


def stream_of(data: bytes) -> bytes:
    """Return what the client sends."""
    if not data[0] & SHORT:
        return data[1:]
    parts = [PREFACE, settings()]
    at = 1
    while len(data) - at >= 5:
        kind, flags, stream_id, high, low = data[at : at + 5]
        at += 5 + (high << 8 | low)
        parts.append(frame(kind, flags, stream_id, data[at - (high << 8 | low) : at]))
    return b"".join(parts)


def one(data: bytes) -> None:
    """Feed an input in one piece, and in many."""
    if not data:
        return
    choice = Random(data[0])
    stream = stream_of(data)
    whole = run([stream])
    cut = run(split(choice, stream), choice)
    compare(cut, whole)
