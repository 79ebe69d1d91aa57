"""Reads the fields of a decoded document one by one, and collects what is wrong with them.

Plain values in, checked values out; a field at fault becomes None (or an empty table or list) and a
Fault, and reading goes on. Knows no route.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from router.faults import Fault, Path

Document = Mapping[str, Any]  # Any: decoded JSON or TOML, before its check

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_MAX_INT: Final = 2**53  # what every JSON reader keeps exact
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)  # in every zone a time that can be written
_MS: Final = timedelta(milliseconds=1)


class FieldReader:
    """Collects faults while it reads."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def fail(self, path: Path, sentence: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(path, sentence))

    def whole(
        self,
        table: Document,
        path: Path,
        key: str,
        default: int,
        *,
        least: int,
        most: int = _MAX_INT,
    ) -> int | None:
        """Return a whole number within limits."""
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            limits = f"from {least} on" if most == _MAX_INT else f"from {least} to {most}"
            self.fail((*path, key), f"{value!r} is not a whole number {limits}")
            return None
        return value

    def instant(self, value: object, path: Path) -> int | None:
        """Read a time with its zone, as RFC 3339 text or TOML's own type; in Unix milliseconds."""
        if value is None:
            return None
        when = value
        if isinstance(value, str):
            try:
                when = datetime.fromisoformat(value)
            except ValueError:
                when = None
        if not isinstance(when, datetime) or when.tzinfo is None:
            self.fail(path, f"{value!r} is no time with a zone, such as 2026-12-01T00:00:00Z")
            return None
        if not _EPOCH <= when < _LATEST:
            self.fail(path, f"{value!r} is not between the years 1970 and 9998")
            return None
        return (when - _EPOCH) // _MS

    def table(self, value: object, path: Path, known: Collection[str] | None) -> Document:
        """Return a table whose keys are text; unknown keys are faults, unless `known` is None."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            self.mismatch(path, "a table", value)
            return {}
        if not all(map(is_unicode, value)):
            self.fail(path, "a key is no Unicode text")
            return {}
        for key in sorted(value):
            if known is not None and key not in known:
                self.fail((*path, key), "unknown key")
        return value

    def sequence(self, value: object, path: Path) -> Sequence[object]:
        """Return a list."""
        if isinstance(value, list | tuple):
            return value
        self.mismatch(path, "a list", value)
        return ()

    def texts(self, value: object, path: Path, *, least: int = 0) -> list[str]:
        """Return a list of texts that are not empty."""
        found = []
        for n, item in enumerate(self.sequence(value, path)):
            text = self.text(item, (*path, n))
            if text == "":
                self.fail((*path, n), "an empty text")
            elif text is not None:
                found.append(text)
        if isinstance(value, list | tuple) and len(value) < least:
            self.fail(path, "the list is empty")
        return found

    def required(self, table: Document, path: Path, key: str) -> str | None:
        """Return a text that must be there and not be empty."""
        if key not in table:
            self.fail((*path, key), "this key is required")
            return None
        text = self.text(table[key], (*path, key))
        if text == "":
            self.fail((*path, key), "an empty text")
            return None
        return text

    def text(self, value: object, path: Path) -> str | None:
        """Return a text."""
        if not isinstance(value, str):
            self.mismatch(path, "a text", value)
            return None
        if not is_unicode(value):
            self.fail(path, "it is no Unicode text")
            return None
        return value

    def name(self, value: str, path: Path) -> None:
        """Check a name."""
        if not _NAME.fullmatch(value):
            self.fail(path, f"{value!r} is no name: letters, digits, '_', '.' and '-', 128 at most")

    def mismatch(self, path: Path, wanted: str, value: object) -> None:
        """Say what was expected; never with the value itself, which may be huge."""
        found = "nothing" if value is None else f"a value of type {type(value).__name__}"
        self.fail(path, f"expected {wanted}, got {found}")


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON's escapes can name what is half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
