"""Where our transport is meant to differ from grpcio's server, and why: data.

The first entry whose pattern covers a call counts. A call that is listed must differ, and in no
other field than those listed; the test fails otherwise.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

_ALL: Final = frozenset({"status", "head", "messages", "rest", "trailers", "end", "connection"})


@dataclass(frozen=True, slots=True)
class Difference:
    """Calls that differ, by a pattern of their names, in some fields of their outcome."""

    names: str
    reason: str
    fields: frozenset[str] = _ALL
    is_sometimes: bool = False
    """The reference itself is not always the same."""

    def covers(self, name: str) -> bool:
        """Whether a call is meant."""
        return fnmatchcase(name, self.names)


_RFC: Final = "RFC 9113 calls this request malformed: a stream error, PROTOCOL_ERROR"
_HANGS: Final = "grpcio never answers this: ours says what is wrong"
_RACE: Final = "grpcio's core and its handler race for the answer when a deadline passes"
_FLAGS: Final = (
    "grpcio hangs, or takes a message with such a flag for an empty one: ours says what is wrong"
)
_NO_GRPC: Final = "the gRPC protocol wants 415 for what is no gRPC; grpcio takes any content-type"
_POST: Final = "ours answers 405 where gRPC demands POST; grpcio resets the stream, or answers 13"

_ACCEPTED: Final = "a client that does not accept gzip is not sent any; grpcio's server asks no one"

DIFFERENCES: Final[tuple[Difference, ...]] = (
    Difference("content-type: APPLICATION/GRPC", _NO_GRPC),
    Difference("content-type: application/json", _NO_GRPC),
    Difference("content-type: application/x-protobuf", _NO_GRPC),
    Difference("content-type: text/plain", _NO_GRPC),
    Difference("content-type: ", _NO_GRPC),
    Difference("content-type: None", _NO_GRPC),
    Difference("stream: wrong content-type", _NO_GRPC),
    Difference("method: None", _RFC),
    Difference("method: *", _POST),
    Difference("path: None", _RFC),
    Difference("path: ", _RFC),
    Difference("scheme: None", _RFC),
    Difference("te: None", "a missing te is no reason to refuse: curl and h2load send none"),
    Difference("te: *", _RFC),
    Difference("authority: none", ":authority may be left out (RFC 9113, 8.3.1)"),
    Difference("pseudo: *", _RFC),
    Difference("timeout wrong: ' 5S'", _RFC + " (a value that begins with a space)"),
    Difference("metadata: binary, two in one", "values of -bin fields may be joined by commas"),
    Difference("field: 40 KB*", "the limit of a header list is ours, and so is the text"),
    Difference("field: [!b]*", _RFC),
    Difference("shape: padding", "grpcio does not take padded DATA"),
    Difference("shape: only padding first", "grpcio does not take padded DATA"),
    Difference("broken: no message*", _HANGS),
    Difference("broken: ? bytes of the prefix", _HANGS),
    Difference("broken: only the prefix", _HANGS),
    Difference("broken: the message cut*", _HANGS),
    Difference("broken: flag [!1]*", _FLAGS),
    Difference("broken: flag 128", _FLAGS),
    Difference("broken: text for a message", _FLAGS),
    Difference(
        "stream: the * cut off",
        "grpcio drops the part of a message and ends the stream as if all were well",
    ),
    Difference("stream: flag 2", _FLAGS),
    *(
        Difference(
            f"answer: {size}, accepts '{accepted}'", _ACCEPTED, frozenset({"head", "messages"})
        )
        for accepted in ("deflate", "identity", "br", "")
        for size in ("small", "large")
    ),
    Difference("late: *", _RACE, is_sometimes=True),
    Difference("stream: late*", _RACE, is_sometimes=True),
)


def listing(name: str) -> Difference | None:
    """Return the entry that counts for a call."""
    return next((listed for listed in DIFFERENCES if listed.covers(name)), None)


def reason(name: str, fields: Collection[str]) -> str | None:
    """Return why a call may differ in these fields; None if it may not."""
    listed = listing(name)
    return listed.reason if listed is not None and set(fields) <= listed.fields else None
