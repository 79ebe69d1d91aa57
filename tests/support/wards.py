"""A batcher whose instances may lose their device, and somebody who makes new ones of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engines import revival
from engines.base import BatchPolicy
from engines.batcher import Batcher
from engines.errors import InstanceFailed
from engines.executed import BatchReport
from engines.fake import FakeEngine, Script
from engines.instance import Host, Instance
from engines.laned import LanedInstance
from tests.support.batching import (
    ECHO_INPUT,
    ECHO_OUTPUT,
    HANG_S,
    Gate,
    Reply,
    make_request,
    until,
)
from tests.support.laned import LanedScript, ScriptedLaned

FATAL = 13.0


class Ward:
    """A batcher, its instances, and whoever makes new ones of them."""

    def __init__(
        self, *, lanes: tuple[int, ...], max_batch_size: int, is_revived: bool, is_gated: bool
    ) -> None:
        self.gate = Gate()
        self.lanes = lanes
        self.is_gated = is_gated
        self.max_batch_size = max_batch_size
        self.engines: list[FakeEngine | ScriptedLaned] = []
        """Every one ever made."""
        self.may_load = threading.Event()
        self.is_loading = threading.Event()
        self.troubles: list[str] = []
        self.reports: list[BatchReport] = []
        self.batcher = Batcher(
            model="m",
            version="1",
            policy=BatchPolicy(max_batch_size=max_batch_size),
            instances=[self.make(number) for number in range(len(lanes))],
            on_batch=self.reports.append,
            revive=self.revive if is_revived else None,
        )
        self.batcher.on_trouble = self.troubles.append

    def make(self, number: int) -> Host:
        """Make an instance; one of no lanes is a plain one."""
        name, lanes = f"m/1#{number}", self.lanes[number]
        if lanes:
            script = LanedScript(dies_in_collect_on=FATAL)
            laned = ScriptedLaned(lanes, script=script, max_batch_size=self.max_batch_size)
            if self.is_gated:
                laned._wait = self.gate
            self.engines.append(laned)
            return LanedInstance(name=name, model="m", version="1", engine=laned)
        engine = FakeEngine(
            inputs=(ECHO_INPUT,),
            outputs=(ECHO_OUTPUT,),
            max_batch_size=self.max_batch_size,
            script=Script(die_on=FATAL, latency_s=1.0 if self.is_gated else 0.0),
            sleep=self.gate,
        )
        self.engines.append(engine)
        return Instance(name=name, model="m", version="1", engine=engine)

    async def revive(self, lost: Host) -> Host:
        def load() -> Host:
            self.is_loading.set()
            assert self.may_load.wait(HANG_S)
            return self.make(int(lost.name[-1]))

        return await revival.revive(lost, load, first_delay_s=0)

    def submit(self, *values: float) -> Reply:
        reply = Reply()
        self.batcher.submit(make_request(values, on_done=reply))
        return reply

    async def kill(self) -> None:
        """Let the device of one instance fail."""
        assert isinstance(await self.submit(FATAL).error(), InstanceFailed)


@asynccontextmanager
async def open_ward(
    *lanes: int, max_batch_size: int = 8, is_revived: bool = True, is_gated: bool = False
) -> AsyncIterator[Ward]:
    ward = Ward(
        lanes=lanes, max_batch_size=max_batch_size, is_revived=is_revived, is_gated=is_gated
    )
    try:
        yield ward
    finally:
        ward.gate.open()
        await asyncio.wait_for(ward.batcher.close(), HANG_S)
        ward.may_load.set()
        await until(lambda: all(engine.is_closed for engine in ward.engines))
        found = ward.batcher.statistics()
        assert found.in_flight == 0
        assert found.accepted == found.answered + found.failed + found.cancelled
