"""What goes back: status line, headers and body as bytes, in the order that uvicorn writes them.

Knows HTTP only. The date is made once a second, by the listener's tick; headers that say who served
are the same for most answers of a route, and remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from gateway.http_api.codec import BINARY_TYPE, HEADER_LENGTH, JSON_TYPE
from gateway.memo import Memo
from gateway.request import REQUEST_ID, ServedBy, Serving

JOIN_TO_BYTES: Final = 16 << 10
"""Larger bodies are not copied behind their head: the transport gets both."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE: Final = b"connection: close\r\n"
_REMEMBERED_SERVINGS: Final = 1_024
_BINARY_LINES: Final = b"content-type: %b\r\n%b: %%d\r\n" % (
    BINARY_TYPE.encode(),
    HEADER_LENGTH.encode(),
)
_JSON_LINE: Final = b"content-type: %b\r\n" % JSON_TYPE.encode()

Lines = Iterable[tuple[bytes, bytes]]
Output = bytes | tuple[bytes, bytes]
"""One answer as it goes to the transport: in one piece, or head and body."""


def join(lines: Lines) -> bytes:
    """Return header lines as they are sent."""
    return b"".join([b"%b: %b\r\n" % line for line in lines])


def _status_line(code: int) -> bytes:
    try:
        phrase = HTTPStatus(code).phrase
    except ValueError:  # 499 is nobody's
        phrase = ""
    return b"HTTP/1.1 %d %b\r\n" % (code, phrase.encode())


class Answers:
    """Writes answers. One per listener."""

    def __init__(self) -> None:
        self._servings: Memo[Serving, bytes] = Memo(_REMEMBERED_SERVINGS)
        self.refresh()

    def refresh(self) -> None:
        """Take the time of day anew."""
        self.date = formatdate(usegmt=True).encode()
        start = b"HTTP/1.1 200 OK\r\ndate: %b\r\n" % self.date
        self._json = start + _JSON_LINE
        self._binary = start.replace(b"%", b"%%") + _BINARY_LINES

    def served_by(self, served_by: ServedBy) -> bytes:
        """Return the lines that say who served: only the id differs from one to the next."""
        serving = served_by.serving
        lines = self._servings.recent.get(serving) or self._servings.get(serving)
        if lines is None:
            text = join((name.encode(), value.encode()) for name, value in serving.lines)
            lines = b"%b: %%b\r\n%b" % (REQUEST_ID.encode(), text.replace(b"%", b"%%"))
            self._servings.put(serving, lines)
        return lines % served_by.request_id.encode()

    def good(self, body: bytes, json_bytes: int | None, lines: bytes, *, is_last: bool) -> Output:
        """Return the answer with a response; `json_bytes` as codec.encode returns it."""
        start = self._json if json_bytes is None else self._binary % json_bytes
        return _assemble(start, lines, body, is_last=is_last)

    def other(self, status: int, body: bytes, lines: bytes, *, is_last: bool) -> Output:
        """Return any other answer; all of its headers but date and length are in the lines."""
        start = b"%bdate: %b\r\n" % (_status_line(status), self.date)
        return _assemble(start, lines, body, is_last=is_last)


def _assemble(start: bytes, lines: bytes, body: bytes, *, is_last: bool) -> Output:
    close = CLOSE if is_last else b""
    if len(body) <= JOIN_TO_BYTES:
        return b"%b%bcontent-length: %d\r\n%b\r\n%b" % (start, lines, len(body), close, body)
    return b"%b%bcontent-length: %d\r\n%b\r\n" % (start, lines, len(body), close), body
