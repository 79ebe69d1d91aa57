"""The bytes of one stored revision: a line that says what follows, the body, the audit entry.

    sluice-route/1 NAME GENERATION REVISION DIGEST AUDIT_DIGEST BODY_BYTES AUDIT_BYTES CHECK
    <body>
    <audit entry>

Used in journal files, in snapshots and in the history in Redis; can be read by a person. Every byte
is covered: CHECK is over the words before it, the digests are over body and audit entry. ``-`` as a
size: that part is not there. What ends too early (Torn) is told from what is wrong (Broken).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from gateway.route_control.revision import Position, StoredRevision, digest_of, number_in

MARK: Final = b"sluice-route/1 "
"""What every frame begins with."""
_ABSENT: Final = "-"
_CHECK_CHARACTERS: Final = 16
_LONGEST_LINE: Final = 512
_LINE: Final = re.compile(
    r"sluice-route/1 (?P<name>\S{1,128}) (?P<generation>\d+) (?P<revision>\d+)"
    r" (?P<digest>[0-9a-f]{64}) (?P<audit_digest>[0-9a-f]{64}|-)"
    r" (?P<body>\d+|-) (?P<audit>\d+|-) (?P<check>[0-9a-f]{16})"
)


class Torn(Exception):
    """The bytes end before the frame does."""

    def __init__(self) -> None:
        super().__init__("it is cut off")


class Broken(Exception):
    """These bytes are not a frame, or not the one that was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The line of a frame."""

    name: str
    generation: int
    revision: int
    digest: str
    audit_digest: str
    body_bytes: int | None
    audit_bytes: int | None
    line_bytes: int
    """Of the line itself, with its end."""

    @property
    def position(self) -> Position:
        """Generation and revision."""
        return (self.generation, self.revision)

    @property
    def frame_bytes(self) -> int:
        """Of the whole frame."""
        return self.line_bytes + _with_end(self.body_bytes) + _with_end(self.audit_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame whose every byte was checked."""

    header: Header
    body: bytes | None
    audit: bytes | None

    @property
    def revision(self) -> StoredRevision | None:
        """The stored revision; None: the frame came without its body."""
        head = self.header
        if self.body is None:
            return None
        return StoredRevision(
            name=head.name,
            generation=head.generation,
            revision=head.revision,
            digest=head.digest,
            body=self.body,
            audit_digest=head.audit_digest,
        )


def encode(revision: StoredRevision, *, audit: bytes | None = None) -> bytes:
    """Return the frame of a revision, with or without its audit entry."""
    words = f"{revision.name} {revision.generation} {revision.revision}"
    digests = f"{revision.digest} {revision.audit_digest or _ABSENT}"
    return _frame(f"{words} {digests}", revision.body, audit)


def encode_audit(found: Frame) -> bytes:
    """Return the frame of which the audit entry is kept, and no body."""
    head = found.header
    words = f"{head.name} {head.generation} {head.revision}"
    return _frame(f"{words} {head.digest} {head.audit_digest or _ABSENT}", None, found.audit)


def header_at(data: bytes, offset: int) -> Header:
    """Read the line that begins at an offset. Raises Torn or Broken."""
    end = data.find(b"\n", offset, offset + _LONGEST_LINE)
    if end < 0:
        if len(data) - offset < _LONGEST_LINE:
            raise Torn
        raise Broken("no line of a revision")
    line = data[offset:end].decode("ascii", errors="replace")
    found = _LINE.fullmatch(line)
    if found is None or found["check"] != _check(line[: -_CHECK_CHARACTERS - 1]):
        raise Broken("its line is damaged")
    generation, revision = number_in(found["generation"]), number_in(found["revision"])
    if generation is None or revision is None:
        raise Broken("its generation or revision is no number")
    return Header(
        name=found["name"],
        generation=generation,
        revision=revision,
        digest=found["digest"],
        audit_digest="" if found["audit_digest"] == _ABSENT else found["audit_digest"],
        body_bytes=_size(found["body"]),
        audit_bytes=_size(found["audit"]),
        line_bytes=end + 1 - offset,
    )


def frame_at(data: bytes, offset: int) -> Frame:
    """Read and check the frame that begins at an offset. Raises Torn or Broken."""
    header = header_at(data, offset)
    if len(data) - offset < header.frame_bytes:
        raise Torn
    body_at = offset + header.line_bytes
    audit_at = body_at + _with_end(header.body_bytes)
    return Frame(
        header=header,
        body=_part(data, body_at, header.body_bytes, header.digest),
        audit=_part(data, audit_at, header.audit_bytes, header.audit_digest),
    )


def decode(data: bytes) -> StoredRevision:
    """Read bytes that are one frame with a body. Raises Torn or Broken."""
    frame = frame_at(data, 0)
    revision = frame.revision
    if revision is None or frame.header.frame_bytes != len(data):
        raise Broken("it is not one revision")
    return revision


def _frame(words: str, body: bytes | None, audit: bytes | None) -> bytes:
    sizes = " ".join(_ABSENT if part is None else str(len(part)) for part in (body, audit))
    line = f"{MARK.decode()}{words} {sizes}"
    parts = (f"{line} {_check(line)}".encode(), body, audit)
    return b"".join(part + b"\n" for part in parts if part is not None)


def _check(words: str) -> str:
    return digest_of(words.encode())[:_CHECK_CHARACTERS]


def _size(word: str) -> int | None:
    return None if word == _ABSENT else int(word)


def _with_end(size: int | None) -> int:
    return 0 if size is None else size + 1


def _part(data: bytes, start: int, size: int | None, digest: str) -> bytes | None:
    if size is None:
        return None
    part = data[start : start + size]
    if digest_of(part) != digest or data[start + size : start + size + 1] != b"\n":
        raise Broken("its content contradicts its digest")
    return part
