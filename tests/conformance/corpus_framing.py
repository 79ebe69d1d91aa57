"""Calls whose messages are particular: split, padded, compressed, cut off, too many, too large."""

from __future__ import annotations

import gzip
import zlib
from typing import Final

import numpy as np

from tests.conformance import frames
from tests.conformance.corpus_calls import ROW, infer_data
from tests.conformance.corpus_heads import GOOD, SLOW
from tests.conformance.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, frame
from tests.conformance.rpc import (
    BASE,
    Answered,
    Body,
    Head,
    Raw,
    Rest,
    Rpc,
    Step,
    message,
    with_fields,
)
from tests.support.served import LIMIT_BYTES
from tests.support.transports import Ask, Given

PLAIN: Final = infer_data(Ask(model="mlp", inputs=(ROW,), id="1"))
_CALM_S: Final = 1.0


def _call(name: str, *steps: Step, limit_s: float = _CALM_S) -> Rpc:
    is_alone = name.startswith("cancelled")  # in time, that is
    return Rpc(name=name, steps=(Head(), *steps), limit_s=limit_s, is_alone=is_alone)


def rpcs() -> list[Rpc]:
    """Return the calls."""
    return [*_split(), *_shaped(), *_broken(), *_compressed(), *_large(), *_cancelled()]


def _split() -> list[Rpc]:
    """Cut one call at every byte of its frames, and its message at every byte into two frames."""
    steps = (Head(), Body(GOOD, piece=len(GOOD)))
    whole = len(frames.headers(1, BASE)) + 9 + len(GOOD)
    return [
        *(Rpc(name=f"cut: byte {n}", steps=steps, cut=n) for n in range(1, whole)),
        *(
            _call(f"two frames: byte {n}", Body(GOOD[:n], end=False), Body(GOOD[n:]))
            for n in range(1, len(GOOD))
        ),
    ]


def _shaped() -> list[Rpc]:
    empty = frame(DATA, 0, 1)
    halves = GOOD[:20], GOOD[20:]
    padded = frame(DATA, PADDED | END_STREAM, 1, b"\x07" + GOOD + b"\0" * 7)
    only_padding = frame(DATA, PADDED, 1, b"\x03" + b"\0" * 3)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, frames.literals([("x-trailer", "1")]))
    unknown = frame(0x77, 0xFF, 1, b"what is this")
    return [
        _call("shape: a byte a frame", Body(GOOD, piece=1)),
        _call("shape: half closed by an empty frame", Body(GOOD, end=False), Body(b"")),
        _call("shape: half closed later", Body(GOOD, end=False), Rest(0.05), Body(b"")),
        _call("shape: never half closed", Body(GOOD, end=False)),
        _call("shape: half closed by trailers", Body(GOOD, end=False), Raw(trailers)),
        _call("shape: empty frames between", Raw(empty * 3), Body(GOOD, end=False), Body(b"")),
        _call("shape: padding", Raw(padded)),
        _call("shape: only padding first", Raw(only_padding), Body(GOOD)),
        _call("shape: an unknown frame first", Raw(unknown), Body(GOOD)),
        _call(
            "shape: a pause in the message", Body(halves[0], end=False), Rest(0.1), Body(halves[1])
        ),
        _call(
            "shape: a ping in the message", Body(halves[0], end=False), Raw(_PING), Body(halves[1])
        ),
        _call(
            "shape: settings in the message",
            Body(halves[0], end=False),
            Raw(_TABLE),
            Body(halves[1]),
        ),
        _call(
            "shape: priority in the message",
            Body(halves[0], end=False),
            Raw(_WEIGHT),
            Body(halves[1]),
        ),
        _call("shape: an empty message", Body(message(b""))),
        Rpc(
            name="shape: an empty message to a method that takes none",
            steps=(
                Head(with_fields(__path="/inference.GRPCInferenceService/ServerLive")),
                Body(message(b"")),
            ),
        ),
    ]


_PING: Final = frame(frames.PING, 0, 0, b"12345678")
_TABLE: Final = frames.settings([(frames.HEADER_TABLE_SIZE, 0)])
_WEIGHT: Final = frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\x10")


