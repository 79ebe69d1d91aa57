"""Routes and what they are made of: frozen values and the rules that make them valid.

Knows no models on disk (gateway checks that targets exist), no document format (document.py) and no
revisions (revisions.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from router.faults import Fault, Path, RouteError
from router.rules import BY_HEADER, TESTER, Rule
from router.slots import SLOTS

PERCENT: Final = SLOTS // 100
_FINEST: Final = Decimal(1) / PERCENT
ROLLOUT: Final = "rollout"
EXPERIMENT: Final = "experiment"
KINDS: Final = (ROLLOUT, EXPERIMENT)
RANDOM, STABLE, REJECT = MISSING_KEY = ("random", "stable", "reject")
NOT_READY: Final = "not_ready"
PRINCIPAL: Final = "principal"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where a request's key is read from."""

    kind: str
    """header (HTTP header or gRPC metadata), parameter (of the request), or principal (the
    authenticated caller)."""
    name: str = ""
    """Lower-case for headers, exact for parameters, empty for the principal."""

    @classmethod
    def parse(cls, text: str, *, path: Path) -> KeySource:
        """Read ``header:x-user-id``, ``parameter:user`` or ``principal``.

        Raises:
            RouteError: none of them.
        """
        if text == PRINCIPAL:
            return cls(kind=PRINCIPAL)
        kind, _, name = text.partition(":")
        if kind not in ("header", "parameter") or not name.strip():
            forms = "'header:NAME', 'parameter:NAME' or 'principal'"
            raise RouteError(Fault(path, f"{text!r} is not of the form {forms}"))
        return cls(kind=kind, name=name.strip().lower() if kind == "header" else name.strip())

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A named arm of a route."""

    name: str
    model: str
    version: str
    slots: int
    """Share of the key space in millionths; 0 gets nothing."""

    @property
    def weight(self) -> Decimal:
        """The share in percent."""
        return Decimal(self.slots) / PERCENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A version that gets copies of requests; its answers are logged and never returned."""

    name: str
    model: str
    version: str
    sample_slots: int
    """Share of the requests of the variants in `of`, in millionths."""
    of: tuple[str, ...] = ()
    """Variants whose requests are mirrored; empty: all."""
    queue_items: int = 256
    """Most requests queued or executing; over it a copy is dropped."""
    queue_bytes: int = 64 << 20
    """Most tensor bytes queued or executing."""
    deadline_ms: int = 2_000
    """Oldest that a copy may become before it is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """Who serves instead of a variant that cannot."""

    to: str
    """Name of a variant."""
    on: tuple[str, ...] = (NOT_READY,)


def slots_of_weight(weight: Decimal, *, path: Path) -> int:
    """Return a weight in percent as slots.

    Raises:
        RouteError: outside 0 to 100, or finer than 0.0001.
    """
    if not weight.is_finite() or not 0 <= weight <= 100:
        raise RouteError(Fault(path, f"weight {weight} is not between 0 and 100"))
    rounded = weight.quantize(_FINEST)
    if rounded != weight:  # exact, where a product would be rounded to the context's precision
        raise RouteError(Fault(path, f"weight {weight} is finer than 0.0001"))
    return int(rounded * PERCENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A public name and the variants that share its traffic. Valid by construction."""

    name: str
    revision: int
    """Assigned by the store; 0: not stored yet."""
    salt: str
    """Shuffles the key space; the same salt keeps keys in their slots."""
    key: tuple[KeySource, ...]
    """First present wins; none present: see `missing_key`."""
    variants: tuple[Variant, ...]
    kind: str = ROLLOUT
    """rollout: weights may move; experiment: they are locked."""
    missing_key: str = RANDOM
    """random: a drawn variant per request; stable; reject: the caller's error."""
    stable: str = ""
    """The variant that promote, abort and missing_key mean; set by `__post_init__` if empty."""
    rules: tuple[Rule, ...] = ()
    """Before the weights; first match wins."""
    shadows: tuple[Shadow, ...] = ()
    fallback: Fallback | None = None
    rollback_window_s: int = 3_600
    """How long a version stays loaded after the route has left it."""

    def __post_init__(self) -> None:
        """Choose the stable variant if none is named; check what holds between fields.

        Raises:
            RouteError: with every fault.
        """
        if not self.stable and self.variants:
            names = [v.name for v in self.variants]
            stable = STABLE if STABLE in names else self.heaviest.name
            object.__setattr__(self, "stable", stable)
        if faults := tuple(_faults(self)):
            raise RouteError(*faults)

    @property
    def heaviest(self) -> Variant:
        """The variant with the largest share, the first of equals: it speaks for the route."""
        return max(self.variants, key=lambda variant: variant.slots)

    @property
    def sizes(self) -> dict[str, int]:
        """Slots by variant."""
        return {v.name: v.slots for v in self.variants}

    def variant(self, name: str) -> Variant:
        """Return a variant by name; KeyError if there is none."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)

    def targets(self) -> Iterator[tuple[Path, str, str]]:
        """Yield the place in the document, model and version of everything that must exist."""
        for variant in self.variants:
            yield ("variants", variant.name), variant.model, variant.version
        for shadow in self.shadows:
            yield ("shadows", shadow.name), shadow.model, shadow.version


def _faults(route: Route) -> Iterator[Fault]:
    if not route.variants:
        yield Fault(("variants",), "a route needs at least one variant")
        return
    names = [variant.name for variant in route.variants]
    if len(set(names)) != len(names):
        yield Fault(("variants",), "two variants have the same name")
    total = sum(variant.slots for variant in route.variants)
    if total != SLOTS:
        percent = f"{Decimal(total) / PERCENT:f}"
        yield Fault(("variants",), f"weights sum to {percent}, not 100")
    if route.stable not in names:
        yield _no_variant(("stable",), route.stable)
    if route.fallback and route.fallback.to not in names:
        yield _no_variant(("fallback", "to"), route.fallback.to)
    for shadow in route.shadows:
        for n, of in enumerate(shadow.of):
            if of not in names:
                yield _no_variant(("shadows", shadow.name, "of", n), of)
    yield from _rule_faults(route.rules, names)


def _rule_faults(rules: Sequence[Rule], variants: Sequence[str]) -> Iterator[Fault]:
    for n, rule in enumerate(rules):
        path: Path = ("rules", n)
        if rule.name in (before.name for before in rules[:n]):
            yield Fault((*path, "name"), f"two rules are named {rule.name!r}")
        if rule.when == type(rule.when)():
            yield Fault((*path, "when"), "a rule about every request would hide the weights")
        if rule.to == BY_HEADER:
            yield from _override_faults(rule, path, variants)
        elif rule.to not in variants:
            yield _no_variant((*path, "to"), rule.to)
        if hider := next((before for before in rules[:n] if _hides(before, rule)), None):
            sentence = f"it is never reached: rule {hider.name!r} takes every request it is about"
            yield Fault(path, sentence)


def _override_faults(rule: Rule, path: Path, variants: Sequence[str]) -> Iterator[Fault]:
    """A forced variant needs a tester, and one header that can name nothing but variants."""
    if rule.when.role != TESTER:
        sentence = f"only the role {TESTER!r} may choose a variant"
        yield Fault((*path, "when", "role"), sentence)
    if len(rule.when.headers) != 1:
        yield Fault((*path, "when", "header"), f"{BY_HEADER!r} needs exactly one header")
        return
    header = rule.when.headers[0]
    if not header.one_of:
        where: Path = (*path, "when", "header", header.name)
        yield Fault(where, f"{BY_HEADER!r} needs the variants listed with 'in'")
    for name in sorted(header.one_of):
        if name not in variants:
            yield _no_variant((*path, "when", "header", header.name), name)


def _hides(before: Rule, rule: Rule) -> bool:
    """Whether a rule leaves nothing for a later one, for as long as that one holds."""
    if not (before.is_enabled and rule.is_enabled):
        return False
    outlives = before.expires_ms is None or (
        rule.expires_ms is not None and before.expires_ms >= rule.expires_ms
    )
    return outlives and rule.when.implies(before.when)


def _no_variant(path: Path, name: str) -> Fault:
    return Fault(path, f"there is no variant {name!r}")
