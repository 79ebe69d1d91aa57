"""What clients were promised, against what stands in Redis: for tests that kill one or both.

A `Witness` calls a gateway over both protocols and keeps the request id of every good answer.
`found` reads all predictions back. Only what a client was told counts: a gateway that is killed may
have written a record whose answer never left. A gateway that is starting knows no name yet, and
logs nothing of what it refuses.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import grpc
import httpx
import redis

from gateway.ids import as_text
from gateway.prediction_log.record import LoggedAudit, LoggedPrediction, decode_any
from gateway.prediction_log.streams import StreamKind, streams_key
from tests.support.transports import RAW, TRANSPORTS, Ask, Listeners, Transport

JOIN_LIMIT_S: Final = 20.0
PAUSE_S: Final = 0.02
PAGE: Final = 2_000
OK: Final = (200, "OK")


class Witness:
    """Threads that call until the block ends, and what they were answered.

    Args:
        at: the gateway's addresses.
        ask: what is called.
        threads_per_protocol: how many call.
        promises: the codes of answers that have a record.
        pause_s: between two calls of a thread.
    """

    def __init__(
        self,
        at: Listeners,
        ask: Ask,
        *,
        threads_per_protocol: int = 2,
        promises: Container[int | str] = OK,
        pause_s: float = 0.0,
    ) -> None:
        self.ids: list[str] = []
        """Request ids of the answers with one of the codes that promise a record."""
        self.codes: Counter[int | str] = Counter()
        self.broken = 0
        """Calls without an answer: the gateway was away."""
        self._ask = ask
        self._promises = promises
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(TRANSPORTS[name](at),), name=f"wit-{name}")
            for name in RAW
            for _ in range(threads_per_protocol)
        ]

    @property
    def total(self) -> int:
        """How many good answers came."""
        return len(self.ids)

    def flow(self, count: int, limit_s: float = 30.0) -> None:
        """Return when so many more answers have come."""
        target, limit = self.total + count, time.monotonic() + limit_s
        while self.total < target:
            assert time.monotonic() < limit, f"only {self.total} of {target} answers"
            time.sleep(PAUSE_S)

    def _call(self, transport: Transport) -> None:
        while not self._is_over.is_set():
            try:
                answer = transport.infer(self._ask)
            except (httpx.HTTPError, grpc.RpcError, OSError):
                self._note_broken()
                continue
            rid = answer.headers.get("x-request-id")
            if rid is None:  # a status that the client library made itself
                self._note_broken()
                continue
            with self._lock:
                self.codes[answer.code] += 1
                if answer.code in self._promises:
                    self.ids.append(rid)
            if answer.code not in self._promises:
                self._is_over.wait(PAUSE_S)
            elif self._pause_s:
                self._is_over.wait(self._pause_s)
        transport.close()

    def _note_broken(self) -> None:
        with self._lock:
            self.broken += 1
        self._is_over.wait(PAUSE_S)

    def stop(self) -> None:
        """End the calls and wait for the answers under way. Idempotent."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(JOIN_LIMIT_S)
            assert not thread.is_alive(), f"{thread.name} hangs"

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def blobs(client: redis.Redis, key: bytes | str) -> Iterator[bytes]:
    """Yield the blobs of a stream, oldest first."""
    start = "-"
    while True:
        page: Any = client.xrange(key, min=start, count=PAGE)  # Any: redis-py's reply
        for entry_id, fields in page or ():
            yield fields[b"r"]
            start = "(" + entry_id.decode()
        if len(page or ()) < PAGE:
            return


def keys(client: redis.Redis, name: str, kind: StreamKind = StreamKind.LIVE) -> list[bytes]:
    """Return the keys of a name's streams."""
    members: Any = client.smembers(streams_key(name, kind))  # Any: redis-py's reply
    return sorted(members)


def found(
    client: redis.Redis, name: str, kind: StreamKind = StreamKind.LIVE
) -> list[LoggedPrediction]:
    """Return every prediction of a name, of all replicas."""
    each = itertools.chain.from_iterable(blobs(client, key) for key in keys(client, name, kind))
    return [logged for blob in each if isinstance(logged := decode_any(blob), LoggedPrediction)]


def audits(client: redis.Redis, name: str) -> list[LoggedAudit]:
    """Return every audit of a name."""
    each = itertools.chain.from_iterable(blobs(client, key) for key in keys(client, name))
    return [logged for blob in each if isinstance(logged := decode_any(blob), LoggedAudit)]


def rids(predictions: list[LoggedPrediction]) -> Counter[str]:
    """Count the request ids of predictions."""
    return Counter(as_text(prediction.rid) for prediction in predictions)


def missing(witness: Witness, there: Mapping[str, int]) -> set[str]:
    """Return the promised ids that are not there; none may be there twice."""
    twice = {rid: count for rid, count in there.items() if count > 1}
    assert not twice, f"{len(twice)} records are there more than once"
    return set(witness.ids) - set(there)
