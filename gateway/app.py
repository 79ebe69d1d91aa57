"""The composition root: the one file that knows every concrete class, and how to start and stop.

Start: bind every port, so that a taken one is an error at once; serve health and metrics while the
models load; become ready. Stop, in this written order:
  1. refuse: not ready, still live; new requests get UNAVAILABLE/503;
  2. wait, at most drain_timeout_s, until every accepted request is answered; the listeners stay
     open meanwhile, so that probes go on seeing a live process; past the limit, answer what is
     left with UNAVAILABLE/503;
  3. close the predict listeners, within CLOSE_S or what is left of the limit, then the engines,
     within CLOSE_S: nobody waits for an answer of theirs any more, and one that hangs (a shadow's,
     or one whose request has expired) is left behind;
  4. ship the prediction log, at most prediction_log.shutdown_s; the next start ships what is left
     in the spool;
  5. leave the route store, close the listeners that people watch (metrics, admin), last.
Shadows are dropped at the first step: they never delay a drain.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from engines import registry
from engines.executed import BatchReport
from engines.nvml import Sampler
from engines.repository import Repository
from engines.served import ServedVersion
from gateway import __version__
from gateway import config as configuration
from gateway.accounts import Accounts
from gateway.catalog import Catalog, RepositoryControl
from gateway.config import Config
from gateway.directory import Directory
from gateway.errors import StatusTable
from gateway.feedback import Feedback
from gateway.feedback_metrics import FeedbackCollector
from gateway.front_door import FrontDoor
from gateway.garbage import spare_the_collector
from gateway.gpu_metrics import GpuCollector
from gateway.grpc_api.feedback import FeedbackService
from gateway.grpc_api.service import InferenceService
from gateway.http_api import admin, metrics_page, predict
from gateway.http_api.admin_routes import Access, RouteEndpoints
from gateway.http_api.fast.exchange import Service
from gateway.http_api.feedback import FeedbackEndpoint
from gateway.http_api.listener import HttpListener
from gateway.lifecycle import Lifecycle
from gateway.listener_metrics import ListenerCollector
from gateway.metrics import MetricsCollector
from gateway.model_config import ModelConfigs
from gateway.pipeline import Pipeline
from gateway.prediction_log.log import PredictionLog
from gateway.prediction_log.record_sink import NoPredictionLog
from gateway.principals import Principals
from gateway.repository_poll import RepositoryPoll, fingerprint
from gateway.route_metrics import RouteCollector
from gateway.route_plane import RoutePlane
from router.table import RouteTable

logger = logging.getLogger(__name__)

CLOSE_S: Final = 2.0
"""Least time for answers to be sent and for engines to end; an engine that hangs is left behind."""


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports that were bound; they differ from the configured ones where those are 0.

    0 here: front processes have the listener.
    """

    http: int
    grpc: int
    metrics: int
    admin: int


