"""Load on a gateway that remembers every answer: when it was asked for, who gave it, what it said.

Where tests/support/load.py only counts codes, tests of changes under load need to know which
answers belong to the time before a change and which to the time after it. A closed loop on both
protocols at once, from an event loop in a thread of its own; failures are answers like others.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import grpc.aio
import httpx
import numpy as np

from engines.tensors import Tensor
from gateway.pb import inference_pb2 as pb
from loadtests import grpc_loop, http_loop, payloads
from loadtests.payloads import Signature, TensorShape
from tests.support.gateway import Addresses, wait_until
from tests.support.transports import UNLIMITED

CONCURRENCY: Final = 64
"""Requests under way, half of them over each protocol."""
JOIN_LIMIT_S: Final = 20.0
KEY_HEADER: Final = "x-user-id"
HTTP, GRPC = "http", "grpc"
_SEED: Final = 7
_OUTPUT_NAME: Final = re.compile(rb'"outputs":\[\{"name":"([^"]*)"')
_VERSION: Final = re.compile(rb'"model_version":"([^"]*)"')


class Seen(NamedTuple):
    """One answer; times are monotonic, in ns."""

    protocol: str
    started_ns: int
    """When the request was sent."""
    ended_ns: int
    """When its answer was there."""
    is_ok: bool
    variant: str
    revision: int
    """Of the route; 0 without one."""
    body: bytes

    @property
    def took_s(self) -> float:
        """Seconds from the request to the answer."""
        return (self.ended_ns - self.started_ns) / 1e9

    @property
    def version(self) -> str:
        """Version of the model that answered."""
        if self.protocol == GRPC:
            return pb.ModelInferResponse.FromString(self.body).model_version
        found = _VERSION.search(self.body)
        return found[1].decode() if found else ""

    @property
    def output(self) -> str:
        """Name of the first output; empty of a failure."""
        if not self.is_ok:
            return ""
        if self.protocol == GRPC:
            return pb.ModelInferResponse.FromString(self.body).outputs[0].name
        found = _OUTPUT_NAME.search(self.body)
        return found[1].decode() if found else ""


def echo_row(name: str) -> tuple[Tensor, ...]:
    """Return one row for what tests.support.models.write_fake writes."""
    echo = Signature(
        name=name,
        inputs=(TensorShape(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(TensorShape(name="y", datatype="FP32", shape=(-1, 4)),),
    )
    return payloads.random_row(echo, np.random.default_rng(_SEED))


class Traffic:
    """Asks for one name over both protocols, with a fresh random key each time, until it ends.

    Args:
        at: where the gateway listens.
        name: of a model or route that takes an `echo_row`.
        concurrency: requests under way.
        headers: sent with every request.
    """

    def __init__(
        self,
        at: Addresses,
        name: str,
        *,
        concurrency: int = CONCURRENCY,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.seen: list[Seen] = []
        """In the order in which the answers came. Appended to by the thread."""
        self.broken: list[str] = []
        """Connections that ended."""
        self._at = at
        self._name = name
        self._each = max(1, concurrency // 2)
        self._headers = dict(headers or {})
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    @property
    def failures(self) -> list[Seen]:
        """The answers that are errors."""
        return [seen for seen in self.seen if not seen.is_ok]

    def flow(self, answers: int = 2 * CONCURRENCY, *, limit_s: float = 20.0) -> None:
        """Return when so many requests that were sent from now on have been answered."""
        now_ns, first = time.monotonic_ns(), len(self.seen)

        def has_flown() -> bool:
            fresh = sum(seen.started_ns > now_ns for seen in self.seen[first:])
            return fresh >= answers or bool(self.broken)

        wait_until(has_flown, f"{answers} more answers", limit_s)

    def between(self, start_ns: int, end_ns: int) -> list[Seen]:
        """Return what was both asked and answered within a time."""
        return [s for s in self.seen if s.started_ns > start_ns and s.ended_ns < end_ns]

    def assert_flawless(self) -> None:
        """Assert that every request was answered, and with success, on both protocols."""
        assert self.broken == []
        assert self.failures == []
        assert {seen.protocol for seen in self.seen} == {HTTP, GRPC}

    def _run(self) -> None:
        try:
            asyncio.run(self._ask())
        except (OSError, http_loop.LoopFailed) as exc:
            self.broken.append(repr(exc))

    async def _ask(self) -> None:
        row = echo_row(self._name)
        host, _, port = self._at.http.rpartition(":")
        over_http = http_loop.closed_loop(
            (host, int(port)), self._requests(row), self._on_http, connections=self._each
        )
        await asyncio.gather(over_http, self._over_grpc(payloads.as_grpc(self._name, row)))

    def _requests(self, row: Sequence[Tensor]) -> Iterator[tuple[int, bytes]]:
        body, json_bytes = payloads.as_binary(row)
        fixed = self._headers | {payloads.HEADER_LENGTH: str(json_bytes)}
        path = f"/v2/models/{self._name}/infer"
        while not self._is_over.is_set():
            request = http_loop.post(path, body, fixed | {KEY_HEADER: _random_key()})
            yield time.monotonic_ns(), request

    def _on_http(self, started_ns: int, answer: http_loop.Answer) -> None:
        self.seen.append(
            Seen(
                HTTP,
                started_ns,
                time.monotonic_ns(),
                answer.status == 200,
                answer.header("x-sluice-variant") or "",
                int(answer.header("x-sluice-revision") or 0),
                answer.body,
            )
        )

    async def _over_grpc(self, message: bytes) -> None:
        async with grpc.aio.insecure_channel(self._at.grpc, options=UNLIMITED) as channel:
            # Any: bytes in, bytes out; grpcio's types want a serializer to tell.
            infer: Any = channel.unary_unary(grpc_loop.METHOD)
            callers = (self._call(infer, message) for _ in range(self._each))
            await asyncio.gather(*callers)

    async def _call(self, infer: Any, message: bytes) -> None:  # Any: as above
        fixed = tuple(self._headers.items())
        while not self._is_over.is_set():
            started_ns = time.monotonic_ns()
            call = infer(message, metadata=(*fixed, (KEY_HEADER, _random_key())))
            try:
                body, is_ok = await call, True
            except grpc_loop.CallFailed as exc:
                body, is_ok = f"{exc.code().name}: {exc.details()}".encode(), False
            ended_ns = time.monotonic_ns()
            lines = dict(await call.trailing_metadata() or ())
            variant, revision = lines.get("x-sluice-variant", ""), lines.get("x-sluice-revision", 0)
            self.seen.append(Seen(GRPC, started_ns, ended_ns, is_ok, variant, int(revision), body))

    def stop(self) -> None:
        """End the requests and wait for the answers under way. Idempotent."""
        self._is_over.set()
        self._thread.join(JOIN_LIMIT_S)
        assert not self._thread.is_alive(), "requests are never answered"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Operator:
    """Somebody at the admin port, who does not check what comes back unless it says so."""

    def __init__(self, at: Addresses) -> None:
        self._client = httpx.Client(base_url=f"http://{at.admin}", timeout=JOIN_LIMIT_S)

    def get(self, path: str) -> Any:  # Any: JSON
        """Return the JSON of a path below /v1; AssertionError if it is not 200."""
        answer = self._client.get(f"/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def etag(self, route: str) -> str:
        """Return the ETag of a route."""
        return self._client.get(f"/v1/routes/{route}").headers["etag"]

    def patch(self, route: str, body: Mapping[str, Any]) -> httpx.Response:  # Any: JSON
        """Merge a patch into a route as it is now."""
        headers = {"if-match": self.etag(route), "x-reason": "a test"}
        return self._client.patch(f"/v1/routes/{route}", json=body, headers=headers)

    def verb(self, route: str, verb: str, *, at: str = "", **body: Any) -> httpx.Response:
        """Do something to a route at an ETag, or as it is now. Any: JSON."""
        headers = {} if verb == "abort" else {"if-match": at or self.etag(route)}
        body = {"reason": "a test", **body}
        return self._client.post(f"/v1/routes/{route}:{verb}", json=body, headers=headers)

    def load(self, model: str) -> httpx.Response:
        """Load a model, or load it again."""
        return self._client.post(f"/v1/models/{model}/load")

    def versions(self, model: str) -> dict[str, tuple[str, str]]:
        """Return state and reason of a model's versions."""
        rows = self.get("/models")["models"]
        return {r["version"]: (r["state"], r["reason"]) for r in rows if r["name"] == model}

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a version serves now."""
        return self.versions(model).get(version, ("", ""))[0] == "READY"

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def timed(call: Callable[[], httpx.Response]) -> tuple[int, httpx.Response, int]:
    """Return when a call was sent, its answer, and when that was there; monotonic, in ns."""
    sent_ns = time.monotonic_ns()
    answer = call()
    return sent_ns, answer, time.monotonic_ns()


def _random_key() -> str:
    return f"user-{random.getrandbits(64):016x}"
