"""The verbs by which operators change a route: pure functions from a revision to the next one.

A verb makes the new route (`with_weights`, `promoted`, `aborted`, or a whole document); `follow`
makes the next revision of it: slot map, epoch, versions to keep warm. Knows no store, no clock and
no model on disk: time and new salts are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from router import document, slot_map
from router.faults import Fault, RouteError
from router.revisions import Origin, Revision, Warm
from router.routes import EXPERIMENT, PERCENT, Route, Variant, slots_of_weight
from router.rules import BY_HEADER
from router.slot_map import SlotRange
from router.slots import SLOTS

_S_MS: Final = 1_000


class ExperimentLocked(Exception):
    """The split or a version of a running experiment would change, and nobody said it may."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"route {name!r} is an experiment: its weights and versions are locked. Give reseed "
            "(new salt, new epoch) or accept_carryover (same salt; the results show it for ever)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """What the operator allows a change of a running experiment to do."""

    new_salt: str = ""
    """Not empty: start it anew under this salt."""
    accepts_carryover: bool = False


ALWAYS: Final = Permission(accepts_carryover=True)
"""Of verbs that end what an experiment was about: promote and abort."""


def first(route: Route, origin: Origin, *, after: Revision | None = None) -> Revision:
    """Return the first revision of a route, or the next one after its deletion."""
    number = after.route.revision + 1 if after else 1
    route = replace(route, revision=number)
    slots = slot_map.lay_out(route.sizes, number)
    generation = after.generation if after else 1
    return Revision(route=route, slots=slots, epoch=number, origin=origin, generation=generation)


def follow(
    before: Revision, route: Route, origin: Origin, permission: Permission = Permission()
) -> Revision:
    """Return the revision that puts a route in the place of the one before.

    Raises:
        ExperimentLocked: it changes the split of an experiment without permission.
    """
    number = before.route.revision + 1
    old = before.route
    carryover = before.carryover
    if _is_locked(old, route):
        if permission.new_salt:
            route = replace(route, salt=permission.new_salt)
        elif not permission.accepts_carryover or route.salt != old.salt:
            raise ExperimentLocked(route.name)
        else:
            carryover = (*carryover, number)
    route = replace(route, revision=number)
    if route.salt != old.salt:  # every key gets another slot anyway: begin with whole ranges
        slots, carryover = slot_map.lay_out(route.sizes, number), ()
    else:
        slots = slot_map.change(before.slots, route.sizes, number)
    is_same_split = route.salt == old.salt and slots == before.slots
    return Revision(
        route=route,
        slots=slots,
        epoch=before.epoch if is_same_split else number,
        origin=origin,
        generation=before.generation,
        carryover=carryover,
        warm=_still_warm(before, route, origin.created_ms),
    )


def back_to(before: Revision, target: Revision, origin: Origin) -> Revision:
    """Return a new revision with the content and the slot map of an earlier one."""
    number = before.route.revision + 1
    route = replace(target.route, revision=number)
    is_same_split = (route.salt, target.slots) == (before.route.salt, before.slots)
    carryover = target.carryover
    if route.salt == before.route.salt:  # what was carried over stays on the record
        carryover = before.carryover
        if route.kind == EXPERIMENT and not is_same_split:
            carryover = (*carryover, number)
    return Revision(
        route=route,
        slots=target.slots,
        epoch=before.epoch if is_same_split else number,
        origin=origin,
        generation=before.generation,
        carryover=carryover,
        warm=_still_warm(before, route, origin.created_ms),
    )


def deleted(before: Revision, origin: Origin) -> Revision:
    """Return the revision that takes a route out of force; its content stays for an undo."""
    route = replace(before.route, revision=before.route.revision + 1)
    return replace(before, route=route, origin=origin, is_deleted=True, warm=())


def restored(held: Revision, stored_position: tuple[int, int], origin: Origin) -> Revision:
    """Return what a replica holds as a new generation, above whatever the store has."""
    generation, number = stored_position
    route = replace(held.route, revision=max(held.route.revision, number) + 1)
    newest = max(held.generation, generation) + 1
    return replace(held, route=route, origin=origin, generation=newest)


def with_weights(route: Route, weights: Mapping[str, Decimal], take_from: str = "") -> Route:
    """Return the route with other weights.

    Args:
        route: as it is.
        weights: percent by variant; with `take_from` only those that change, else all.
        take_from: the variant whose weight makes the sum 100 again; empty: none.

    Raises:
        RouteError: an unknown variant, a weight that cannot be, a sum that is not 100.
    """
    sizes, faults = _asked_sizes(route, weights)
    if take_from and take_from not in sizes:
        faults.append(Fault(("take_from",), f"there is no variant {take_from!r}"))
    elif take_from in weights:
        faults.append(Fault(("take_from",), f"{take_from!r} is given a weight as well"))
    elif not take_from and (missing := sorted(sizes.keys() - weights.keys())):
        names = ", ".join(missing)
        faults.append(Fault(("weights",), f"no weight for {names}: give all, or take_from"))
    if faults:
        raise RouteError(*faults)
    if take_from:
        sizes[take_from] = SLOTS - sum(n for name, n in sizes.items() if name != take_from)
        if sizes[take_from] < 0:
            most = document.percent(route.sizes[take_from])
            raise RouteError(Fault(("take_from",), f"{take_from!r} has only {most} % to give"))
    elif (total := sum(sizes.values())) != SLOTS:
        sentence = f"weights sum to {Decimal(total) / PERCENT:f}, not 100"
        raise RouteError(Fault(("weights",), sentence))
    return _resized(route, sizes)


def _asked_sizes(
    route: Route, weights: Mapping[str, Decimal]
) -> tuple[dict[str, int], list[Fault]]:
    """Return the sizes with the valid weights written in, and what is wrong with the others."""
    sizes, faults = route.sizes, list[Fault]()
    for name, weight in weights.items():
        if name not in sizes:
            faults.append(Fault(("weights", name), f"there is no variant {name!r}"))
            continue
        try:
            sizes[name] = slots_of_weight(weight, path=("weights", name))
        except RouteError as exc:
            faults += exc.faults
    return sizes, faults


def promoted(route: Route, variant: str = "") -> Route:
    """Return the route with a variant's version as the stable one, and all traffic on it.

    Args:
        route: as it is.
        variant: empty: the only one beside the stable one (of those with traffic, if any has).

    Raises:
        RouteError: no such variant, or several and none named.
    """
    others = [v for v in route.variants if v.name != route.stable]
    candidates = [v for v in others if v.slots] or others
    if variant:
        candidates = [v for v in others if v.name == variant]
    if len(candidates) != 1:
        names = ", ".join(v.name for v in candidates or others) or "none"
        sentence = f"{variant!r} cannot be promoted" if variant else "say which to promote"
        raise RouteError(Fault(("variant",), f"{sentence}; beside {route.stable!r}: {names}"))
    winner = candidates[0]
    variants = tuple(
        replace(v, model=winner.model, version=winner.version) if v.name == route.stable else v
        for v in route.variants
    )
    return _resized(replace(route, variants=variants), {route.stable: SLOTS})


def aborted(route: Route) -> Route:
    """Return the route with all traffic on its stable variant.

    Rules that lead elsewhere are disabled, so that an undo finds them; testers who choose their
    variant by a header may go on: they know what they ask for.
    """
    rules = tuple(
        rule if rule.to in (route.stable, BY_HEADER) else replace(rule, is_enabled=False)
        for rule in route.rules
    )
    return _resized(replace(route, rules=rules), {route.stable: SLOTS})


def merge(before: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a JSON merge patch (RFC 7396): tables merge, null removes, all else replaces."""
    merged = dict(before)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            old = merged.get(key)
            merged[key] = merge(old if isinstance(old, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def moved_share(before: Revision | None, after: Revision, *, versions: bool = False) -> Decimal:
    """Return the share of keys, in percent, that get another variant, or another model version.

    The two differ: a promotion moves the canary's keys to the stable variant without giving them
    another version, and gives all others one without moving them.
    """
    if before is None:
        return Decimal(100)
    old, new = (_labelled(revision, versions=versions) for revision in (before, after))
    if before.route.salt == after.route.salt:
        return Decimal(slot_map.moved_slots(old, new)) / PERCENT
    was = slot_map.owned_slots(old)
    shares = (
        Decimal(n) / SLOTS * was.get(label, 0) / SLOTS
        for label, n in slot_map.owned_slots(new).items()
    )
    return ((1 - sum(shares, Decimal(0))) * 100).quantize(Decimal("0.0001")).normalize()


def _labelled(revision: Revision, *, versions: bool) -> tuple[SlotRange, ...]:
    """Return the slot ranges, owned by variants or by the versions that these stand for."""
    if not versions:
        return revision.slots
    labels = {v.name: f"{v.model}/{v.version}" for v in revision.route.variants}
    return tuple(r._replace(owner=labels[r.owner]) for r in revision.slots)


def _resized(route: Route, sizes: Mapping[str, int]) -> Route:
    variants: tuple[Variant, ...] = tuple(
        replace(v, slots=sizes.get(v.name, 0)) for v in route.variants
    )
    return replace(route, variants=variants)


def _is_locked(old: Route, new: Route) -> bool:
    """Whether a change touches what an experiment that goes on compares: who gets what."""
    if old.kind != EXPERIMENT or new.kind != EXPERIMENT:
        return False
    return set(old.variants) != set(new.variants) or old.salt != new.salt


def _still_warm(before: Revision, route: Route, now_ms: int) -> tuple[Warm, ...]:
    """Return the versions that the route has left and whose rollback window is still open."""
    used = {(model, version) for _, model, version in route.targets()}
    until_ms = now_ms + route.rollback_window_s * _S_MS
    kept = {(w.model, w.version): w.until_ms for w in before.warm}
    left = {(v.model, v.version): until_ms for v in before.route.variants}
    return tuple(
        Warm(model=model, version=version, until_ms=until)
        for (model, version), until in sorted((kept | left).items())
        if (model, version) not in used and until > now_ms
    )
