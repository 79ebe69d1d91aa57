"""What a request's header list means for gRPC: the method, the deadline, the codings, or a refusal.

Knows no connection and no call. A `CallHead` is made once per header block and shared by all calls
that bring the same bytes, so nothing here depends on a call, and nothing is changed after it was
made but the metadata, which few ask for and which are decoded then.

A refusal has grpcio's code and text wherever grpcio refuses, so that clients see one server
whatever the transport. A request that is no gRPC gets an HTTP status instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.grpc_transport import status
from gateway.grpc_transport.coding import CODINGS
from gateway.http2.fields import FieldRules, Fields, MalformedHead, RequestHead, content_length
from gateway.http2.hpack import literal

if TYPE_CHECKING:
    from gateway.grpc_transport.call import Call

Raw = bytes | bytearray | memoryview
"""A message as it arrived; large ones are not copied into bytes."""

Sink = Callable[[Raw | None], None]

MAX_TIMEOUT_NS: Final = 10 * 365 * 86_400 * 1_000_000_000
"""A longer deadline is taken for this one."""

_UNITS_NS: Final = {
    "H": 3_600_000_000_000,
    "M": 60_000_000_000,
    "S": 1_000_000_000,
    "m": 1_000_000,
    "u": 1_000,
    "n": 1,
}
_UNIT_NS: Final = {unit.encode(): ns for unit, ns in _UNITS_NS.items()}
_USUAL_TIMEOUT_BYTES: Final = 9
"""Eight digits and a unit, as the protocol has it; what else clients get away with takes longer."""
_match_timeout: Final = re.compile(r" *([0-9]{1,64}) *([HMSmun])").fullmatch
_SCHEMES: Final = frozenset((b"http", b"https"))
_RESERVED: Final = frozenset(
    (
        b"te",
        b"content-type",
        b"host",
        b"grpc-timeout",
        b"grpc-encoding",
        b"grpc-accept-encoding",
        b"grpc-trace-bin",
        b"grpc-tags-bin",
    )
)
"""Fields of the protocol itself, which grpcio does not show as metadata either."""

_NOT_POST: Final = status.http_status(b"405", (b"allow", b"POST"))
_NOT_GRPC: Final = status.http_status(b"415", (b"accept-post", b"application/grpc"))


class Method(NamedTuple):
    """What serves one method.

    A unary one is called with the call and its message, and must not block. A streaming one is
    called with the call when its head has arrived, and returns what takes the messages, and None
    when the client has no more.
    """

    start: Callable[[Call, Raw], None] | Callable[[Call], Sink]
    is_streaming: bool


class CallHead(RequestHead):
    """One decoded header block."""

    __slots__ = (
        "_fields",
        "_metadata",
        "coding",
        "encoding",
        "http_refusal",
        "is_streaming",
        "max_message_bytes",
        "path",
        "refusal",
        "response_head",
        "start",
        "timeout_ns",
    )

    def __init__(self, fields: Fields, max_message_bytes: int) -> None:
        super().__init__()
        self._fields = fields
        self._metadata: tuple[tuple[str, str | bytes], ...] | None = None
        self.path = b""
        self.start: Callable[..., Sink | None] = _nothing  # Callable[...]: both forms of a method
        self.is_streaming = False
        self.timeout_ns: int | None = None
        self.encoding = b"identity"
        """Of the request's messages that say that they are compressed."""
        self.coding = ""
        """Of the answer's messages; empty: none."""
        self.response_head = status.HEAD
        self.refusal: tuple[int, str] | None = None
        self.http_refusal: bytes | None = None
        self.max_message_bytes = max_message_bytes

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The client's metadata in their order; values of -bin names are decoded bytes."""
        if self._metadata is None:
            self._metadata = tuple(_metadata(self._fields))
        return self._metadata

    def header(self, name: str) -> str | None:
        """Return the first value under a lower-case name, one character per byte."""
        for key, value in self.metadata:
            if key == name:
                return value if isinstance(value, str) else value.decode("latin-1")
        return None


