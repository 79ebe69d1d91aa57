"""Which variant serves a request: a pure function of the route, the key and a drawn number.

Randomness is an argument, so a decision can be logged, explained and repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from router.routes import Route, Variant
from router.slots import SLOTS, KeySpace, SlotMap

REASON_SLOT = "slot"
REASON_RANDOM = "random"


class Decision(NamedTuple):
    """Who serves a request, and why."""

    variant: Variant
    reason: str
    """slot: by the hash of its key; random: it had none."""
    slot: int
    propensity: float
    """Probability with which this choice was made, over keys."""


@dataclass(frozen=True, slots=True)
class CompiledRoute:
    """A route made ready for decisions: compile once per revision, decide per request."""

    route: Route
    key_space: KeySpace
    slot_map: SlotMap

    @classmethod
    def compile(cls, route: Route) -> CompiledRoute:
        """Lay out the slots: variants own consecutive ranges in document order."""
        return cls(route, KeySpace(route.salt), SlotMap([v.slots for v in route.variants]))

    def decide(self, key: bytes | None, draw: Callable[[], float]) -> Decision:
        """Choose the variant of a request.

        Args:
            key: as received; None or empty: the request has none.
            draw: returns a number in [0, 1); called only without a key.
        """
        if key:
            slot, reason = self.key_space.slot(key), REASON_SLOT
        else:
            slot, reason = int(draw() * SLOTS), REASON_RANDOM
        variant = self.route.variants[self.slot_map.owner(slot)]
        return Decision(variant, reason, slot, variant.slots / SLOTS)
