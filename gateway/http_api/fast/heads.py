"""Heads of HTTP/1 requests: the bytes up to the blank line, and what they say.

Knows no sockets, no bodies and no tensors. Rules:
- llhttp (httptools) judges every head that was not seen before, in a parser of its own that is fed
  this one head and nothing else; what it refuses is refused.
- A head is a function of its bytes, so one that was seen before is remembered by them. Clients
  repeat themselves: most requests cost one look-up, and no parser.
- Framing is ours, so it must not be ambiguous: Content-Length or `chunked` or nothing. llhttp
  refuses both together and repeated ones; every other transfer coding is refused here.
- An upgrade that is asked for is ignored, as RFC 9110 allows.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

import httptools

from gateway.http_api import body as bodies
from gateway.http_api.codec import HEADER_LENGTH
from gateway.memo import Memo

TIMEOUT_HEADER: Final = "x-sluice-timeout-ms"
"""Whole milliseconds that the caller is willing to wait."""

_REMEMBERED_HEADS: Final = 512
_REMEMBERED_PATHS: Final = 1_024
_REMEMBERED_BYTES: Final = 4_096
"""Longer heads are read anew each time: what is remembered is bounded in bytes as well."""
# As Starlette's router writes them, the longer one first; names are what is left between slashes
# after percent-decoding.
_INFER_PATHS: Final = (
    re.compile("^/v2/models/(?P<name>[^/]+)/versions/(?P<version>[^/]+)/infer$"),
    re.compile("^/v2/models/(?P<name>[^/]+)/infer$"),
)

Target = tuple[str, str]
"""Name and version of an infer path; the version may be empty."""


class BadHead(Exception):
    """These bytes are no head of an HTTP/1 request."""


class Head:
    """What one head says. Shared by all requests with the same bytes: never changed."""

    __slots__ = (
        "_fields",
        "accepted",
        "encoding",
        "expects_continue",
        "http_version",
        "is_chunked",
        "is_keep_alive",
        "json_length",
        "length",
        "lines",
        "method",
        "target",
        "timeout",
        "url",
    )

    def __init__(self, seen: _Seen, target: Target | None) -> None:
        self.method = seen.method
        self.url = seen.url
        self.http_version = seen.http_version
        self.lines = seen.lines
        """Header lines as they came, names in lower case."""
        self.target = target
        """Name and version where this is an infer call, else None."""
        # Of repeated headers the first one counts.
        self._fields = fields = dict(reversed(seen.lines))
        self.length = int(fields.get(b"content-length", 0))
        """Content-Length; 0 without one."""
        self.is_chunked = b"transfer-encoding" in fields and _is_chunked(seen)
        self.is_keep_alive = seen.is_keep_alive and seen.http_version != "1.0"
        self.expects_continue = fields.get(b"expect", b"").lower() == b"100-continue"
        self.encoding = self.header("content-encoding")
        self.accepted = bodies.accepted(self.header("accept-encoding"))
        """The content coding that the answer may have: gzip, deflate or None."""
        self.json_length = self.header(HEADER_LENGTH)
        self.timeout = self.header(TIMEOUT_HEADER)

    def header(self, name: str) -> str | None:
        """Return a header by lower-case name, one character per byte."""
        value = self._fields.get(name.encode())
        return None if value is None else value.decode("latin-1")


def _is_chunked(seen: _Seen) -> bool:
    codings = [value.strip().lower() for name, value in seen.lines if name == b"transfer-encoding"]
    if codings != [b"chunked"]:
        raise BadHead("a transfer coding other than chunked")
    if seen.http_version != "1.1":
        raise BadHead("a transfer coding before HTTP/1.1")
    return True


class _Seen:
    """What llhttp reports of one head."""

    def __init__(self) -> None:
        self.url = b""
        self.method = ""
        self.http_version = ""
        self.is_keep_alive = False
        self.lines: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        self.has_more = False
        self._parser = httptools.HttpRequestParser(self)

    def read(self, block: bytes) -> None:
        """Read one head; raises BadHead."""
        try:
            self._parser.feed_data(block)
        except httptools.HttpParserUpgrade:
            pass  # ignored: the request is served as what it is besides
        except httptools.HttpParserError as exc:
            raise BadHead(str(exc)) from None
        finally:
            del self._parser  # it holds our methods: without this, a cycle
        if not self.is_complete or self.has_more:
            raise BadHead("no head, or more than one")

    def on_url(self, url: bytes) -> None:
        """Take the request's target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one line."""
        self.lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take what the parser forgets once the message is over."""
        self.has_more = self.is_complete
        self.is_complete = True
        self.method = self._parser.get_method().decode("ascii")
        self.http_version = self._parser.get_http_version()
        self.is_keep_alive = self._parser.should_keep_alive()

    def on_body(self, _: bytes) -> None:
        """Learn that llhttp saw the end of the head before its last byte."""
        self.has_more = True


class Heads:
    """Reads heads, and remembers them. One per listener."""

    def __init__(self) -> None:
        self._targets: Memo[bytes, Target | tuple[()]] = Memo(_REMEMBERED_PATHS)
        self.known: Memo[bytes, Head] = Memo(_REMEMBERED_HEADS)
        """By their bytes: look here first."""

    def read(self, block: bytes) -> Head:
        """Return what a head says that is not known yet; raises BadHead."""
        seen = _Seen()
        seen.read(block)
        target = self._target(seen.url) if seen.method == "POST" else None
        head = Head(seen, target)
        if len(block) <= _REMEMBERED_BYTES:
            self.known.put(block, head)
        return head

    def _target(self, url: bytes) -> Target | None:
        found = self._targets.get(url)
        if found is None:
            found = match(url) or ()
            if len(url) <= _REMEMBERED_BYTES:
                self._targets.put(url, found)
        return found or None


def match(url: bytes) -> Target | None:
    """Return the name and version of an infer path, as the router would find them; or None.

    Raises:
        BadHead: the target of the request is no URL.
    """
    path = path_of(url)
    for pattern in _INFER_PATHS:
        found = pattern.match(path)
        if found:
            return found["name"], found.groupdict().get("version", "")
    return None


def path_of(url: bytes) -> str:
    """Return the percent-decoded path of a request's target; raises BadHead."""
    try:
        path: bytes = httptools.parse_url(url).path
        return unquote(path.decode("ascii"))
    except (httptools.HttpParserError, UnicodeDecodeError, AttributeError, TypeError):
        raise BadHead("the target of the request is no URL") from None
