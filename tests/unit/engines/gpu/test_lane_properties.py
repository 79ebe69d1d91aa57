"""Random interleavings of acquire, submit, collect and release, against what the model says."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import Lease
from engines.errors import DeviceFailed, EngineError, OutOfMemory
from engines.gpu.engine import LaneEngine
from engines.gpu.host import WORK, HostMemory
from tests.support.lanes import (
    MAX_ROWS,
    MAX_WIDTH,
    Arrays,
    assert_answers,
    batch_of,
    build,
    mixed,
    shapes_of,
)

MODEL = mixed()
STEPS = ("acquire", "acquire", "abandon", "submit", "submit", "collect", "collect", "release")


class Reference:
    """What a lane engine should do, as lists of leases; drives one and checks every step."""

    def __init__(self, engine: LaneEngine, draw: random.Random) -> None:
        self.engine = engine
        self.draw = draw
        self.leased: list[tuple[Lease, Arrays]] = []
        self.submitted: deque[tuple[Lease, Arrays]] = deque()
        self.collected: list[tuple[Lease, Arrays, Arrays]] = []
        self.released: list[Lease] = []
        self.failed: list[Lease] = []
        self.seed = 0

    def step(self, what: str) -> None:
        getattr(self, what)()
        for _, batch, outputs in self.collected:  # views hold until their lease ends
            assert_answers(outputs, MODEL, batch)

    @property
    def in_use(self) -> int:
        return len(self.leased) + len(self.submitted) + len(self.collected) + len(self.failed)

    def acquire(self) -> None:
        self.seed += 1
        rows, width = self.draw.randint(0, MAX_ROWS), self.draw.randint(1, MAX_WIDTH)
        batch = batch_of(MODEL, rows, width, self.seed)
        if self.in_use == self.engine.lanes:
            with pytest.raises(RuntimeError, match="in use"):
                self.engine.acquire(shapes_of(batch))
            return
        lease = self.engine.acquire(shapes_of(batch))
        assert {name: array.shape for name, array in lease.inputs.items()} == shapes_of(batch)
        self.leased.append((lease, batch))

    def abandon(self) -> None:
        if self.leased:
            self.let_go(self.leased.pop()[0])

    def submit(self) -> None:
        if not self.leased:
            return
        lease, batch = self.leased.pop(self.draw.randrange(len(self.leased)))
        for name, array in lease.inputs.items():
            array[...] = batch[name]
        try:
            self.engine.submit(lease)
        except BaseException:
            self.failed.append(lease)
            raise
        self.submitted.append((lease, batch))

    def collect(self) -> None:
        if not self.submitted:
            return
        lease, batch = self.submitted.popleft()
        try:
            outputs = self.engine.collect(lease)
        except BaseException:
            self.failed.append(lease)
            raise
        self.collected.append((lease, batch, outputs))

    def release(self) -> None:
        for lease, _ in self.submitted:
            with pytest.raises(RuntimeError):
                self.engine.release(lease)
        if self.collected:
            self.let_go(self.collected.pop(self.draw.randrange(len(self.collected)))[0])

    def let_go(self, lease: Lease) -> None:
        self.engine.release(lease)
        self.released.append(lease)
        for old in self.released[-3:]:
            with pytest.raises(RuntimeError, match="released before"):
                self.engine.release(old)

    def finish(self) -> None:
        """Bring every lane home."""
        while self.leased:
            self.abandon()
        while self.submitted:
            self.step("collect")
        while self.collected:
            self.release()


@settings(max_examples=200)
@given(
    lanes=st.integers(1, 4),
    steps=st.lists(st.sampled_from(STEPS), min_size=10, max_size=120),
    seed=st.integers(0, 2**20),
    is_hasty=st.booleans(),
    has_graphs=st.booleans(),
)
def test_any_interleaving_gives_every_batch_its_own_answer(
    lanes: int, steps: list[str], seed: int, is_hasty: bool, has_graphs: bool
) -> None:
    memory = HostMemory(haste=random.Random(seed) if is_hasty else None)
    engine, _ = build(memory, MODEL, lanes=lanes, has_graphs=has_graphs)
    reference = Reference(engine, random.Random(seed))
    for what in steps:
        reference.step(what)
    reference.finish()
    leases = [engine.acquire({"x": (1, 1), "k": (1,)}) for _ in range(lanes)]
    assert len(leases) == lanes
    engine.close()
    assert memory.leaks == ()


@settings(max_examples=200)
@given(
    lanes=st.integers(1, 3),
    steps=st.lists(st.sampled_from(STEPS), min_size=10, max_size=80),
    faults=st.lists(
        st.tuples(
            st.sampled_from(("copy_in", "record", "hold", "call", "copy_out", "wait", "launch")),
            st.integers(0, 20),
        ),
        max_size=3,
    ),
    is_lost=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_faults_at_any_place_lose_no_lane_and_give_no_wrong_answer(
    lanes: int, steps: list[str], faults: list[tuple[str, int]], is_lost: bool, seed: int
) -> None:
    memory = HostMemory(haste=random.Random(seed))
    engine, _ = build(memory, MODEL, lanes=lanes, has_graphs=True)
    for what, after in faults:
        memory.fail_next(what, OutOfMemory("host"), after=after)
    if is_lost:
        memory.fail_next(WORK, DeviceFailed("host", "lost"), after=seed % 50)
    reference = Reference(engine, random.Random(seed))
    raised: list[EngineError] = []
    for what in (*steps, *(["abandon", "collect", "release"] * lanes)):
        try:
            reference.step(what)
        except (OutOfMemory, DeviceFailed) as exc:
            raised.append(exc)
        while reference.failed:
            reference.let_go(reference.failed.pop())
    while reference.collected:
        reference.release()
    failures = [exc for exc in raised if isinstance(exc, DeviceFailed)]
    assert len(set(failures)) <= 1
    assert raised[len(raised) - len(failures) :] == failures  # after the first, no other error
    free = lanes - reference.in_use
    assert f"{free} of {lanes} lanes free" in repr(engine)
    assert not reference.in_use
    engine.close()
    assert memory.leaks == ()
