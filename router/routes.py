"""Routes and variants: frozen values and the rules that make them valid.

Knows no models on disk (gateway checks that targets exist) and no configuration format.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from router.slots import SLOTS

PERCENT: Final = SLOTS // 100
_FINEST: Final = Decimal(1) / PERCENT
KEY_SOURCES: Final = ("header", "parameter")


class RouteError(Exception):
    """A route that cannot be; `path` is the field at fault, inside the route."""

    def __init__(self, path: str, sentence: str) -> None:
        super().__init__(f"{path}: {sentence}" if path else sentence)
        self.path = path
        self.sentence = sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where a request's key is read from."""

    kind: str
    """header (HTTP header or gRPC metadata) or parameter (of the request)."""
    name: str
    """Lower-case for headers, exact for parameters."""

    @classmethod
    def parse(cls, text: str, *, path: str) -> KeySource:
        """Read ``header:x-user-id`` or ``parameter:user``.

        Raises:
            RouteError: neither of them.
        """
        kind, colon, name = text.partition(":")
        if kind not in KEY_SOURCES or not colon or not name.strip():
            forms = " or ".join(f"'{known}:NAME'" for known in KEY_SOURCES)
            raise RouteError(path, f"{text!r} is not of the form {forms}")
        return cls(kind=kind, name=name.strip().lower() if kind == "header" else name.strip())


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


def slots_of_weight(weight: Decimal, *, path: str) -> int:
    """Return a weight in percent as slots.

    Raises:
        RouteError: outside 0 to 100, or finer than 0.0001.
    """
    if not weight.is_finite() or not 0 <= weight <= 100:
        raise RouteError(path, f"weight {weight} is not between 0 and 100")
    rounded = weight.quantize(_FINEST)
    if rounded != weight:  # exact, where a product would be rounded to the context's precision
        raise RouteError(path, f"weight {weight} is finer than 0.0001")
    return int(rounded * PERCENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A public name and the variants that share its traffic."""

    name: str
    revision: int
    salt: str
    """Fixed for the life of the route, so that keys keep their slots."""
    key: tuple[KeySource, ...]
    """First present wins; none present: a random variant per request."""
    variants: tuple[Variant, ...]
    """In the order of the document."""

    def __post_init__(self) -> None:
        """Check the rules that hold between fields.

        Raises:
            RouteError: no variants, a repeated name, or weights that do not sum to 100.
        """
        if not self.variants:
            raise RouteError("variants", "a route needs at least one variant")
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise RouteError("variants", "two variants have the same name")
        total = sum(variant.slots for variant in self.variants)
        if total != SLOTS:
            percent = f"{Decimal(total) / PERCENT:f}"
            raise RouteError("variants", f"weights sum to {percent}, not 100")

    @property
    def heaviest(self) -> Variant:
        """The variant with the largest share, the first of equals: it speaks for the route."""
        return max(self.variants, key=lambda variant: variant.slots)
