"""Requests at a steady pace over HTTP, to one route on several replicas, and what the answers said.

Each connection has one request under way and begins the next one a pause after the last began, so
that the load is the same whether the machine is quick or slow. Of every answer its revision,
variant and model version are kept, and of every revision when each replica first answered with it.
Knows nothing of how routes are changed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from loadtests import http_loop
from loadtests.http_loop import Answer, HttpAddress, LoopFailed

ANSWER_LIMIT_S: Final = 10.0
"""No answer within this time is a failure."""
PAUSE_S: Final = 0.005
CONNECTIONS: Final = 2
"""Per replica."""
_CHUNK_BYTES: Final = 65_536


class Seen(NamedTuple):
    """What one answer says about the route."""

    revision: int
    variant: str
    version: str
    """Of the model; from the body, where the others are headers."""


class _Body(msgspec.Struct):
    model_version: str


class Connection:
    """One HTTP/1.1 connection with at most one request under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: HttpAddress) -> Self:
        """Connect; raises OSError."""
        return cls(*await asyncio.open_connection(*address))

    async def ask(self, request: bytes) -> Answer:
        """Send a request and return its answer; raises OSError, LoopFailed, TimeoutError."""
        received = b""
        self._writer.write(request)
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while (parsed := http_loop.parse(received)) is None:
                chunk = await self._reader.read(_CHUNK_BYTES)
                if not chunk:
                    raise LoopFailed(f"the connection ended before its answer: {received[:200]!r}")
                received += chunk
        return parsed[0]

    def close(self) -> None:
        """Let it go."""
        self._writer.close()


class Observed:
    """What the answers of one replica said, over all its connections."""

    def __init__(self) -> None:
        self.answers: Counter[Seen] = Counter()
        self.first_s: dict[int, float] = {}
        """Monotonic time of the first answer with each revision."""
        self.latest: Seen | None = None
        self.failed: list[str] = []
        """Requests without a good answer: what came instead."""
        self.decreased: list[str] = []
        """Answers on one connection with a lower revision than the one before."""

    @property
    def total(self) -> int:
        """Good answers."""
        return self.answers.total()

    def reached_s(self, revision: int) -> float | None:
        """Return when it first answered with a revision or a later one; None: not yet."""
        return min((at_s for n, at_s in self.first_s.items() if n >= revision), default=None)


class Traffic:
    """Paced requests for as long as the context lasts.

    Args:
        addresses: of the replicas' predict listeners.
        request: ready to send.
        connections: to each replica.
        pause_s: between the beginnings of two requests on one connection.
    """

    def __init__(
        self,
        addresses: Sequence[HttpAddress],
        request: bytes,
        *,
        connections: int = CONNECTIONS,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.replicas = [Observed() for _ in addresses]
        self._request = request
        self._pause_s = pause_s
        self._is_over = False
        self._news = asyncio.Event()
        """A replica answered with a revision for the first time."""
        self._answered = asyncio.Event()
        self._places = [
            (address, observed)
            for address, observed in zip(addresses, self.replicas, strict=True)
            for _ in range(connections)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def total(self) -> int:
        """Good answers of all replicas."""
        return sum(observed.total for observed in self.replicas)

    @property
    def answers(self) -> Counter[Seen]:
        """What good answers of all replicas said."""
        return sum((observed.answers for observed in self.replicas), Counter[Seen]())

    @property
    def failed(self) -> list[str]:
        """Failed requests of all replicas."""
        return [failure for observed in self.replicas for failure in observed.failed]

    @property
    def decreased(self) -> list[str]:
        """Answers of all replicas that went back."""
        return [row for observed in self.replicas for row in observed.decreased]

    async def reached(self, revision: int, within_s: float) -> list[float]:
        """Return when each replica first answered with a revision or a later one.

        Raises:
            TimeoutError: one has not, within the time.
        """
        async with asyncio.timeout(within_s):
            while True:
                self._news.clear()
                found = [observed.reached_s(revision) for observed in self.replicas]
                if None not in found:
                    return [at_s for at_s in found if at_s is not None]
                await self._news.wait()

    async def flow(self, answers: int) -> None:
        """Return when so many more good answers have come; raises TimeoutError if they do not."""
        target = self.total + answers
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while self.total < target:
                self._answered.clear()
                await self._answered.wait()

    async def __aenter__(self) -> Self:
        """Begin; the connections take turns within the pause."""
        start_s = time.monotonic()
        for n, (address, observed) in enumerate(self._places):
            at_s = start_s + self._pause_s * n / len(self._places)
            self._tasks.append(asyncio.create_task(self._converse(address, observed, at_s)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the answers under way, and end."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _converse(self, address: HttpAddress, observed: Observed, at_s: float) -> None:
        """Ask again and again, on a new connection where one fails."""
        while not self._is_over:
            try:
                connection = await Connection.open(address)
            except OSError as exc:
                observed.failed.append(f"cannot connect: {exc}")
                await asyncio.sleep(self._pause_s)
                continue
            try:
                await self._ask_on(connection, observed, at_s)
            except (OSError, LoopFailed, TimeoutError) as exc:
                observed.failed.append(f"{type(exc).__name__}: {exc}")
                at_s = time.monotonic() + self._pause_s
            finally:
                connection.close()

    async def _ask_on(self, connection: Connection, observed: Observed, at_s: float) -> None:
        last = 0
        while True:
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            if self._is_over:
                return
            answer = await connection.ask(self._request)
            seen = self._note(observed, answer)
            if seen is not None:
                if seen.revision < last:
                    observed.decreased.append(f"revision {seen.revision} after {last}")
                last = seen.revision
            at_s = max(at_s + self._pause_s, time.monotonic())

    def _note(self, observed: Observed, answer: Answer) -> Seen | None:
        now_s = time.monotonic()
        if answer.status != 200:
            observed.failed.append(f"{answer.status}: {answer.body[:200]!r}")
            return None
        seen = Seen(
            revision=int(answer.header("x-sluice-revision") or 0),
            variant=answer.header("x-sluice-variant") or "",
            version=msgspec.json.decode(answer.body, type=_Body).model_version,
        )
        observed.answers[seen] += 1
        observed.latest = seen
        self._answered.set()
        if seen.revision not in observed.first_s:
            observed.first_s[seen.revision] = now_s
            self._news.set()
        return seen


def mixed(answers: Iterable[Seen], history: Mapping[int, Set[tuple[str, str]]]) -> list[Seen]:
    """Return the answers that no revision explains.

    Args:
        answers: what was seen.
        history: revision -> (variant, version) of every variant with a weight.
    """
    return [
        seen
        for seen in answers
        if (seen.variant, seen.version) not in history.get(seen.revision, frozenset())
    ]
