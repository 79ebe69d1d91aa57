"""Message compression: gzip and deflate, inflated to a bound.

Knows bytes. "deflate" is what gRPC and HTTP call so: the zlib format. Texts are grpcio's.
"""

from __future__ import annotations

import zlib
from typing import Final

from gateway.grpc_transport import status

CODINGS: Final = {b"gzip": 31, b"deflate": 15}
"""Name to zlib's window bits."""
MIN_BYTES: Final = 32
"""A shorter message never gets smaller."""

TOO_MUCH: Final = (status.RESOURCE_EXHAUSTED, "too many bytes are held for this connection")
"""Code and text where the limit of a connection's bytes is reached."""

TOLD_BYTES: Final = 512
"""How much too large a message is, is said up to about here: beyond, it is not inflated."""


class MessageRefused(Exception):
    """A message that cannot be taken; it ends its call with this status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def inflate(data: bytes | bytearray, encoding: bytes, limit_bytes: int) -> bytes:
    """Return a compressed message as it was; hardly more than the limit is ever made.

    Raises:
        MessageRefused: broken, cut off, followed by something, or too large.
    """
    if not data:
        return b""
    bits = CODINGS.get(encoding)
    if bits is None:
        raise MessageRefused(status.INTERNAL, "Compression bit set but no encoding configured")
    inflater = zlib.decompressobj(bits)
    try:
        message = inflater.decompress(data, limit_bytes + TOLD_BYTES + 1)
    except zlib.error:
        raise _failed("zlib error") from None
    if len(message) > limit_bytes:
        text = f"SERVER: Received message larger than max ({len(message)} vs. {limit_bytes})"
        if len(message) > limit_bytes + TOLD_BYTES:
            text = "Decompressed message larger than max"
        raise MessageRefused(status.RESOURCE_EXHAUSTED, text)
    if not inflater.eof:
        raise _failed("data error")
    if inflater.unused_data:
        raise _failed("not all input consumed")
    return message


def deflate(message: bytes, coding: str) -> bytes | None:
    """Return a message compressed; None if that does not make it smaller."""
    if len(message) < MIN_BYTES:
        return None
    deflater = zlib.compressobj(wbits=CODINGS[coding.encode()])
    data = deflater.compress(message) + deflater.flush()
    return data if len(data) < len(message) else None


def _failed(why: str) -> MessageRefused:
    return MessageRefused(status.INTERNAL, f"Decompression failed due to {why}")
