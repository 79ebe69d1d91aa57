"""Which variant serves a request: a pure function of the route, the key, facts and a drawn number.

Randomness and time are arguments, so a decision can be logged, explained and repeated. The order:

  1. the first rule that holds (reason rule:<name>, nothing drawn, propensity 1);
  2. the key's slot (reason slot);
  3. without a key, what the route says: a drawn slot (reason random), the stable variant (reason
     no_key), or nobody: KeyRequired.

Cost: one hash for a keyed request; a rule is a few dictionary and set lookups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from router.revisions import Revision
from router.routes import EXPERIMENT, PRINCIPAL, REJECT, STABLE, Route, Shadow, Variant
from router.rules import NOBODY, Facts, RuleList
from router.slot_map import SlotMap, SlotRange, lay_out
from router.slots import SLOTS, KeySpace

REASON_SLOT = "slot"
REASON_RANDOM = "random"
REASON_NO_KEY = "no_key"
RULE_PREFIX = "rule:"
NO_SLOT = -1

Draw = Callable[[], float]
"""Returns a number in [0, 1)."""


class KeyRequired(Exception):
    """The route rejects requests without a key."""

    def __init__(self, route: Route) -> None:
        sources = " or ".join(map(str, route.key)) or "none is configured"
        super().__init__(f"route {route.name!r} needs a key: {sources}")


class Decision(NamedTuple):
    """Who serves a request, and why."""

    variant: Variant
    reason: str
    """slot: by the hash of its key; random: it had none; no_key; or rule:<name>."""
    slot: int
    """NO_SLOT where no slot decided."""
    propensity: float
    """Probability with which this choice was made, over keys."""
    override_ignored: bool = False
    """The request asked for a variant, and its caller may not."""


class Mirror(NamedTuple):
    """One shadow that a request is eligible for."""

    shadow: Shadow
    is_sampled: bool


class CompiledRoute:
    """A route made ready for decisions: compile once per revision, decide per request."""

    __slots__ = (
        "_rules",
        "_shadows",
        "_variants",
        "asks_who",
        "epoch",
        "has_rules",
        "is_watched",
        "key_space",
        "route",
        "rules_until_ms",
        "slot_map",
        "slot_ranges",
    )

    def __init__(
        self, route: Route, slot_ranges: Sequence[SlotRange], now_ms: int, epoch: int
    ) -> None:
        self.route = route
        self.epoch = epoch
        """Number of the revision since which salt and split are the same."""
        self.slot_ranges = tuple(slot_ranges)
        self.key_space = KeySpace(route.salt)
        self._variants = {v.name: v for v in route.variants}
        self.slot_map = SlotMap(self.slot_ranges, self._variants)
        held = tuple(rule for rule in route.rules if rule.holds_at(now_ms))
        self._rules = RuleList(held)
        self.has_rules = bool(held)
        self.asks_who = any(source.kind == PRINCIPAL for source in route.key) or any(
            rule.when.tenants or rule.when.role for rule in held
        )
        """Whether the authenticated caller matters."""
        expiries = [rule.expires_ms for rule in held if rule.expires_ms is not None]
        self.rules_until_ms = min(expiries, default=None)
        """Unix time at which the route must be compiled again; None: never."""
        self._shadows = {
            v.name: tuple(
                (shadow, KeySpace(f"{route.salt}/shadow/{shadow.name}"))
                for shadow in route.shadows
                if not shadow.of or v.name in shadow.of
            )
            for v in route.variants
        }
        self.is_watched = bool(route.shadows) or route.kind == EXPERIMENT
        """Whether there is more to do with an admitted request: mirror it, count its unit."""

    @classmethod
    def compile(
        cls, route: Route, slot_ranges: Sequence[SlotRange] | None = None, now_ms: int = 0
    ) -> CompiledRoute:
        """Prepare a route; without stored ranges they are laid out as for a new one."""
        if slot_ranges is None:
            slot_ranges = lay_out(route.sizes, route.revision)
        return cls(route, slot_ranges, now_ms, route.revision)

    @classmethod
    def of(cls, revision: Revision, now_ms: int) -> CompiledRoute:
        """Prepare a stored revision."""
        return cls(revision.route, revision.slots, now_ms, revision.epoch)

    def decide(self, key: bytes | None, draw: Draw, facts: Facts = NOBODY) -> Decision:
        """Choose the variant of a request.

        Args:
            key: as received; None or empty: the request has none.
            draw: called only without a key.
            facts: what rules may ask; needed only if `has_rules`.

        Raises:
            KeyRequired: there is no key, no rule, and the route wants one.
        """
        ignored = False
        if self.has_rules:
            rule, to, ignored = self._rules.first(key, facts)
            if rule is not None:
                variant = self._variants[to]
                return Decision(variant, RULE_PREFIX + rule.name, NO_SLOT, 1.0, ignored)
        if key:
            slot, reason = self.key_space.slot(key), REASON_SLOT
        elif self.route.missing_key == STABLE:
            stable = self._variants[self.route.stable]
            return Decision(stable, REASON_NO_KEY, NO_SLOT, 1.0, ignored)
        elif self.route.missing_key == REJECT:
            raise KeyRequired(self.route)
        else:
            slot, reason = int(draw() * SLOTS), REASON_RANDOM
        variant = self.slot_map.owner(slot)
        return Decision(variant, reason, slot, variant.slots / SLOTS, ignored)

    def mirrors(self, variant: str, key: bytes | None, draw: Draw) -> list[Mirror]:
        """Return the shadows that a request of a variant is eligible for.

        A keyed request is sampled by its key, under a salt of each shadow's own: the same people
        are mirrored from request to request, whatever their variant.
        """
        found = []
        for shadow, key_space in self._shadows[variant]:
            share = shadow.sample_slots
            if share == SLOTS:
                is_sampled = True
            else:
                slot = key_space.slot(key) if key else int(draw() * SLOTS)
                is_sampled = slot < share
            found.append(Mirror(shadow, is_sampled))
        return found
