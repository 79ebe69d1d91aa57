"""One stored version of a route: its document, its slot map, and where it came from.

A revision's body is canonical JSON (sorted keys, no spaces, UTF-8); its digest is the SHA-256 of
that. Reading checks everything again, so that a body which was half written, or written by somebody
else, is never put in force. Knows no store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final

from router import document, slot_map
from router.faults import Fault, Path, RouteError
from router.fields import Document, FieldReader
from router.routes import Route
from router.slot_map import SlotRange

_DERIVED: Final = ("slots", "epoch", "carryover", "warm")
_META: Final = ("reason", "actor", "verb", "created_at", "parent", "digest")
"""`digest` is no part of the body; it stands in the documents that the admin API shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who made a revision, when and why."""

    verb: str
    """create, replace, patch, setWeights, promote, abort, undo, delete, restore."""
    actor: str
    reason: str
    created_ms: int
    """Unix time."""
    parent: int = 0
    """The revision that it came after; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """A version that the route has left and that stays loaded, so that a way back needs no load."""

    model: str
    version: str
    until_ms: int
    """Unix time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One version of a route. `route.revision` is its number."""

    route: Route
    slots: tuple[SlotRange, ...]
    epoch: int
    """Number of the revision since which salt and split are the same."""
    origin: Origin
    generation: int = 1
    """Counts restores: revisions of a higher generation win whatever their number."""
    carryover: tuple[int, ...] = ()
    """Revisions that changed the weights of a running experiment; empty again after a reseed."""
    warm: tuple[Warm, ...] = ()
    is_deleted: bool = False
    """The route is out of force; its number and its past stay."""

    @property
    def position(self) -> tuple[int, int]:
        """Generation and number: what a higher one replaces."""
        return self.generation, self.route.revision

    def document(self) -> dict[str, Any]:
        """Return the whole document as the admin API shows it."""
        body = self._body()
        digest = sha256(_canonical(body)).hexdigest()
        return body | {"meta": body["meta"] | {"digest": digest}}

    def body(self) -> bytes:
        """Return the canonical bytes that are stored."""
        return _canonical(self._body())

    def _body(self) -> dict[str, Any]:
        origin = self.origin
        body = document.write(self.route)
        body["generation"] = self.generation
        body["derived"] = {
            "slots": [list(r) for r in self.slots],
            "epoch": self.epoch,
            "carryover": list(self.carryover),
            "warm": [
                {"model": w.model, "version": w.version, "until": document.timestamp(w.until_ms)}
                for w in self.warm
            ],
        }
        body["meta"] = {
            "reason": origin.reason,
            "actor": origin.actor,
            "verb": origin.verb,
            "created_at": document.timestamp(origin.created_ms),
            "parent": origin.parent,
        }
        return body | ({"deleted": True} if self.is_deleted else {})


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read(body: bytes, *, name: str) -> Revision:
    """Return the revision of a stored body.

    Raises:
        RouteError: it is no JSON, no valid route, or its slots contradict its weights.
    """
    try:
        decoded = json.loads(body, parse_float=Decimal)
    except (ValueError, RecursionError) as exc:
        raise RouteError(Fault((), f"the stored document is no JSON: {exc}")) from None
    if not isinstance(decoded, Mapping):
        raise RouteError(Fault((), "the stored document is no table"))
    reader = FieldReader()
    number = reader.whole(decoded, (), "revision", 0, least=1) or 0
    generation = reader.whole(decoded, (), "generation", 0, least=1) or 0
    derived = reader.table(decoded.get("derived"), ("derived",), _DERIVED)
    meta = reader.table(decoded.get("meta"), ("meta",), _META)
    if not isinstance(decoded.get("deleted", False), bool):
        reader.mismatch(("deleted",), "a boolean", decoded["deleted"])
    if reader.faults:
        raise RouteError(*reader.faults)
    route = document.read(decoded, name=name, revision=number)
    revision = Revision(
        route=route,
        slots=_slots(reader, derived),
        epoch=reader.whole(derived, ("derived",), "epoch", 0, least=1) or 0,
        origin=_origin(reader, meta),
        generation=generation,
        carryover=_numbers(reader, derived),
        warm=_warm(reader, derived),
        is_deleted=decoded.get("deleted") is True,
    )
    if wrong := slot_map.check(revision.slots, route.sizes):
        reader.fail(("derived", "slots"), wrong)
    if reader.faults:
        raise RouteError(*reader.faults)
    return revision


def _slots(reader: FieldReader, derived: Document) -> tuple[SlotRange, ...]:
    found = []
    for n, row in enumerate(reader.sequence(derived.get("slots"), ("derived", "slots"))):
        match row:
            case [int() as start, int() as end, str() as owner, int() as revision]:
                found.append(SlotRange(start, end, owner, revision))
            case _:
                reader.fail(("derived", "slots", n), "it is not [from, to, variant, revision]")
    return tuple(found)


def _numbers(reader: FieldReader, derived: Document) -> tuple[int, ...]:
    path = ("derived", "carryover")
    numbers = reader.sequence(derived.get("carryover", []), path)
    if not all(type(number) is int for number in numbers):
        reader.fail(path, "not all of them are revisions")
        return ()
    return tuple(number for number in numbers if isinstance(number, int))


def _warm(reader: FieldReader, derived: Document) -> tuple[Warm, ...]:
    found = []
    for n, row in enumerate(reader.sequence(derived.get("warm", []), ("derived", "warm"))):
        at = ("derived", "warm", n)
        table = reader.table(row, at, ("model", "version", "until"))
        model, version = (reader.required(table, at, key) for key in ("model", "version"))
        until_ms = _stored_instant(reader, table, at, "until")
        found.append(Warm(model=model or "", version=version or "", until_ms=until_ms))
    return tuple(found)


def _stored_instant(reader: FieldReader, table: Document, path: Path, key: str) -> int:
    """Return a time that must be there."""
    if table.get(key) is None:
        reader.fail((*path, key), "this key is required")
    return reader.instant(table.get(key), (*path, key)) or 0


def _origin(reader: FieldReader, meta: Document) -> Origin:
    at = ("meta",)
    return Origin(
        verb=reader.required(meta, at, "verb") or "",
        actor=reader.text(meta.get("actor"), (*at, "actor")) or "",
        reason=reader.text(meta.get("reason"), (*at, "reason")) or "",
        created_ms=_stored_instant(reader, meta, at, "created_at"),
        parent=reader.whole(meta, at, "parent", 0, least=0) or 0,
    )
