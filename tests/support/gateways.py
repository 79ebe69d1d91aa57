"""Several gateway processes on one Redis, the changes of their route, and what they then serve.

The route is that of loadtests/propagation.py, unless a test brings its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import redis

from gateway.demo.redis_server import RedisServer
from gateway.route_control.redis_store import audit_key
from loadtests import propagation
from loadtests.http_loop import HttpAddress
from loadtests.paced import Seen, Traffic
from loadtests.propagation import ROUTE
from tests.support.gateway import GatewayProcess, metric, wait_until

REPLICAS: Final = 3
RETURN_S: Final = 3.0
"""Within this time after Redis' return every replica has caught up."""
_ANSWERS: Final = 60
"""Enough that a variant with 40 % is among them, but for a chance of 1 in 10^13."""

Document = dict[str, Any]  # Any: JSON, or what a TOML file holds


class Gateways:
    """Gateway processes, each with a folder of its own; they end with the block.

    Args:
        folder: of all of them, and of their models.
        route: the configured one.
        redis_url: what they share; None: one gateway without Redis.
    """

    def __init__(self, folder: Path, route: Document, redis_url: str | None) -> None:
        propagation.write_models(folder / "models")
        self._folder = folder
        self._config: Document = {
            "models": {"repository": str(folder / "models"), "intra_op_threads": 1},
            "routes": {ROUTE: route},
        }
        if redis_url is not None:
            self._config["redis"] = {"url": redis_url}
        self._count = 1 if redis_url is None else REPLICAS
        self._ends = ExitStack()
        self.live: list[GatewayProcess] = []

    def folder(self, n: int) -> Path:
        """Return where one keeps its configuration, its log and its state."""
        return self._folder / f"replica-{n}"

    def spawn(self, n: int, **control: str) -> GatewayProcess:
        """Start one; it is not ready yet. Keywords: of the table [control]."""
        config = {**self._config, "server": {"replica": f"replica-{n}"}, "control": control}
        started = GatewayProcess(config, self.folder(n))
        self._ends.callback(started.kill)
        return started

    def restart(self, n: int) -> None:
        """Kill one, if it still lives, and start it again on what its folder holds."""
        self.live[n].kill()
        self.live[n] = self.spawn(n).wait_ready()

    @property
    def http(self) -> list[HttpAddress]:
        """Where they predict."""
        return [address(gateway.at.http) for gateway in self.live]

    def route_url(self, n: int = 0) -> str:
        """Return the URL of the route on the admin listener of one; numbers go round."""
        return f"http://{self.live[n % len(self.live)].at.admin}/v1/routes/{ROUTE}"

    def gauges(self, name: str, **labels: str) -> list[float]:
        """Return a metric of each."""
        return [metric(gateway.at.metrics, name, **labels) for gateway in self.live]

    def is_served(self, revision: int) -> bool:
        """Whether every replica has a revision in force, by its metrics."""
        found = self.gauges("sluice_route_revision", route=ROUTE)
        return found == [revision] * len(self.live)

    def change_to(self, last: int, *, first: int = 2) -> None:
        """Make revisions, each through the next replica, and wait until all serve the last one."""
        for revision in range(first, last + 1):
            patch(self.route_url(revision), revision, f"to {revision}")
        wait_until(lambda: self.is_served(last), f"all serve {last}", limit_s=RETURN_S)

    def history(self, n: int = 0) -> list[Document]:
        """Return the revisions as one replica tells them, oldest first."""
        answer = httpx.get(f"{self.route_url(n)}/revisions", params={"limit": 1_000})
        found: list[Document] = answer.raise_for_status().json()["revisions"]
        return found[::-1]

    def seen(self, n: int) -> set[Seen]:
        """Return what different answers one replica gives from now on."""
        return asyncio.run(self._see(n))

    def variants(self, n: int) -> set[str]:
        """Return the variants that one replica serves from now on."""
        return {seen.variant for seen in self.seen(n)}

    async def _see(self, n: int) -> set[Seen]:
        async with Traffic([self.http[n]], propagation.request()) as traffic:
            await traffic.flow(_ANSWERS)
        assert traffic.failed == []
        return set(traffic.answers)

    def __enter__(self) -> Self:
        with ExitStack() as on_failure:
            on_failure.callback(self._ends.close)
            self.live = [self.spawn(n) for n in range(self._count)]
            for gateway in self.live:
                gateway.wait_ready()
            on_failure.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.close()


def address(text: str) -> HttpAddress:
    """Return host and port of host:port."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def ask_for(
    url: str, revision: int, reason: str, *, generation: int = 1, winner: str = ""
) -> httpx.Response:
    """Ask for a revision after the one before it: all weight to `winner`, or to whom it favours."""
    winner = winner or propagation.favoured(revision)
    weights = {name: {"weight": 100 if name == winner else 0} for name in propagation.VERSION_OF}
    headers = {"if-match": f'"g{generation}-{revision - 1}"', "x-reason": reason}
    return httpx.patch(url, json={"variants": weights}, headers=headers)


def patch(
    url: str, revision: int, reason: str, *, generation: int = 1, winner: str = ""
) -> httpx.Response:
    """As `ask_for`; it must succeed."""
    answer = ask_for(url, revision, reason, generation=generation, winner=winner)
    assert answer.status_code == 200, answer.text
    assert answer.headers["etag"] == f'"g{generation}-{revision}"'
    return answer


def verb(url: str, name: str, body: Mapping[str, Any], **headers: str) -> httpx.Response:
    """Ask for a verb of the route. Underscores in header names stand for dashes."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return httpx.post(f"{url}:{name}", json=dict(body), headers=named)


def audit(server: RedisServer) -> list[Document]:
    """Return the audit, oldest first; each entry must vouch for the one before it.

    That of a restore vouches for the last one that its replica knew, which the store may have lost.
    """
    with redis.Redis.from_url(server.url) as client:
        raw = [fields[b"e"] for _, fields in client.xrange(audit_key(ROUTE))]
    entries: list[Document] = [json.loads(entry) for entry in raw]
    for before, entry in zip(raw, entries[1:], strict=False):
        if entry["verb"] != "restore":
            assert entry["previous"] == hashlib.sha256(before).hexdigest()
    return entries
