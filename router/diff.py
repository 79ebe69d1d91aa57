"""What differs between two documents: plain values in, a list of changes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from router.document import ASSIGNED

_ABSENT: Final = object()


def diff(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the changes between two route documents, by JSON pointer.

    Tables are compared key by key, all else as a whole. What the store assigns is left out; a
    side that lacks a field lacks its key (`from` or `to`) in the change.
    """
    old = {k: v for k, v in (before or {}).items() if k not in ASSIGNED}
    new = {k: v for k, v in after.items() if k not in ASSIGNED}
    return list(_changes("", old, new))


def _changes(at: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key in sorted(old.keys() | new.keys()):
        path = f"{at}/{key.replace('~', '~0').replace('/', '~1')}"
        a, b = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _changes(path, a, b)
        elif a != b:
            change = {"path": path, "from": a, "to": b}
            yield {k: v for k, v in change.items() if v is not _ABSENT}
