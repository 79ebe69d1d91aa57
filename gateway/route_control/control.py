"""The verbs by which routes are changed, and the questions that are asked about them.

A write reads the store's current revision, checks the writer's condition against it, makes the next
revision (router.changes), has what it names checked and loaded, and compares and sets. So nothing
comes into force that was not checked, and of two writers who start from the same revision one wins.
Knows no HTTP: errors are the gateway's, answers are values.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

from gateway.errors import Conflict, StoreUnavailable, UnknownName
from gateway.route_control.asked import asked, trusted
from gateway.route_control.emergency import Emergencies, Emergency, EmergencyJournal
from gateway.route_control.in_force import PROVISIONAL, Held, behind
from gateway.route_control.questions import RouteQuestions
from gateway.route_control.revision import Change
from gateway.route_control.store import Stale
from gateway.route_control.sync import Sync
from gateway.route_control.targets import Targets
from gateway.route_control.write import (
    Condition,
    Intent,
    Make,
    RevisionMismatch,
    Written,
    audit_entry,
    difference,
    existing,
    origin_of,
    unknown,
)
from router import changes, document
from router.diff import diff
from router.revisions import Origin, Revision
from router.routes import Route

GIVEN_BACK: Final = "the store had no such route"
"""Reason in the audit where a replica wrote a route that a store had lost, or never had."""

logger = logging.getLogger(__name__)

ABORT_PATIENCE_S: Final = 0.1
"""Longest wait for the store before this replica carries an abort out by itself."""
ABORT_TRIES: Final = 20
"""How often an abort is repeated when others write at the same time."""


class RouteControl:
    """Changes routes. Use from the event loop's thread only."""

    def __init__(
        self, *, sync: Sync, questions: RouteQuestions, targets: Targets, journal: EmergencyJournal
    ) -> None:
        self.sync = sync
        self.questions = questions
        self.in_force = questions.in_force
        self._targets = targets
        self._emergencies = Emergencies(in_force=self.in_force, journal=journal)
        self._telling: set[asyncio.Task[Written]] = set()
        self._store = sync.stores.routes
        sync.on_round += [self._give_back, self._reconcile]

    @property
    def emergencies(self) -> Mapping[str, Emergency]:
        """Aborts that only this replica has carried out, by route."""
        return self._emergencies.by_route

    async def put(
        self, name: str, body: Mapping[str, Any], condition: Condition, intent: Intent
    ) -> Written:
        """Create or replace a route; raises as `_write`."""

        def make(before: Revision | None, origin: Origin) -> Revision:
            route = document.read(body, name=name)
            if before is None or before.is_deleted:
                if not condition.must_not_exist:
                    raise unknown(name)
                return changes.first(route, origin, after=before)
            return changes.follow(before, route, origin, intent.permission(name))

        verb = "create" if condition.must_not_exist else "replace"
        return await self._write(name, verb, make, condition, intent)

    async def patch(
        self, name: str, patch: Mapping[str, Any], condition: Condition, intent: Intent
    ) -> Written:
        """Merge a patch into a route; raises as `_write`."""

        def make(before: Revision, origin: Origin) -> Revision:
            merged = changes.merge(document.write(before.route), patch)
            route = document.read(merged, name=name)
            return changes.follow(before, route, origin, intent.permission(name))

        return await self._write(name, "patch", existing(name, make), condition, intent)

    async def set_weights(
        self,
        name: str,
        weights: Mapping[str, Decimal],
        take_from: str,
        condition: Condition,
        intent: Intent,
    ) -> Written:
        """Change weights; raises as `_write`."""

        def make(before: Revision, origin: Origin) -> Revision:
            route = changes.with_weights(before.route, weights, take_from)
            return changes.follow(before, route, origin, intent.permission(name))

        return await self._write(name, "setWeights", existing(name, make), condition, intent)

    async def promote(
        self, name: str, variant: str, condition: Condition, intent: Intent
    ) -> Written:
        """Make a variant's version the stable one; ends an experiment. Raises as `_write`."""

        def make(before: Revision, origin: Origin) -> Revision:
            route = changes.promoted(before.route, variant)
            return changes.follow(before, route, origin, changes.ALWAYS)

        return await self._write(name, "promote", existing(name, make), condition, intent)

    async def abort(self, name: str, intent: Intent) -> Written:
        """Send all traffic to the stable variant, whatever the route's state.

        Needs no version to be loaded and no revision to be named. If the store does not answer at
        once this replica goes ahead; if it is out of reach, or what it has is not intact, the
        abort is this replica's alone, and made known to the store later.

        Raises:
            UnknownName.
        """
        telling = asyncio.get_running_loop().create_task(self._abort_in_store(name, intent))
        self._telling.add(telling)  # goes on where the operator hangs up
        telling.add_done_callback(self._telling.discard)
        done, _ = await asyncio.wait({telling}, timeout=ABORT_PATIENCE_S)
        if not done:  # the answer waits for a slow store; traffic does not
            with contextlib.suppress(UnknownName):
                await self._abort_here(name, intent, why="the store is slow")
        try:
            written = await telling
        except (StoreUnavailable, Conflict) as exc:
            return await self._abort_here(name, intent, why=str(exc))
        await self._emergencies.settle(name)
        return written

    async def _abort_in_store(self, name: str, intent: Intent) -> Written:
        """Abort for all replicas; raises UnknownName, StoreUnavailable, Conflict."""

        def make(before: Revision, origin: Origin) -> Revision:
            return changes.follow(before, changes.aborted(before.route), origin, changes.ALWAYS)

        for _ in range(ABORT_TRIES):
            try:
                return await self._write(
                    name, "abort", existing(name, make), Condition(is_any=True), intent
                )
            except RevisionMismatch as exc:
                if exc.current is None or exc.current.revision.is_deleted:
                    raise unknown(name) from None
        raise Conflict(f"route {name!r} is being changed all the time")

    async def undo(
        self, name: str, to_revision: int, condition: Condition, intent: Intent
    ) -> Written:
        """Go back to an earlier revision (0: the one before); raises as `_write`."""
        current = await self.questions.current(name)
        if current is None:
            raise unknown(name)
        number = to_revision or current.revision.route.revision - 1
        if not number:
            raise Conflict(f"route {name!r} has one revision: there is nothing to go back to")
        target = await self.questions.revision(name, number)

        def make(before: Revision | None, origin: Origin) -> Revision:
            assert before is not None  # it was read just now, and names never go
            return changes.back_to(before, target, origin)

        return await self._write(name, "undo", make, condition, intent)

    async def delete(self, name: str, condition: Condition, intent: Intent) -> Written:
        """Take a route out of force; an undo brings it back. Raises as `_write`."""
        return await self._write(name, "delete", existing(name, changes.deleted), condition, intent)

    async def restore(self, name: str, intent: Intent) -> Written:
        """Write what this replica serves into the store, as a new generation.

        For a store that has lost or gone back behind what replicas serve. An emergency abort is
        part of what is served.

        Raises:
            UnknownName, StoreUnavailable, RevisionMismatch.
        """
        held = self.in_force.held.get(name)
        if held is None:
            raise unknown(name)
        head = (await asked(self._store.heads())).get(name)
        at = head.position if head else None
        origin = origin_of("restore", intent, held.revision.route.revision)
        served, aborted = held.revision, self.in_force.overridden(name)
        if aborted is not None:
            served = changes.follow(served, aborted, origin, changes.ALWAYS)
        after = changes.restored(served, at or (0, 0), origin)
        if not intent.is_dry_run:
            await self._set(Held.of(after), held.revision, at, held.audit_digest, intent)
            await self._emergencies.settle(name)
        return Written(
            before=held.revision,
            after=after,
            is_changed=True,
            is_dry_run=intent.is_dry_run,
            diff=difference(held.revision, after),
        )

    async def seed(self, routes: list[Route]) -> None:
        """Bring the configured routes into the store, where it has none of their name.

        The store wins over the configuration. Where the store is out of reach, and nothing was
        written down, they are served provisionally until it answers.
        """
        for route in routes:
            held = self.sync.newest(route.name)
            if held is not None:
                _warn_if_different(held.revision, route)
                continue
            intent = Intent(actor="sluice.toml", auth="none", source="", reason="configured")
            origin = origin_of("create", intent, 0)
            made = changes.first(route, origin)
            try:
                if not self.sync.statistics().is_store_up:
                    raise StoreUnavailable
                await self._set(Held.of(made), None, None, "", intent)
            except RevisionMismatch:
                await self.sync.look()  # another replica was quicker
            except (StoreUnavailable, Conflict):  # out of reach, or not intact
                self.sync.force(Held.of(replace(made, generation=PROVISIONAL)))

    async def load_emergencies(self) -> None:
        """Carry out again what the journal says that the store does not know yet."""
        await self._emergencies.load()

    async def _write(
        self, name: str, verb: str, make: Make, condition: Condition, intent: Intent
    ) -> Written:
        """Read, check, make, load, compare and set.

        Raises:
            UnknownName, RouteError, ExperimentLocked, RevisionMismatch, StoreUnavailable.
        """
        current = await self.questions.current(name)
        if current is None and not condition.must_not_exist:
            raise unknown(name)
        if current is not None and (why := behind(self.in_force.held.get(name), current)):
            raise Conflict(why)  # what is written there now would be served by nobody
        condition.check(name, current)
        before = current.revision if current else None
        origin = origin_of(verb, intent, before.route.revision if before else 0)
        try:
            after = make(before, origin)
        except changes.ExperimentLocked as exc:
            raise Conflict(str(exc)) from None
        changed = difference(before, after)
        is_changed = bool(changed) or before is None or before.slots != after.slots
        loads = () if after.is_deleted else self._targets.loads(after.route, before)
        is_checked = is_changed and verb not in ("abort", "delete")  # those need nothing loaded
        if is_checked:
            self._targets.check_exists(after.route)
            if intent.is_dry_run:
                self._targets.check_loaded_signatures(after.route)
        if is_changed and not intent.is_dry_run:
            at = current.position if current else None
            previous = current.audit_digest if current else ""
            with self._targets.keeping(after.route):
                if is_checked:
                    await self._prepare(after.route, before.route if before else None)
                await self._set(Held.of(after), before, at, previous, intent)
            await self._emergencies.settle(name)
        return Written(
            before=before,
            after=after if is_changed or before is None else before,
            is_changed=is_changed,
            is_dry_run=intent.is_dry_run,
            loads=loads,
            diff=changed,
        )

    async def _prepare(self, route: Route, known: Route | None) -> None:
        """Load what gets traffic or may, and check that every version fits the stable one."""
        await self._targets.load(route)
        await self._targets.check_signatures(route, known)

    async def _set(
        self,
        after: Held,
        before: Revision | None,
        at: tuple[int, int] | None,
        previous: str,
        intent: Intent,
    ) -> None:
        """Compare and set, then serve it here. Raises RevisionMismatch, StoreUnavailable."""
        name = after.revision.route.name
        entry = audit_entry(before, after.revision, intent, digest=after.digest, previous=previous)
        change = Change.of(name, after.position, after.body, expected=at, audit=entry)
        try:
            await asked(self._store.write(change))
        except Stale as exc:
            current = trusted(exc.current) if exc.current else None
            raise RevisionMismatch(f"route {name!r} was changed meanwhile", current) from None
        self.sync.accept(replace(after, audit_digest=change.after.audit_digest))
        await self.sync.report_quietly()

    async def _abort_here(self, name: str, intent: Intent, why: str) -> Written:
        """Send all traffic to the stable variant on this replica alone."""
        held = self.in_force.held.get(name)
        if held is None or held.revision.is_deleted:
            raise unknown(name)
        before = held.revision
        origin = origin_of("abort", intent, before.route.revision)
        after = changes.follow(before, changes.aborted(before.route), origin, changes.ALWAYS)
        number = before.route.revision  # no store has given it another one
        after = replace(after, route=replace(after.route, revision=number))
        if not intent.is_dry_run:
            emergency = Emergency(
                route=name,
                generation=before.generation,
                revision=before.route.revision,
                actor=intent.actor,
                reason=intent.reason,
                since_ms=origin.created_ms,
            )
            logger.error("an abort cannot be made known now", extra={"route": name, "why": why})
            await self._emergencies.declare(emergency)
        return Written(
            before=before,
            after=after,
            is_changed=True,
            is_dry_run=intent.is_dry_run,
            is_emergency=True,
            diff=difference(before, after),
        )

    async def _reconcile(self) -> None:
        """Make emergency aborts known to the store, now that it answers."""
        for name, emergency in list(self._emergencies.by_route.items()):
            try:
                current = await self.questions.current(name)
                if current is not None and emergency.applies_to(current):
                    at = document.timestamp(emergency.since_ms)
                    reason = f"{emergency.reason} (emergency abort of {self.sync.replica} at {at})"
                    intent = Intent(actor=emergency.actor, auth="journal", source="", reason=reason)
                    await self._abort_in_store(name, intent)
            except (Conflict, UnknownName):
                continue  # not intact, or changed all the time, or just deleted: the next round
            await self._emergencies.settle(name)

    async def _give_back(self) -> None:
        """Bring routes that the store has not, or has lost, into it as they are served here."""
        for name in self.sync.missing:
            held = self.in_force.held[name]
            intent = Intent(actor=self.sync.replica, auth="none", source="", reason=GIVEN_BACK)
            if held.revision.generation == PROVISIONAL:
                held = Held.of(replace(held.revision, generation=1))
            try:
                await self._set(held, None, None, held.audit_digest, intent)
            except (RevisionMismatch, Conflict):
                continue  # another replica was quicker, or what is there cannot be shown


def _warn_if_different(stored: Revision, configured: Route) -> None:
    """Say that the store's route is in force where the configuration has another one."""
    if stored.is_deleted:
        logger.warning("a configured route was deleted", extra={"route": configured.name})
        return
    changed = diff(document.write(configured), document.write(stored.route))
    if changed:
        extra = {"route": configured.name, "revision": stored.route.revision, "diff": changed}
        logger.warning(
            "the stored route differs from the configured one, and is in force", extra=extra
        )