class HeadReader:
    """Makes the heads of one server.

    Args:
        methods: by path.
        max_message_bytes: largest message, either form.
        compression: of answers, if the client takes it: none, gzip or deflate.
    """

    def __init__(
        self, methods: Mapping[str, Method], max_message_bytes: int, compression: str
    ) -> None:
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._max_message_bytes = max_message_bytes
        self._coding = "" if compression == "none" else compression
        self._compressed_head = status.HEAD + literal(b"grpc-encoding", compression.encode())
        self._rules = FieldRules()

    def read(self, fields: Fields) -> CallHead:
        """Return what a header list means."""
        head = CallHead(fields, self._max_message_bytes)
        try:
            values = self._rules.check(fields)
            head.content_length = content_length(values)
        except MalformedHead:
            head.is_malformed = head.is_eager = True
            return head
        head.path = values[b":path"]
        if values[b":method"] != b"POST":
            head.http_refusal = _NOT_POST
        elif not values.get(b"content-type", b"").startswith(b"application/grpc"):
            head.http_refusal = _NOT_GRPC
        else:
            head.refusal = self._read_values(head, values) or _read_binary(fields)
            head.refusal = head.refusal or self._find_method(head)
        head.is_eager = (
            head.is_streaming
            or head.refusal is not None
            or head.http_refusal is not None
            or head.content_length is not None
        )
        return head

    def oversized(self) -> CallHead:
        """Return the head of a call whose header list is over the limit."""
        head = CallHead((), self._max_message_bytes)
        text = "received metadata size exceeds hard limit"
        head.refusal = status.RESOURCE_EXHAUSTED, text
        head.is_eager = True
        return head

    def _read_values(self, head: CallHead, values: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Read the protocol's own fields; return what is wrong with them."""
        if values[b":scheme"] not in _SCHEMES:
            return _unparsable(":scheme")
        timeout = values.get(b"grpc-timeout")
        if timeout is not None:
            head.timeout_ns = _timeout_ns(timeout)
            if head.timeout_ns is None:
                return _unparsable("grpc-timeout")
        encoding = values.get(b"grpc-encoding")
        if encoding is not None:
            if encoding != b"identity" and encoding not in CODINGS:
                return _unparsable("grpc-encoding")
            head.encoding = encoding
        if self._coding:
            accepted = values.get(b"grpc-accept-encoding", b"").decode("latin-1")
            if self._coding in [coding.strip() for coding in accepted.split(",")]:
                head.coding = self._coding
                head.response_head = self._compressed_head
        return None

    def _find_method(self, head: CallHead) -> tuple[int, str] | None:
        method = self._methods.get(head.path)
        if method is None:
            return status.UNIMPLEMENTED, "Method not found!"
        if head.timeout_ns == 0:
            return status.DEADLINE_EXCEEDED, "Deadline Exceeded"
        head.start = method.start
        head.is_streaming = method.is_streaming
        return None


def _nothing(*_: object) -> None:
    """Serve a refused call, which never comes to it."""


def _unparsable(name: str) -> tuple[int, str]:
    return status.INTERNAL, f"Error parsing '{name}' metadata"


def _timeout_ns(value: bytes) -> int | None:
    """Return a deadline's distance; None if it cannot be read."""
    unit_ns = _UNIT_NS.get(value[-1:])
    if unit_ns is not None and len(value) <= _USUAL_TIMEOUT_BYTES and value[:-1].isdigit():
        return min(int(value[:-1]) * unit_ns, MAX_TIMEOUT_NS)
    match = _match_timeout(value.decode("latin-1"))
    if match is None:
        return None
    return min(int(match[1]) * _UNITS_NS[match[2]], MAX_TIMEOUT_NS)


def _read_binary(fields: Fields) -> tuple[int, str] | None:
    """Return what is wrong with the -bin fields, if anything."""
    for name, value in [field for field in fields if field[0][-4:] == status.BINARY_SUFFIX]:
        try:
            status.decode_binary(value)
        except ValueError:
            code, text = _unparsable(name.decode("latin-1"))
            return code, f"{text}: illegal base64 encoding"
    return None


def _metadata(fields: Fields) -> list[tuple[str, str | bytes]]:
    pairs: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name[:1] == b":" or name in _RESERVED:
            continue
        key = name.decode("latin-1")
        if name.endswith(status.BINARY_SUFFIX):
            pairs += [(key, part) for part in status.decode_binary(value)]
        else:
            pairs.append((key, value.decode("latin-1")))
    return pairs
