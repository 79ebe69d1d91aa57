"""A route as a document: a table of plain values in, a checked Route out, and back.

The one reader of routes, whether they come from the configuration, the admin API or a store; it
goes on after a fault, so that an operator sees all of them at once. Knows no JSON and no TOML, only
what both decode to. Keys that the store assigns (ASSIGNED) may stand in an input and are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar

from router import routes
from router.faults import Path, RouteError
from router.fields import Document, FieldReader
from router.routes import (
    Fallback,
    KeySource,
    Route,
    Shadow,
    Variant,
    slots_of_weight,
)
from router.rules import HeaderCondition, Rule, When

_T = TypeVar("_T")
ASSIGNED: Final = frozenset(("revision", "generation", "derived", "meta", "deleted", "emergency"))
"""Keys that the store writes and a reader of input ignores."""
_ROUTE_KEYS: Final = ASSIGNED | {
    "name", "kind", "salt", "key", "missing_key", "stable", "variants", "rules", "shadows",
    "fallback", "rollback_window_s",
}  # fmt: skip
_MAX_WINDOW_S: Final = 366 * 86_400
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~\-]+")


def read(document: Document, *, name: str, revision: int = 0) -> Route:
    """Return the route of a document.

    Args:
        document: decoded JSON or TOML; weights as int or Decimal (a float is taken by its digits).
        name: of the route; a name in the document must be the same.
        revision: to be written into the route.

    Raises:
        RouteError: with every fault that was found.
    """
    reader = _RouteReader()
    route = reader.route(document, name, revision)
    if reader.faults or route is None:
        raise RouteError(*reader.faults)
    return route


class _RouteReader(FieldReader):
    """Reads the parts of a route; a part that is at fault becomes None."""

    def route(self, document: Document, name: str, revision: int) -> Route | None:
        table = self.table(document, (), _ROUTE_KEYS)
        if table.get("name", name) != name:
            self.fail(("name",), f"{table['name']!r} is not {name!r}: a route keeps its name")
        self.name(name, ("name",))
        variants = self.named(table, "variants", self.variant, required=True)
        shadows = self.named(table, "shadows", self.shadow)
        rules = self.listed(table, "rules", self.rule)
        sources = self.listed(table, "key", self.key_source)
        fields: dict[str, Any] = {  # Any: arguments of Route, each checked below
            "kind": self.choice(table, "kind", routes.KINDS),
            "missing_key": self.choice(table, "missing_key", routes.MISSING_KEY, routes.RANDOM),
            "salt": self.text(table.get("salt", ""), ("salt",)) or name,
            "stable": self.text(table.get("stable", ""), ("stable",)) or "",
            "fallback": self.fallback(table.get("fallback")),
            "rollback_window_s": self.whole(
                table, (), "rollback_window_s", 3_600, least=0, most=_MAX_WINDOW_S
            ),
        }
        if self.faults:
            return None
        try:
            return Route(
                name=name,
                revision=revision,
                key=tuple(sources),
                variants=tuple(variants),
                shadows=tuple(shadows),
                rules=tuple(rules),
                **fields,
            )
        except RouteError as exc:
            self.faults += exc.faults
            return None

    def variant(self, name: str, value: object, path: Path) -> Variant | None:
        table = self.table(value, path, ("model", "version", "weight"))
        model, version = self.target(table, path)
        slots = self.percent(table, path, "weight")
        if model is None or version is None or slots is None:
            return None
        return Variant(name=name, model=model, version=version, slots=slots)

    def shadow(self, name: str, value: object, path: Path) -> Shadow | None:
        table = self.table(value, path, ("model", "version", "sample", "of", "limits"))
        model, version = self.target(table, path)
        sample = self.percent(table, path, "sample")
        of = self.texts(table.get("of", []), (*path, "of"))
        at: Path = (*path, "limits")
        known = ("queue_items", "queue_bytes", "deadline_ms")
        limits = self.table(table.get("limits", {}), at, known)
        bounds = {
            key: self.whole(limits, at, key, default, least=1)
            for key, default in zip(known, (256, 64 << 20, 2_000), strict=True)
        }
        if model is None or version is None or sample is None or None in bounds.values():
            return None
        return Shadow(
            name=name,
            model=model,
            version=version,
            sample_slots=sample,
            of=tuple(of),
            **{key: bound for key, bound in bounds.items() if bound is not None},
        )

    def rule(self, value: object, path: Path) -> Rule | None:
        table = self.table(value, path, ("name", "when", "to", "reason", "expires", "enabled"))
        name = self.required(table, path, "name")
        to = self.required(table, path, "to")
        when = self.when(table.get("when", {}), (*path, "when"))
        if name is not None:
            self.name(name, (*path, "name"))
        enabled = table.get("enabled", True)
        if not isinstance(enabled, bool):
            self.mismatch((*path, "enabled"), "a boolean", enabled)
        expires_ms = self.instant(table.get("expires"), (*path, "expires"))
        reason = self.text(table.get("reason", ""), (*path, "reason"))
        if name is None or to is None or when is None:
            return None
        return Rule(
            name=name,
            when=when,
            to=to,
            reason=reason or "",
            expires_ms=expires_ms,
            is_enabled=enabled is True,
        )

    def when(self, value: object, path: Path) -> When | None:
        table = self.table(value, path, ("header", "tenant", "role", "key"))
        before = len(self.faults)
        at: Path = (*path, "header")
        asked = self.table(table.get("header", {}), at, None)
        headers = [self.header(name, asked[name], (*at, name)) for name in sorted(asked)]
        names = [header.name for header in headers]
        if len(set(names)) != len(names):
            self.fail(at, "two conditions are about one header")
        tenant = table.get("tenant", [])
        tenants = self.texts([tenant] if isinstance(tenant, str) else tenant, (*path, "tenant"))
        role = self.text(table.get("role", ""), (*path, "role"))
        keys: list[str] = []
        if "key" in table:
            inside = self.table(table["key"], (*path, "key"), ("in",))
            keys = self.texts(inside.get("in"), (*path, "key", "in"), least=1)
        if len(self.faults) > before:
            return None
        return When(
            headers=tuple(headers),
            tenants=frozenset(tenants),
            role=role or "",
            keys=frozenset(keys),
        )

    def header(self, name: str, value: object, path: Path) -> HeaderCondition:
        """Read a condition: a text, or one of ``in``, ``prefix`` and ``present``."""
        if not _HEADER.fullmatch(name):
            self.fail(path, f"{name!r} is no name of a header")
        lower = name.lower()
        if isinstance(value, str):
            self.text(value, path)
            return HeaderCondition(name=lower, one_of=frozenset((value,)))
        table = self.table(value, path, ("in", "prefix", "present"))
        if len(table) != 1:
            self.fail(path, "give a text, or one of 'in', 'prefix' and 'present'")
        elif "in" in table:
            values = self.texts(table["in"], (*path, "in"), least=1)
            return HeaderCondition(name=lower, one_of=frozenset(values))
        elif "prefix" in table:
            prefix = self.required(table, path, "prefix")
            return HeaderCondition(name=lower, prefix=prefix or "")
        elif table.get("present", True) is not True:
            self.fail((*path, "present"), "only true can be asked for")
        return HeaderCondition(name=lower)

    def fallback(self, value: object) -> Fallback | None:
        if value is None:
            return None
        path: Path = ("fallback",)
        table = self.table(value, path, ("to", "on"))
        to = self.required(table, path, "to")
        on = self.texts(table.get("on", [routes.NOT_READY]), (*path, "on"), least=1)
        for n, event in enumerate(on):
            if event != routes.NOT_READY:
                self.fail((*path, "on", n), f"{event!r} is not {routes.NOT_READY!r}")
        return None if to is None else Fallback(to=to, on=tuple(on))

    def key_source(self, value: object, path: Path) -> KeySource | None:
        text = self.text(value, path)
        if text is None:
            return None
        try:
            return KeySource.parse(text, path=path)
        except RouteError as exc:
            self.faults += exc.faults
            return None

    def target(self, table: Document, path: Path) -> tuple[str | None, str | None]:
        """Read model and version."""
        model, version = (self.required(table, path, key) for key in ("model", "version"))
        if model is not None:
            self.name(model, (*path, "model"))
        if version is not None and not _VERSION.fullmatch(version):
            sentence = f"{version!r} is no version: a positive whole number as text"
            self.fail((*path, "version"), sentence)
        return model, version

    def percent(self, table: Document, path: Path, key: str) -> int | None:
        value, path = table.get(key), (*path, key)
        if isinstance(value, float):
            value = Decimal(repr(value))
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            self.mismatch(path, "a number", value)
            return None
        try:
            return slots_of_weight(Decimal(value), path=path)
        except RouteError as exc:
            self.faults += exc.faults
            return None

    def named(
        self,
        table: Document,
        key: str,
        one: Callable[[str, object, Path], _T | None],
        *,
        required: bool = False,
    ) -> list[_T]:
        """Read a table of named parts, in the order of their names."""
        if required and key not in table:
            self.fail((key,), "this key is required")
            return []
        parts = self.table(table.get(key, {}), (key,), None)
        found = []
        for name in sorted(parts):
            self.name(name, (key, name))
            part = one(name, parts[name], (key, name))
            if part is not None:
                found.append(part)
        return found

    def listed(
        self, table: Document, key: str, one: Callable[[object, Path], _T | None]
    ) -> list[_T]:
        found = []
        for n, value in enumerate(self.sequence(table.get(key, []), (key,))):
            part = one(value, (key, n))
            if part is not None:
                found.append(part)
        return found

    def choice(
        self, table: Document, key: str, known: Sequence[str], default: str = ""
    ) -> str | None:
        value = table.get(key, default or known[0])
        if value not in known:
            self.fail((key,), f"{value!r} is not {' or '.join(map(repr, known))}")
            return None
        return str(value)


def write(route: Route) -> dict[str, Any]:  # Any: a document being written
    """Return a route's document: plain values, weights in percent, `read` gives the route back."""
    return {
        "name": route.name,
        "revision": route.revision,
        "kind": route.kind,
        "salt": route.salt,
        "key": [str(source) for source in route.key],
        "missing_key": route.missing_key,
        "stable": route.stable,
        "variants": {
            v.name: {"model": v.model, "version": v.version, "weight": percent(v.slots)}
            for v in route.variants
        },
        "rules": [_rule(rule) for rule in route.rules],
        "shadows": {shadow.name: _shadow(shadow) for shadow in route.shadows},
        "fallback": (
            {"to": route.fallback.to, "on": list(route.fallback.on)} if route.fallback else None
        ),
        "rollback_window_s": route.rollback_window_s,
    }


