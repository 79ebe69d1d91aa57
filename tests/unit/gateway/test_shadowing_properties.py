"""Any schedule of offers, completions, expiries, changes and a stop: every request is counted once.

A model beside the lanes counts what was offered to each of them and which of their records came;
the identity is checked after each offer, inside the log, and all the while from the event loop.
Completions are let through by gates, so that Hypothesis decides when; only deadlines pass by the
clock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from engines.base import BatchPolicy
from engines.errors import ModelLoadError
from gateway.shadowing import ShadowDrop, Shadows
from gateway.shadowing.lane import ShadowLane
from tests.support.batching import HANG_S, until
from tests.support.shadows import (
    BAD_ON,
    FAIL_ON,
    PATIENT_MS,
    ROUTE,
    ROW_BYTES,
    Copies,
    KeptRecords,
    assert_exact,
    mirrored,
    shadow,
)

NAMES = ("v3", "v4")
MOST_ITEMS = 6
MOST_BYTES = 10 * ROW_BYTES
BATCH_ROWS = 3
SHORT_MS = 2


requests = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 2.0, FAIL_ON, BAD_ON]), st.integers(1, BATCH_ROWS + 1)),
    min_size=1,
    max_size=8,
)
"""Value and rows of each."""


class ShadowsMachine(RuleBasedStateMachine):
    """Two shadow names, whose versions come, change and go."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.log = KeptRecords()
        self.log.on_offer = self.check
        self.lanes: list[ShadowLane] = []
        """Every lane that ever was, with what this model says of it below."""
        self.offered: Counter[ShadowLane] = Counter()
        self.unsampled: Counter[ShadowLane] = Counter()
        self.versions = 0
        self.is_closed = False
        self.run(self.open())

    def run(self, work: Coroutine[Any, Any, None]) -> None:  # Any: as asyncio has it
        self.loop.run_until_complete(asyncio.wait_for(work, HANG_S))

    async def open(self) -> None:
        policy = BatchPolicy(max_batch_size=BATCH_ROWS, max_queue_rows=8)
        self.copies = Copies(policy=policy, is_gated=True)
        self.shadows = Shadows(load_copy=self.copies.load, log=self.log)
        self.watching = asyncio.create_task(self.watch())

    async def watch(self) -> None:
        while True:
            self.check()
            await asyncio.sleep(0.0002)  # not 0: the engines' threads want the interpreter too

    def check(self) -> None:
        for lane in self.lanes:
            assert_exact(lane.statistics())

    def put(self, wanted: dict[str, tuple[str, int]]) -> None:
        """Put these into force, as name to version and deadline; keep hold of what is new."""
        document = {
            (ROUTE, name): shadow(
                version,
                name=name,
                queue_items=MOST_ITEMS,
                queue_bytes=MOST_BYTES,
                deadline_ms=deadline_ms,
            )
            for name, (version, deadline_ms) in wanted.items()
        }
        before = dict(self.shadows._lanes)
        self.shadows.apply(document)
        for key, lane in self.shadows._lanes.items():
            if before.get(key) is not lane:
                self.lanes.append(lane)

    def in_force(self) -> dict[str, tuple[str, int]]:
        return {
            name: (lane.shadow.version, lane.shadow.deadline_ms)
            for (_, name), lane in self.shadows._lanes.items()
        }

    def send(
        self, name: str, requests: list[tuple[float, int]], *, is_sampled: bool = True
    ) -> None:
        """Offer requests, and count those that are offered to a lane."""
        lane = self.shadows._lanes.get((ROUTE, name))
        for value, rows in requests:
            self.shadows.offer(mirrored(*[value] * rows), name, is_sampled)
            self.check()
            if lane is not None:
                self.offered[lane] += 1
                self.unsampled[lane] += not is_sampled

    @initialize(early=st.integers(0, 2))
    def begin(self, early: int) -> None:
        for name in NAMES:
            self.add_or_replace(name, early)
        self.run(until(lambda: not self.shadows._loads))

    @rule(
        name=st.sampled_from(NAMES),
        requests=requests,
        is_sampled=st.sampled_from([True, True, True, False]),
    )
    def offer(self, name: str, requests: list[tuple[float, int]], is_sampled: bool) -> None:
        async def work() -> None:
            self.send(name, requests, is_sampled=is_sampled)

        self.run(work())

    @rule(name=st.sampled_from(NAMES), requests=requests)
    def offer_and_answer(self, name: str, requests: list[tuple[float, int]]) -> None:
        """Offer, and let batches end until every one has its outcome."""

        async def work() -> None:
            self.send(name, requests)
            lane = self.shadows._lanes.get((ROUTE, name))
            async with asyncio.timeout(HANG_S):
                while lane is not None and lane.statistics().in_flight:
                    for copy in [copy for copy in self.copies.loaded if copy.is_executing]:
                        await copy.end_batch()
                    await asyncio.sleep(0.0002)

        self.run(work())

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        async def work() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(work())

    @rule(choice=st.integers(0, 5))
    def end_a_batch(self, choice: int) -> None:
        # No precondition: which copies are busy depends on threads, and what is drawn must not.
        busy = [copy for copy in self.copies.loaded if copy.is_executing]
        if busy:
            self.run(busy[choice % len(busy)].end_batch())

    @rule(name=st.sampled_from(NAMES))
    def let_deadlines_pass(self, name: str) -> None:
        """Make the deadline short, offer, and wait until those have expired or been answered."""

        async def work() -> None:
            wanted = self.in_force()
            if name not in wanted:
                return
            version, _ = wanted[name]
            self.put(wanted | {name: (version, SHORT_MS)})
            lane = self.shadows._lanes[ROUTE, name]
            before = lane.statistics().in_flight
            self.send(name, [(1.0, 1), (1.0, 2)])
            self.put(wanted | {name: (version, PATIENT_MS)})
            await until(lambda: lane.statistics().in_flight <= before)

        self.run(work())

    @rule(name=st.sampled_from(NAMES), early=st.integers(0, 2))
    def add_or_replace(self, name: str, early: int) -> None:
        """Put a version into force that was not there, and offer before it is loaded."""

        async def work() -> None:
            self.versions += 1
            self.put(self.in_force() | {name: (str(self.versions), PATIENT_MS)})
            self.send(name, [(1.0, 1)] * early)

        self.run(work())

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        async def work() -> None:
            wanted = self.in_force()
            wanted.pop(name, None)
            self.put(wanted)

        self.run(work())

    @rule(can_load=st.booleans())
    def reload(self, can_load: bool) -> None:
        async def work() -> None:
            self.copies.fault = None if can_load else ModelLoadError("not now")
            self.shadows.reload("mnist")
            await until(lambda: not self.shadows._loads)
            self.copies.fault = None

        self.run(work())

    @rule(is_broken=st.booleans())
    def break_or_mend_the_log(self, is_broken: bool) -> None:
        self.log.fault = RuntimeError("no log today") if is_broken else None

    @precondition(lambda self: not self.is_closed and self.versions > 3)
    @rule()
    def close(self) -> None:
        self.is_closed = True
        self.run(self.shadows.close())
        assert all(lane.statistics().in_flight == 0 for lane in self.lanes)

    @invariant()
    def what_was_offered_is_eligible_and_counted_once(self) -> None:
        self.check()
        for lane in self.lanes:
            found = lane.statistics()
            assert found.eligible == self.offered[lane]
            assert found.dropped[ShadowDrop.NOT_SAMPLED] == self.unsampled[lane]

    @invariant()
    def what_is_sent_is_in_the_log_and_nothing_else_is(self) -> None:
        answered = Counter(r.origin.version for r in self.log.records if r.status == 200)
        failed = Counter(r.origin.version for r in self.log.records if r.status == 500)
        for lane in self.lanes:
            found = lane.statistics()
            assert found.sent == answered[lane.shadow.version]
            assert found.dropped[ShadowDrop.ENGINE_ERROR] == failed[lane.shadow.version]
        assert len(self.log.records) == answered.total() + failed.total()

    @invariant()
    def the_bounds_hold(self) -> None:
        for lane in self.lanes:
            found = lane.statistics()
            assert found.in_flight <= MOST_ITEMS
            assert found.held_bytes <= MOST_BYTES
            late_bytes = found.held_bytes - lane._charged_bytes
            assert late_bytes <= len(lane._copies) * BATCH_ROWS * ROW_BYTES
            assert found.in_flight or not lane._charged_bytes

    def teardown(self) -> None:
        async def end() -> None:
            self.watching.cancel()
            await asyncio.wait({self.watching})
            assert self.watching.cancelled(), self.watching.exception()
            await self.shadows.close()
            await self.copies.close()
            await until(lambda: not self.shadows._background)
            for lane in self.lanes:
                found = lane.statistics()
                assert_exact(found)
                assert found.in_flight == found.held_bytes == 0

        self.run(end())
        self.loop.close()


TestShadows = ShadowsMachine.TestCase
TestShadows.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
