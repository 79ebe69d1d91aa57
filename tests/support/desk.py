"""A pipeline over a real repository whose batches end when a test says so (repositories.Shelf)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from engines.repository import Repository
from engines.tensors import Tensor
from gateway.accounts import Accounts
from gateway.config import PrincipalConfig
from gateway.directory import Directory, Target
from gateway.errors import StatusTable
from gateway.lifecycle import Lifecycle
from gateway.pipeline import Call, Pipeline
from gateway.prediction_log.counts import KindCounts, LogStatistics
from gateway.prediction_log.labels import LabelInput
from gateway.prediction_log.record import PredictionRecord
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import StreamKind
from gateway.principals import Principals
from gateway.request import InferRequest, InferResponse, ServedBy
from router.routes import KeySource, Route, Variant
from router.slots import SLOTS
from router.table import RouteTable
from tests.support.batching import HANG_S, rows_of
from tests.support.repositories import Shelf, open_repository

IN_FLIGHT_BYTES: Final = 1 << 30
KEY: Final = KeySource(kind="header", name="x-user-id")


class KeptRecords:
    """A record sink that keeps what it is offered."""

    def __init__(self) -> None:
        self.is_on = True
        self.records: list[PredictionRecord] = []
        self.subject_of: Callable[[InferRequest], str] | None = None

    async def start(self) -> None:
        """Do nothing: records are kept from the beginning."""

    def offer(self, record: PredictionRecord, is_committed: bool = False) -> None:
        """Keep a record."""
        self.records.append(record)

    def commit(self, done: Callable[[DropReason | None], None]) -> None:
        """Say that all is written."""
        done(None)

    def label(self, label: LabelInput) -> bool:
        """Refuse it."""
        return False

    def statistics(self) -> LogStatistics:
        """Return how many records were offered."""
        kept = KindCounts(answered=len(self.records), spooled=len(self.records))
        return LogStatistics(kinds={("", StreamKind.LIVE): kept})

    async def close(self, timeout_s: float) -> None:
        """Do nothing."""


class Answered:
    """The reply of one call: keeps every answer, so that a second one shows."""

    def __init__(self) -> None:
        self.answers: list[InferResponse | Exception] = []
        self.served_by: ServedBy | None = None
        self._came = asyncio.Event()

    def __call__(self, answer: InferResponse | Exception, served_by: ServedBy) -> None:
        self.answers.append(answer)
        self.served_by = served_by
        self._came.set()

    async def answer(self) -> InferResponse | Exception:
        """Wait for the answer; there must be only one."""
        await asyncio.wait_for(self._came.wait(), HANG_S)
        (only,) = self.answers
        return only

    async def values(self) -> list[float]:
        """Wait for an answer that is no error and return the elements of its first output."""
        answer = await self.answer()
        assert isinstance(answer, InferResponse), answer
        return [float(v) for v in answer.outputs[0].array().reshape(-1)]


class Desk:
    """A pipeline under test and everything around it."""

    def __init__(
        self,
        shelf: Shelf,
        repository: Repository,
        routes: list[Route],
        principals: Mapping[str, PrincipalConfig],
        in_flight_bytes: int,
    ) -> None:
        self.shelf = shelf
        self.repository = repository
        self.lifecycle = Lifecycle()
        self.lifecycle.serve()
        self.accounts = Accounts()
        self.statistics = self.accounts.statistics
        self.metrics = self.accounts.metrics
        self.log = KeptRecords()
        self.draws: list[float] = []
        """What the directory draws, in turn; then 0.99."""
        self.directory = Directory(
            routes=RouteTable(routes),
            repository=repository,
            principals=Principals(principals),
            draw=self._draw,
        )
        self.watched: list[tuple[Target, bytes | None]] = []
        """What the pipeline handed to the watch of routes, each with its request's key."""
        self.pipeline = Pipeline(
            directory=self.directory,
            lifecycle=self.lifecycle,
            accounts=self.accounts,
            log=self.log,
            statuses=StatusTable(),
            watch=self,
            in_flight_bytes=in_flight_bytes,
        )

    def _draw(self) -> float:
        return self.draws.pop(0) if self.draws else 0.99

    def admitted(self, call: Call, target: Target) -> None:
        """Keep the target and the key of a request of a watched route."""
        self.watched.append((target, call.key))

    def submit(
        self,
        request: InferRequest,
        then: Callable[[InferResponse | Exception], None] | None = None,
    ) -> tuple[Call, Answered]:
        """Submit a request; `then` runs inside its reply, after it was kept."""
        answered = Answered()

        def reply(answer: InferResponse | Exception, served_by: ServedBy) -> None:
            answered(answer, served_by)
            if then is not None:
                then(answer)

        return self.pipeline.submit(request, reply), answered

    async def block(self, name: str) -> tuple[Call, Answered]:
        """Submit a request and return when it is inside the engine."""
        submitted = self.submit(request_of(name, 0.0))
        await self.shelf.gate.entered()
        return submitted


@asynccontextmanager
async def open_desk(
    shelf: Shelf,
    *routes: Route,
    principals: Mapping[str, PrincipalConfig] | None = None,
    in_flight_bytes: int = IN_FLIGHT_BYTES,
) -> AsyncIterator[Desk]:
    """Serve a shelf through a pipeline; drain at the end."""
    async with open_repository(shelf) as repository:
        yield Desk(shelf, repository, list(routes), principals or {}, in_flight_bytes)


def request_of(name: str, *values: float, version: str = "", **headers: str) -> InferRequest:
    """Return a request of one FP32 row of one element per value; headers with underscores."""
    inputs: tuple[Tensor, ...] = (rows_of(values),)
    lines = {key.replace("_", "-"): value for key, value in headers.items()}
    return InferRequest(
        name=name, version=version, inputs=inputs, header=lines.get, protocol="http"
    )


def route_of(name: str, *arms: tuple[str, str, str, int], key: bool = True) -> Route:
    """Return a route of (variant, model, version, percent)."""
    variants = tuple(
        Variant(name=arm, model=model, version=version, slots=percent * SLOTS // 100)
        for arm, model, version, percent in arms
    )
    return Route(name=name, revision=3, salt=name, key=(KEY,) if key else (), variants=variants)
