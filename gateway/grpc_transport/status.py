"""Statuses and metadata as header fields: percent-encoded messages, base64 of -bin, the constants.

Knows the gRPC protocol's text, no connection. Everything sent is literal fields without indexing,
so the peer's compression table is never touched and the usual blocks are constants.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from typing import Final

from gateway.http2.hpack import literal

OK: Final = 0
CANCELLED: Final = 1
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

INTERNAL_TEXT: Final = "internal error: the server's log has the details"
"""All that a client hears of a handler's exception."""

BINARY_SUFFIX: Final = b"-bin"

_STATUS_200: Final = b"\x88"
# content-type by its index in the static table, which every decoder has.
_CONTENT_TYPE: Final = b"\x0f\x10\x10application/grpc"
ONLY_TRAILERS: Final = _STATUS_200 + _CONTENT_TYPE
"""What precedes the trailers of an answer that is nothing else."""
HEAD: Final = ONLY_TRAILERS + literal(b"grpc-accept-encoding", b"identity, deflate, gzip")
"""Head of an answer that is not compressed."""
OK_TRAILERS: Final = literal(b"grpc-status", b"0")

_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {0x25}


def trailers(code: int, text: str, extra: bytes) -> bytes:
    """Return the header block that ends a call; `extra` is encoded already."""
    if not code and not text:
        return OK_TRAILERS + extra
    block = literal(b"grpc-status", b"%d" % code)
    return block + literal(b"grpc-message", percent_encoded(text)) + extra


def percent_encoded(text: str) -> bytes:
    """Return a status message as it may stand in a header field."""
    data = text.encode("utf-8", "replace")
    if text.isascii() and text.isprintable() and "%" not in text:
        return data
    return b"".join([b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in data])


def http_status(status: bytes, *fields: tuple[bytes, bytes]) -> bytes:
    """Return the head of an answer to something that is no gRPC."""
    return literal(b":status", status) + b"".join([literal(*field) for field in fields])


def encode_metadata(pairs: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Return metadata as the header fields that `Call`'s methods take.

    Raises:
        ValueError: a name or a value that may not stand in a header field.
    """
    block = []
    for name, value in pairs:
        key = name.encode("ascii")
        if key.endswith(BINARY_SUFFIX):
            data = value if isinstance(value, bytes) else value.encode("latin-1")
            data = binascii.b2a_base64(data, newline=False).rstrip(b"=")
        else:
            data = value if isinstance(value, bytes) else value.encode("ascii")
            if data.strip() != data or not all(0x20 <= byte < 0x7F for byte in data):
                raise ValueError(f"the value of {name!r} may not stand in a header field")
        if not key or key != key.lower() or key.startswith(b":"):
            raise ValueError(f"{name!r} is no metadata key")
        block.append(literal(key, data))
    return b"".join(block)


def decode_binary(value: bytes) -> list[bytes]:
    """Return the values of a -bin field: base64, padded or not, joined by commas or not.

    Raises:
        ValueError: not base64.
    """
    parts = [part.strip() for part in value.split(b",")]
    return [_from_base64(part.rstrip(b"=")) for part in parts]


def _from_base64(part: bytes) -> bytes:
    return binascii.a2b_base64(part + b"=" * (-len(part) % 4), strict_mode=True)
