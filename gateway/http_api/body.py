"""Bodies of HTTP: size limits, gzip and deflate, how errors look, and how ASGI carries them.

Knows ASGI messages and compression; knows no tensors. The limit holds for what was received and
for what it decompresses to, so that a small body cannot become a large one.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import msgspec

from engines.tensors import Raw
from gateway.errors import MalformedRequest, PayloadTooLarge, StatusTable

logger = logging.getLogger(__name__)

# Any: ASGI messages are open dictionaries.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

COMPRESS_FROM_BYTES: Final = 1024
"""Smaller answers are not worth compressing."""
THREAD_FROM_BYTES: Final = 256 << 10
"""Larger bodies are compressed in a thread: 20 MB would hold the event loop for half a second."""
_GZIP_WBITS: Final = 31
_RAW_DEFLATE_WBITS: Final = -15


class ClientDisconnected(Exception):
    """The client went away before its body was complete."""


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header by lower-case name, one character per byte."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """Return the whole body, decompressed.

    Raises:
        PayloadTooLarge: over the limit, compressed or not; nothing more is read.
        MalformedRequest: the encoding is unknown or broken.
        ClientDisconnected: the body ended early.
    """
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdecimal() and int(declared) > limit_bytes:
        raise PayloadTooLarge(limit_bytes=limit_bytes)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    if message.get("more_body", False):
        body = await _read_on(receive, body, limit_bytes)
    if len(body) > limit_bytes:
        raise PayloadTooLarge(limit_bytes=limit_bytes)
    encoding = header(scope, b"content-encoding")
    if not encoding:
        return body
    if len(body) >= THREAD_FROM_BYTES // 8:  # what it inflates to is not known yet
        return bytes(await asyncio.to_thread(decompress, body, encoding, limit_bytes))
    return bytes(decompress(body, encoding, limit_bytes))


async def _read_on(receive: Receive, first: bytes, limit_bytes: int) -> bytes:
    parts, size, more = [first], len(first), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit_bytes:
            raise PayloadTooLarge(limit_bytes=limit_bytes)
        more = message.get("more_body", False)
    return b"".join(parts)


def decompress(body: Raw, encoding: str, limit_bytes: int) -> Raw:
    """Return a body without its Content-Encoding: gzip, deflate (zlib or raw) or identity.

    Raises:
        MalformedRequest: the encoding is unknown or the data are broken or cut.
        PayloadTooLarge: it decompresses to more than the limit.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise MalformedRequest(f"Content-Encoding {encoding!r} is neither gzip nor deflate")
    try:
        if name != "deflate":
            return _inflate(body, _GZIP_WBITS, limit_bytes)
        is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        return _inflate(body, zlib.MAX_WBITS if is_zlib else _RAW_DEFLATE_WBITS, limit_bytes)
    except zlib.error as exc:
        raise MalformedRequest(f"request body is no valid {name} data: {exc}") from None


def _inflate(body: Raw, wbits: int, limit_bytes: int) -> bytes:
    stream = zlib.decompressobj(wbits)
    out = stream.decompress(body, limit_bytes + 1)
    if len(out) > limit_bytes:
        raise PayloadTooLarge(limit_bytes=limit_bytes)
    if not stream.eof:
        raise zlib.error("the data end early")
    if stream.unused_data:
        raise zlib.error(f"{len(stream.unused_data)} bytes follow the data")
    return out


def accepted(text: str | None) -> str | None:
    """Return gzip or deflate if an Accept-Encoding takes it (q > 0), gzip preferred; else None."""
    if not text:
        return None
    taken = set()
    for part in text.lower().split(","):
        name, _, weight = part.strip().partition(";")
        if weight.strip().replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            taken.add(name.strip())
    return next((name for name in ("gzip", "deflate") if name in taken), None)


def compress(body: bytes, encoding: str) -> bytes:
    """Return a body under a Content-Encoding that `accepted` returned."""
    wbits = _GZIP_WBITS if encoding == "gzip" else zlib.MAX_WBITS
    stream = zlib.compressobj(1, zlib.DEFLATED, wbits)
    return stream.compress(body) + stream.flush()


async def send_answer(
    send: Send, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> None:
    """Send a whole answer."""
    lines = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def error_body(sentence: str) -> bytes:
    """Return the one form of every error: ``{"error": "..."}``."""
    return msgspec.json.encode({"error": sentence})


def error_answer(
    statuses: StatusTable, exc: BaseException
) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Return status, body and headers for an error; log a stack trace only for a bug."""
    status = statuses.of(exc)
    if not statuses.is_known(exc):
        logger.error("request failed", exc_info=exc)
    headers = [(b"content-type", b"application/json")]
    if status.retry_after_s:
        headers.append((b"retry-after", b"%d" % status.retry_after_s))
    return status.http, error_body(statuses.sentence(exc)), headers
