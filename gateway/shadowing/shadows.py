"""All shadows of the gateway: which lanes there are, and which copy each one uses.

Knows how a copy is loaded (a callable) and that lanes count; knows no route document and no
sampling: the pipeline says which requests are eligible and which of them are sampled. Read next:
lane.py. Event loop's thread only.

Copies are loaded and closed in the background. A lane without a copy drops what it is offered as
`not_ready`. A copy that takes over lets the one before it finish what it has. An engine that hangs
keeps its copy from closing for ever; nobody waits for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping

from engines.errors import EngineError
from engines.executed import Executed
from engines.served import ServedVersion
from gateway.prediction_log.record_sink import RecordSink
from gateway.shadowing.counts import Mirrored, ShadowStatistics
from gateway.shadowing.lane import ShadowLane
from router.routes import Shadow

LaneKey = tuple[str, str]
"""Names of the route and of the shadow."""

_log = logging.getLogger(__name__)


class Shadows:
    """The lanes by (route, shadow name).

    Args:
        load_copy: loads a private copy of a version, with one instance and a queue of its own, and
            warms it up; raises EngineError. Cancelled, it closes the copy itself.
        log: where the records of the answers go.
        on_answer: shown each answer with the request it belongs to, on the event loop, after its
            record was offered. Who keeps either of the two keeps its tensors alive, uncounted.
    """

    def __init__(
        self,
        *,
        load_copy: Callable[[str, str], Awaitable[ServedVersion]],
        log: RecordSink,
        on_answer: Callable[[Mirrored, Executed], None] | None = None,
    ) -> None:
        self._load_copy = load_copy
        self._prediction_log = log
        self._on_answer = on_answer
        self._lanes: dict[LaneKey, ShadowLane] = {}
        self._loads: dict[ShadowLane, asyncio.Task[None]] = {}
        self._outdated: set[ShadowLane] = set()
        """Lanes whose load under way may be of files that have changed since it began."""
        self._background: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Shadows {len(self._lanes)} lanes, {len(self._loads)} loading>"

    def offer(self, mirrored: Mirrored, shadow: str, is_sampled: bool) -> None:
        """Count an eligible request, and send a copy of it if it is sampled and there is room.

        O(1), never raises, never waits. Of a shadow that is not in force, as in the moment between
        a route and its shadows changing, nothing is counted.
        """
        lane = self._lanes.get((mirrored.name, shadow))
        if lane is not None:
            lane.offer(mirrored, is_sampled)

    def apply(self, wanted: Mapping[LaneKey, Shadow]) -> None:
        """Make these the shadows in force. Returns at once; copies come and go in the background.

        A shadow that keeps its model and version keeps its copy, its counters and what is in
        flight, under its new limits. Any other change of it is a removal and a new shadow. What is
        in flight in a removed one is given up.
        """
        if self._is_closed:
            return
        for key, lane in list(self._lanes.items()):
            shadow = wanted.get(key)
            if shadow is not None and _target(shadow) == _target(lane.shadow):
                lane.shadow = shadow
            else:
                del self._lanes[key]
                self._shut(lane)
        for key, shadow in wanted.items():
            if key not in self._lanes:
                lane = ShadowLane(shadow, log=self._prediction_log, on_answer=self._on_answer)
                self._lanes[key] = lane
                self._start_load(lane)

    def reload(self, model: str) -> None:
        """Load the copies of a model again, which has changed; the old ones serve meanwhile."""
        if self._is_closed:
            return
        for lane in self._lanes.values():
            if lane.shadow.model == model:
                self._start_load(lane)

    def statistics(self) -> dict[LaneKey, ShadowStatistics]:
        """Return a frozen copy of the counters of each shadow in force."""
        return {key: lane.statistics() for key, lane in self._lanes.items()}

    async def close(self) -> None:
        """Give everything up, now: what is in flight or offered later is dropped as `shutdown`.

        Waits for nothing: the copies close in the background, and one whose engine hangs is left
        behind. Call it before the live drain, whose time the copies then have. Idempotent.
        """
        if not self._is_closed:
            self._is_closed = True
            for lane in self._lanes.values():
                self._shut(lane)

    def _shut(self, lane: ShadowLane) -> None:
        self._outdated.discard(lane)
        load = self._loads.pop(lane, None)
        if load is not None:
            load.cancel()
        served = lane.serving()
        lane.shut()
        if served is not None:
            self._retire(lane, served, "the shadow is no longer wanted")

    def _start_load(self, lane: ShadowLane) -> None:
        """Load a copy for a lane, or once more after the load under way."""
        if lane in self._loads:
            self._outdated.add(lane)
        else:
            self._loads[lane] = self._run(self._load(lane))

    async def _load(self, lane: ShadowLane) -> None:
        is_newest = False
        while not is_newest:
            self._outdated.discard(lane)
            await self._load_once(lane)
            is_newest = lane not in self._outdated
        del self._loads[lane]

    async def _load_once(self, lane: ShadowLane) -> None:
        shadow = lane.shadow
        extra: dict[str, object] = {"shadow": shadow.name, "model": shadow.model}
        extra["version"] = shadow.version
        try:
            served = await self._load_copy(shadow.model, shadow.version)
            before = lane.serving()
            lane.use(served)
        except EngineError as exc:
            lane.reason = str(exc)
            _log.error("shadow unavailable", extra=extra | {"reason": lane.reason})
        except Exception as exc:  # a fault in loading is no reason to serve worse
            lane.reason = "it failed to load; the server's log has the details"
            _log.error("shadow unavailable", exc_info=exc, extra=extra)
        else:
            _log.info("shadow ready", extra=extra)
            if before is not None:
                self._retire(lane, before, "replaced by a reload")

    def _retire(self, lane: ShadowLane, served: ServedVersion, why: str) -> None:
        try:
            served.retire(why)
        except EngineError:
            return  # the repository has closed it already
        self._run(self._forget_closed(lane, served))

    async def _forget_closed(self, lane: ShadowLane, served: ServedVersion) -> None:
        await served.drained()
        lane.forget(served)

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)  # the event loop itself holds tasks only weakly
        task.add_done_callback(self._background.discard)
        return task


def _target(shadow: Shadow) -> tuple[str, str]:
    return shadow.model, shadow.version