class App:
    """One gateway process. Make it on a running event loop.

    Args:
        config: checked.
        root: the model repository's folder.
        base: the configuration file's folder.
        has_front_door: whether the predict listeners are here; False: front processes have them,
            and ask what they need of `pipeline`, `service` and `predict`.
    """

    def __init__(
        self, config: Config, root: Path, base: Path, *, has_front_door: bool = True
    ) -> None:
        self.config = config
        self.lifecycle = Lifecycle()
        self.statuses = StatusTable(config.server.overload_codes)
        self.routes = RouteTable()
        self.accounts = Accounts()
        self._gpus = Sampler()
        self.principals = Principals(config.principals)
        configs = ModelConfigs(settings=config.models, usable_cores=usable_cores(), base=base)
        self.repository = Repository(
            root=root,
            read_spec=configs.read_spec,
            loaders=registry.loaders(),
            on_batch=self._batch_ended,
        )
        # A free port is not known before it is bound; the process is as good a name.
        port = configuration.address(config.server.http, path="$.server.http")[1] or os.getpid()
        self.replica = config.server.replica or f"{socket.gethostname()}-{port}"
        self.log = self._make_log(base)
        # Draws need spread, not secrecy; the system's own randomness costs a call into the kernel.
        draw = random.Random(random.SystemRandom().getrandbits(128)).random
        directory = Directory(
            routes=self.routes, repository=self.repository, principals=self.principals, draw=draw
        )
        self.plane = RoutePlane(
            control=config.control,
            redis=config.redis,
            state=base / config.control.state,
            replica=self.replica,
            repository=self.repository,
            table=self.routes,
            books=self.accounts.routes,
            log=self.log,
            draw=draw,
        )
        self.catalog = Catalog(
            directory=directory,
            lifecycle=self.lifecycle,
            statistics=self.accounts.statistics,
            configs=configs,
            pinned=self.plane.pins,
            on_load=self.plane.shadows.reload,
        )
        self.pipeline = Pipeline(
            directory=directory,
            lifecycle=self.lifecycle,
            accounts=self.accounts,
            log=self.log,
            statuses=self.statuses,
            watch=self.plane.watch,
            in_flight_bytes=config.server.limits.in_flight_bytes,
        )
        self._poll: asyncio.Task[None] | None = None
        self._root = root
        self._overrides_ignored = directory.overrides_ignored
        self._make_services(directory)
        self._front_door = self._make_front_door(base) if has_front_door else None
        self._make_listeners()

    def _make_log(self, base: Path) -> PredictionLog | NoPredictionLog:
        settings, redis = self.config.prediction_log, self.config.redis
        if redis is None or not settings.enabled:
            why = (
                "there is no [redis] section"
                if redis is None
                else "prediction_log.enabled is false"
            )
            logger.warning("serving without a prediction log", extra={"reason": why})
            return NoPredictionLog()
        return PredictionLog(settings, url=redis.url, replica=self.replica, base=base)

    def _batch_ended(self, served: ServedVersion, report: BatchReport) -> None:
        """Count a batch, and send its answers once their records are written."""
        self.accounts.metrics.observe_batch(served, report)
        self.pipeline.release()

    def _make_services(self, directory: Directory) -> None:
        """Make what answers on the predict listeners, wherever those are."""
        self.feedback = Feedback(
            config=self.config.prediction_log.feedback,
            log=self.log,
            lifecycle=self.lifecycle,
            knows=directory.knows,
            principals=self.principals,
        )
        allowed = self.config.models.control == "explicit"
        control = RepositoryControl(self.catalog, is_allowed=allowed)
        self.service = InferenceService(
            pipeline=self.pipeline,
            catalog=self.catalog,
            control=control,
            statuses=self.statuses,
            feedback_service=FeedbackService(self.feedback),
        )
        endpoints = predict.PredictEndpoints(
            catalog=self.catalog, control=control, limit_bytes=self.config.server.max_body_bytes
        )
        feedback = FeedbackEndpoint(self.feedback, limit_bytes=self.config.server.max_body_bytes)
        self.predict = predict.make_app(
            endpoints=endpoints, statuses=self.statuses, others=feedback.routes()
        )

    def _make_front_door(self, base: Path) -> FrontDoor:
        server = self.config.server
        http = Service(
            pipeline=self.pipeline,
            catalog=self.catalog,
            statuses=self.statuses,
            limit_bytes=server.max_body_bytes,
        )
        return FrontDoor(
            server,
            base,
            http=http,
            app=self.predict,
            service=self.service,
            statuses=self.statuses,
        )

    def _make_listeners(self) -> None:
        server = self.config.server
        access = Access(self.principals, is_required=self.config.control.auth == "token")
        apps = {
            "metrics": metrics_page.make_app(self._make_registry()),
            "admin": admin.make_app(
                admin.AdminEndpoints(catalog=self.catalog, access=access),
                RouteEndpoints(plane=self.plane, access=access),
                self.statuses,
            ),
        }
        self._http = {
            name: HttpListener(
                name,
                app,
                *configuration.address(getattr(server, name), path=f"$.server.{name}"),
            )
            for name, app in apps.items()
        }
        door = self._front_door
        self.ports = Ports(
            http=door.http_port if door else 0,
            grpc=door.grpc_port if door else 0,
            metrics=self._http["metrics"].port,
            admin=self._http["admin"].port,
        )

    def _make_registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(
            MetricsCollector(
                version=__version__,
                requests=self.accounts.metrics,
                versions=self.repository.versions,
                log=self.log.statistics if isinstance(self.log, PredictionLog) else lambda: None,
                is_ready=lambda: self.lifecycle.is_ready,
            )
        )
        registry.register(GpuCollector(lambda: self._gpus.samples))
        registry.register(FeedbackCollector(self.feedback))
        registry.register(RouteCollector(self.plane, overrides_ignored=self._overrides_ignored))
        if self._front_door is not None:
            registry.register(ListenerCollector(self._front_door))
        return registry

    async def start(self) -> None:
        """Open the listeners, load the models, become ready."""
        await self.log.start()
        self._gpus.start()
        for listener in self._http.values():
            await listener.start()
        if self._front_door is not None:
            await self._front_door.start()
        await self.plane.open(configuration.routes(self.config))
        poll_s = self.config.models.poll_s
        found = await asyncio.to_thread(fingerprint, self._root) if poll_s else {}
        await self.repository.start(self.plane.pins())
        await self.plane.start()
        if poll_s:
            poll = RepositoryPoll(
                self._root,
                poll_s=poll_s,
                loaded=found,
                load=self.catalog.load,
                unload=self.catalog.unload,
            )
            self._poll = asyncio.create_task(poll.run(), name="repository poll")
        if self.lifecycle.is_draining:
            return
        self.lifecycle.serve()
        if self._front_door is None:
            logger.info("engine ready", extra={"routes": sorted(self.routes.snapshot)})
            return
        await self._front_door.set_ready(is_ready=True)
        ports = {name: getattr(self.ports, name) for name in self.ports.__slots__}
        logger.info("serving", extra={"routes": sorted(self.routes.snapshot), **ports})

    async def stop(self) -> None:
        """Refuse, wait, flush, close: the order in the module's documentation."""
        self.lifecycle.drain()
        logger.info("draining")
        limit_s = time.monotonic() + self.config.server.drain_timeout_s
        if self._front_door is not None:
            await self._front_door.set_ready(is_ready=False)
        if self._poll is not None:
            self._poll.cancel()
        await self.plane.close_shadows()
        try:
            async with asyncio.timeout(_until(limit_s)):
                await self.pipeline.idle()
        except TimeoutError:
            requests = self.pipeline.in_flight
            logger.error("drain timeout passed", extra={"requests": requests})
            self.pipeline.abandon()
        closing_s = max(CLOSE_S, _until(limit_s))
        if self._front_door is not None:
            await self._front_door.stop(closing_s)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.repository.close()
        except TimeoutError:
            logger.error("an engine has not ended")
        await self.log.close(self.config.prediction_log.shutdown_s)
        await self.plane.close()
        await asyncio.gather(*(listener.stop(CLOSE_S) for listener in self._http.values()))
        self._gpus.stop()
        logger.info("stopped")


def _until(instant_s: float) -> float:
    return max(0.0, instant_s - time.monotonic())


async def serve(config: Config, root: Path, base: Path) -> None:
    """Run a gateway until SIGTERM or SIGINT, then stop it in order."""
    loop = asyncio.get_running_loop()
    stop_asked = asyncio.Event()
    app = App(config, root, base)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_asked.set)
    starting = asyncio.create_task(app.start())
    waiting = asyncio.create_task(stop_asked.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting  # an error while starting ends the process here
        spare_the_collector()
    await waiting
    if not starting.done():
        app.lifecycle.drain()
        await starting
    await app.stop()
