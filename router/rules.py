"""Rules that come before weights: who they are about, and when one hides another.

Frozen values and pure functions. Knows requests only as `Facts`; where a header, a tenant or a role
comes from is the gateway's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

TESTER: Final = "tester"
"""The role whose bearers may choose their variant."""
BY_HEADER: Final = "$header"
"""As a rule's target: the variant that the rule's header names."""

HeaderLookup = Callable[[str], str | None]


def no_header(name: str) -> str | None:
    """Return nothing: a request without headers."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What rules may ask of a request."""

    header: HeaderLookup = no_header
    """By lower-case name; the value as received."""
    tenant: str = ""
    """Of the authenticated caller; empty: none."""
    roles: frozenset[str] = frozenset()
    """Of the authenticated caller."""


NOBODY: Final = Facts()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderCondition:
    """What a header must be; exactly one of the three is asked."""

    name: str
    """Lower-case."""
    one_of: frozenset[str] = frozenset()
    prefix: str = ""
    """Not empty: the value begins with it."""

    def holds(self, value: str | None) -> bool:
        """Whether a header's value meets the condition; None: the header is absent."""
        if value is None:
            return False
        return value in self.one_of if self.one_of else value.startswith(self.prefix)

    def implies(self, other: HeaderCondition) -> bool:
        """Whether every value that meets this one meets the other."""
        if not other.one_of:
            texts = self.one_of or {self.prefix}
            return all(text.startswith(other.prefix) for text in texts)
        return bool(self.one_of) and self.one_of <= other.one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """Conditions that must all hold."""

    headers: tuple[HeaderCondition, ...] = ()
    """At most one per name."""
    tenants: frozenset[str] = frozenset()
    """Empty: any, or none."""
    role: str = ""
    """Empty: any, or none."""
    keys: frozenset[str] = frozenset()
    """The request's sticky key as UTF-8 text; empty: any, or none."""

    def implies(self, other: When) -> bool:
        """Whether every request that meets this meets the other."""
        mine = {condition.name: condition for condition in self.headers}
        return (
            all(
                theirs.name in mine and mine[theirs.name].implies(theirs)
                for theirs in other.headers
            )
            and _narrower(self.tenants, other.tenants)
            and other.role in ("", self.role)
            and _narrower(self.keys, other.keys)
        )


def _narrower(mine: frozenset[str], theirs: frozenset[str]) -> bool:
    return not theirs or (bool(mine) and mine <= theirs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Sends the requests that it is about to one variant."""

    name: str
    when: When
    to: str
    """Name of a variant, or BY_HEADER."""
    reason: str = ""
    """Why it exists, for people."""
    expires_ms: int | None = None
    """Unix time from which on it no longer holds."""
    is_enabled: bool = True
    """False: kept, but without effect; an abort leaves rules so."""

    @property
    def destinations(self) -> frozenset[str]:
        """The variants that it may lead to."""
        if self.to != BY_HEADER:
            return frozenset((self.to,))
        return frozenset().union(*(header.one_of for header in self.when.headers))

    def holds_at(self, now_ms: int) -> bool:
        """Whether it is enabled and has not expired."""
        return self.is_enabled and (self.expires_ms is None or now_ms < self.expires_ms)


class RuleList:
    """Rules in order, ready to be matched: first match wins."""

    __slots__ = ("_prepared",)

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._prepared = [
            (
                rule,
                tuple(_as_received(condition) for condition in rule.when.headers),
                frozenset(key.encode() for key in rule.when.keys),
            )
            for rule in rules
        ]

    def first(self, key: bytes | None, facts: Facts) -> tuple[Rule | None, str, bool]:
        """Return the first rule that holds, the variant it leads to, and whether an override by
        somebody who is no tester was passed over on the way."""
        seen: dict[str, str | None] = {}  # a header is looked up once, however many rules ask
        ignored = False
        for rule, conditions, keys in self._prepared:
            when = rule.when
            if when.tenants and facts.tenant not in when.tenants:
                continue
            if keys and key not in keys:
                continue
            value: str | None = None
            for condition in conditions:
                name = condition.name
                if name in seen:
                    value = seen[name]
                else:
                    value = seen[name] = facts.header(name)
                if not condition.holds(value):
                    break
            else:
                if when.role and when.role not in facts.roles:
                    ignored = ignored or rule.to == BY_HEADER
                    continue
                return rule, value or "" if rule.to == BY_HEADER else rule.to, ignored
        return None, "", ignored


def _as_received(condition: HeaderCondition) -> HeaderCondition:
    """Return the condition in the form that headers have: one character per byte of UTF-8."""
    return HeaderCondition(
        name=condition.name,
        one_of=frozenset(text.encode().decode("latin-1") for text in condition.one_of),
        prefix=condition.prefix.encode().decode("latin-1"),
    )
