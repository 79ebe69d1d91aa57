"""One stored revision of a route, and a change that makes the next one.

Values only: knows no store and no meaning of a body, which is opaque bytes here. A route that was
deleted is a revision like any other, whose body says so.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

Position = tuple[int, int]
"""Generation and revision; a later one compares greater."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,14}")
MAX_NUMBER: Final = 10**15 - 1
"""Largest generation or revision: what a double, and so a Redis script, still counts exactly."""


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of some bytes in hex."""
    return hashlib.sha256(content).hexdigest()


def is_route_name(name: str) -> bool:
    """Whether a route may be called this: letters, digits, ``_``, ``.`` and ``-``, 128 at most."""
    return _NAME.fullmatch(name) is not None


def number_in(text: str) -> int | None:
    """Read a generation or revision in the one form in which it is written; None: not in it."""
    return int(text) if _NUMBER.fullmatch(text) else None


def etag_of(position: Position) -> str:
    """Return the entity tag of a position, with its quotes."""
    return f'"g{position[0]}-{position[1]}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRevision:
    """A route document as a store holds it."""

    name: str
    generation: int
    revision: int
    digest: str
    """SHA-256 of the body, in hex."""
    body: bytes
    """Canonical JSON, opaque to stores."""
    audit_digest: str
    """SHA-256, in hex, of the audit entry that was written with it; "" before any."""

    @property
    def is_intact(self) -> bool:
        """Whether body and digest agree; hashes the body."""
        return digest_of(self.body) == self.digest

    @property
    def position(self) -> Position:
        """Generation and revision."""
        return (self.generation, self.revision)

    @property
    def etag(self) -> str:
        """What If-Match and ETag carry, with the quotes."""
        return etag_of(self.position)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A compare-and-set: the revision to write, and where the route must stand for that.

    Raises ValueError for a change that no store could keep: it does not lead forward, or its
    digests are not those of its contents.
    """

    after: StoredRevision
    expected: Position | None
    """None: the route must not exist."""
    audit: bytes
    """The audit entry, opaque to stores. Two changes never have the same one: it is by this that
    a repeated write is told from somebody else's."""

    def __post_init__(self) -> None:
        after = self.after
        if not is_route_name(after.name):
            raise ValueError(f"{after.name!r} cannot be the name of a route")
        if not all(1 <= number <= MAX_NUMBER for number in after.position):
            raise ValueError(f"{after.name}: generation and revision start at 1")
        if self.expected is not None and after.position <= self.expected:
            raise ValueError(f"{after.name}: {after.etag} is not after {etag_of(self.expected)}")
        if not after.is_intact or after.audit_digest != digest_of(self.audit):
            raise ValueError(f"{after.name}: a digest is not that of its content")

    @classmethod
    def of(
        cls, name: str, at: Position, body: bytes, *, expected: Position | None, audit: bytes
    ) -> Change:
        """Return the change to a body, with its digests."""
        after = StoredRevision(
            name=name,
            generation=at[0],
            revision=at[1],
            digest=digest_of(body),
            body=body,
            audit_digest=digest_of(audit),
        )
        return cls(after=after, expected=expected, audit=audit)
