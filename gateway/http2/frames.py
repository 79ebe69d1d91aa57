"""The frames of HTTP/2 as numbers: kinds, flags, error codes, packers, and the rules of each kind.

RFC 9113, sections 4, 6 and 7. Knows no connection: RULES is the data by which `connection` refuses
a frame before it looks into it, and prices a frame that does no work.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
MAX_STREAM_ID: Final = 0x7FFF_FFFF
MAX_WINDOW: Final = 0x7FFF_FFFF
DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_BYTES: Final = 16_384
MAX_FRAME_BYTES: Final = 0xFF_FFFF

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20
WHOLE_HEAD: Final = END_HEADERS | END_STREAM
"""Flags of a HEADERS frame that is a stream's whole message part: no CONTINUATION, no body."""

SETTING_ENABLE_PUSH: Final = 2
SETTING_MAX_STREAMS: Final = 3
SETTING_INITIAL_WINDOW: Final = 4
SETTING_MAX_FRAME: Final = 5
SETTING_MAX_HEADER_LIST: Final = 6


class ErrorCode(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The peer did what ends the connection; never leaves `Connection.receive`."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Rule(NamedTuple):
    """What a frame of one kind must be like."""

    shortest: int
    longest: int
    """Bytes of payload. 0: as long as a header block may be; -1: as DATA frames may be."""
    on_stream: bool | None
    """True: only on a stream; False: only on the connection; None: either."""
    cost: int
    """Tokens of `Limits.control_tokens` that it takes, as it does no work."""


RULES: Final[dict[int, Rule]] = {
    DATA: Rule(0, -1, True, 0),
    HEADERS: Rule(0, 0, True, 0),
    PRIORITY: Rule(0, 64, True, 2),
    RST_STREAM: Rule(4, 4, True, 2),
    SETTINGS: Rule(0, 6 * 64, False, 20),
    PUSH_PROMISE: Rule(0, 0, True, 0),
    PING: Rule(8, 8, False, 2),
    GOAWAY: Rule(8, DEFAULT_FRAME_BYTES, False, 20),
    WINDOW_UPDATE: Rule(4, 4, None, 1),
    CONTINUATION: Rule(0, 0, True, 20),
}
UNKNOWN: Final = Rule(0, -1, None, 2)
"""A kind that this side does not know is skipped."""
EMPTY_DATA_COST: Final = 2
"""A DATA frame that neither carries nor ends anything."""
CANCEL_COST: Final = 8
"""On top of RST_STREAM's, if it ends a call that is not answered: the work was for nothing."""
LATE_COST: Final = 2
"""A frame for a stream that has ended."""
CALL_CREDIT: Final = 16
"""Tokens that come back with each call that was not cancelled."""
PART_CREDIT: Final = 4
"""Tokens that come back with each message of an answer: some clients (gRPC's C core) grant window,
to the stream and to the connection, for every message that they read."""
BYTES_PER_TOKEN: Final = 4_096
"""A token comes back for so many bytes of DATA, either way."""

unpack_head: Final = struct.Struct(">HBBBI").unpack_from
"""High and low part of the length, kind, flags, stream."""
unpack_u32: Final = struct.Struct(">I").unpack_from
_pack_head: Final = struct.Struct(">HBBBI").pack
_pack_settings: Final = struct.Struct(">HI").pack


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    size = len(payload)
    return _pack_head(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def frame_head(size: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Return the nine bytes before a payload of this size."""
    return _pack_head(size >> 8, size & 0xFF, kind, flags, stream_id)


def settings(values: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_pack_settings(*item) for item in values.items()))


def window_update(stream_id: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, size.to_bytes(4, "big"))


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def goaway(last_id: int, code: int, text: str = "") -> bytes:
    """Return a GOAWAY frame; the text is for the peer's log."""
    payload = last_id.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode()
    return frame(GOAWAY, 0, 0, payload)