def _broken() -> list[Rpc]:
    endless = b"\0\xff\xff\xff\xff"
    return [
        Rpc(name="broken: no message", steps=(Head(end=True),), limit_s=_CALM_S),
        _call("broken: no message, an empty frame", Body(b"")),
        *(_call(f"broken: {n} bytes of the prefix", Body(GOOD[:n])) for n in range(1, 5)),
        _call("broken: only the prefix", Body(GOOD[:5])),
        _call("broken: the message cut off", Body(GOOD[:-1])),
        _call("broken: the message cut in half", Body(GOOD[: len(GOOD) // 2])),
        _call("broken: two messages", Body(GOOD + GOOD)),
        _call("broken: two messages in two frames", Body(GOOD, end=False), Body(GOOD)),
        _call("broken: a second message later", Body(GOOD, end=False), Answered(), Body(GOOD)),
        _call("broken: a message and a part", Body(GOOD + GOOD[:9])),
        _call("broken: a message and a byte", Body(GOOD + b"\0")),
        *(
            _call(f"broken: flag {flag}", Body(message(PLAIN, flag)))
            for flag in (1, 2, 3, 128, 255)
        ),
        _call("broken: length over the limit", Body(b"\0" + (LIMIT_BYTES + 1).to_bytes(4, "big"))),
        _call("broken: length over the limit, open", Body(b"\0\x7f\xff\xff\xff", end=False)),
        _call("broken: the greatest length", Body(endless)),
        _call("broken: text for a message", Body(b"GET / HTTP/1.1\r\n\r\n")),
    ]


def _encoded(name: str, encoding: str | None, data: bytes, flag: int = 1) -> Rpc:
    head = Head(with_fields(grpc_encoding=encoding))
    return Rpc(name=name, steps=(head, Body(message(data, flag))), limit_s=_CALM_S)


def _compressed() -> list[Rpc]:
    zipped, deflated = gzip.compress(PLAIN, mtime=0), zlib.compress(PLAIN)
    raw_deflate = deflated[2:-4]
    two_members = gzip.compress(PLAIN[:10], mtime=0) + gzip.compress(PLAIN[10:], mtime=0)
    corrupt = zipped[:-8] + bytes([zipped[-8] ^ 1]) + zipped[-7:]
    bomb = gzip.compress(b"\0" * (LIMIT_BYTES + 1), mtime=0)
    cases: dict[str, tuple[str | None, bytes, int]] = {
        "gzip": ("gzip", zipped, 1),
        "deflate": ("deflate", deflated, 1),
        "gzip, not this message": ("gzip", PLAIN, 0),
        "deflate, not this message": ("deflate", PLAIN, 0),
        "identity, flag set": ("identity", PLAIN, 1),
        "no encoding, flag set": (None, zipped, 1),
        "snappy, flag set": ("snappy", zipped, 1),
        "gzip under deflate's name": ("deflate", zipped, 1),
        "deflate under gzip's name": ("gzip", deflated, 1),
        "raw deflate": ("deflate", raw_deflate, 1),
        "gzip of nothing": ("gzip", gzip.compress(b"", mtime=0), 1),
        "gzip, no bytes": ("gzip", b"", 1),
        "deflate, no bytes": ("deflate", b"", 1),
        "gzip, noise": ("gzip", b"this is noise", 1),
        "gzip, cut off": ("gzip", zipped[:-4], 1),
        "gzip, cut in half": ("gzip", zipped[: len(zipped) // 2], 1),
        "gzip, wrong sum": ("gzip", corrupt, 1),
        "gzip, more behind": ("gzip", zipped + b"more", 1),
        "gzip, two members": ("gzip", two_members, 1),
        "deflate, noise": ("deflate", b"this is noise", 1),
        "deflate, cut off": ("deflate", deflated[:-3], 1),
        "deflate, more behind": ("deflate", deflated + b"more", 1),
        "gzip, a bomb": ("gzip", bomb, 1),
        "gzip of a malformed message": ("gzip", gzip.compress(b"\xff", mtime=0), 1),
    }
    found = [_encoded(f"compressed: {what}", *case) for what, case in cases.items()]
    large = gzip.compress(_echo(1 << 20), 1, mtime=0)
    return [*found, _encoded("compressed: 1 MB", "gzip", large)]


def _echo(byte_count: int, model: str = "echo_fp32") -> bytes:
    data = np.arange(byte_count // 4, dtype="<f4").tobytes()
    shape = (1, byte_count // 4)
    given = Given(name="x", datatype="FP32", shape=shape, elements=[], raw=data)
    return infer_data(Ask(model=model, inputs=(given,)))


def _large() -> list[Rpc]:
    over = LIMIT_BYTES + 1 - len(_echo(0))
    small_window = ((frames.INITIAL_WINDOW_SIZE, 1_000),)
    small_frames = ((frames.MAX_FRAME_SIZE, 16_384),)
    one = message(_echo(1 << 20))
    return [
        *(
            _call(f"large: {n} KB", Body(message(_echo(n << 10))), limit_s=10)
            for n in (16, 64, 600)
        ),
        _call("large: 20 MB", Body(message(_echo(20 << 20))), limit_s=10),
        _call("large: over the limit", Body(message(_echo(over + 64))), limit_s=10),
        Rpc(
            name="large: small windows", steps=(Head(), Body(one)), offered=small_window, limit_s=10
        ),
        Rpc(
            name="large: small frames", steps=(Head(), Body(one)), offered=small_frames, limit_s=10
        ),
    ]


def _cancelled() -> list[Rpc]:
    codes = {"CANCEL": 8, "NO_ERROR": 0, "INTERNAL_ERROR": 2, "REFUSED_STREAM": 7, "unknown": 99}
    found = [
        _call(f"cancelled: {name}", Body(SLOW), Rest(0.05), Raw(frames.reset(1, code)), limit_s=0.5)
        for name, code in codes.items()
    ]
    return [
        *found,
        _call("cancelled: at once", Body(SLOW), Raw(frames.reset(1)), limit_s=0.5),
        _call("cancelled: before the message", Raw(frames.reset(1)), limit_s=0.2),
        _call(
            "cancelled: in the message",
            Body(GOOD[:9], end=False),
            Raw(frames.reset(1)),
            limit_s=0.2,
        ),
        _call("cancelled: after the answer", Body(GOOD), Answered(5), Raw(frames.reset(1))),
    ]


def accepting(accepted: str) -> list[Rpc]:
    """Return calls that say which compression of answers they take."""
    head = Head(with_fields(grpc_accept_encoding=accepted or None))
    bad = message(b"\xff")
    return [
        Rpc(name=f"answer: small, accepts {accepted!r}", steps=(head, Body(GOOD))),
        Rpc(
            name=f"answer: large, accepts {accepted!r}", steps=(head, Body(message(_echo(1 << 18))))
        ),
        Rpc(name=f"answer: an error, accepts {accepted!r}", steps=(head, Body(bad))),
    ]