def percent(slots: int) -> int | float:
    """Return slots in percent, in the shortest form; exact, as four decimals fit a double."""
    whole, rest = divmod(slots, routes.PERCENT)
    return whole if not rest else float(Decimal(slots) / routes.PERCENT)


def timestamp(unix_ms: int) -> str:
    """Return an instant as RFC 3339 text in UTC, whole seconds where it is one."""
    when = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=unix_ms)
    spec = "milliseconds" if unix_ms % 1_000 else "seconds"
    return when.isoformat(timespec=spec).replace("+00:00", "Z")


def _rule(rule: Rule) -> dict[str, Any]:
    document: dict[str, Any] = {"name": rule.name, "when": _when(rule.when), "to": rule.to}
    if rule.reason:
        document["reason"] = rule.reason
    if rule.expires_ms is not None:
        document["expires"] = timestamp(rule.expires_ms)
    return document | {"enabled": rule.is_enabled}


def _when(when: When) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if when.headers:
        document["header"] = {header.name: _header(header) for header in when.headers}
    if when.tenants:
        document["tenant"] = sorted(when.tenants)
    if when.role:
        document["role"] = when.role
    if when.keys:
        document["key"] = {"in": sorted(when.keys)}
    return document


def _header(header: HeaderCondition) -> dict[str, Any]:
    if header.one_of:
        return {"in": sorted(header.one_of)}
    return {"prefix": header.prefix} if header.prefix else {"present": True}


def _shadow(shadow: Shadow) -> dict[str, Any]:
    return {
        "model": shadow.model,
        "version": shadow.version,
        "sample": percent(shadow.sample_slots),
        "of": list(shadow.of),
        "limits": {
            "queue_items": shadow.queue_items,
            "queue_bytes": shadow.queue_bytes,
            "deadline_ms": shadow.deadline_ms,
        },
    }
