"""Gateways with everything that an erasure has to do with: sealed text, files, whole tensors,
shadows, labels; and two customers who ask them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import redis

from gateway.cli import erase
from gateway.demo.redis_server import RedisServer
from gateway.ids import as_text
from gateway.prediction_log.privacy.keyring import Keyring
from gateway.prediction_log.record import LoggedLabel, LoggedPrediction, decode_any
from gateway.prediction_log.streams import StreamKind, streams_key
from tests.support.erasures import files_with
from tests.support.gateway import GatewayProcess, metric, wait_until
from tests.support.models import write_identity
from tests.support.privacy import MASTER_KEY, write_keys

MINE: Final = "customer-4711-who-leaves"
THEIRS: Final = "customer-0815-who-stays"
MARK: Final = "MARK/of/the/customer/who/leaves"
OTHER_MARK: Final = "text-of-the-other"
LARGE: Final = 40
"""Times that a text is repeated to be a large tensor."""
NAMES: Final = ("plain", "sealed", "large")
KINDS: Final = (StreamKind.LIVE, StreamKind.SHADOW, StreamKind.BIG, StreamKind.LABELS)
_COMMAND_S: Final = 20.0

Texts = dict[str, list[str]]
"""By customer: the request ids."""


@dataclass(frozen=True, slots=True)
class Site:
    """A folder for gateways that share models, keys and spools, and their Redis."""

    folder: Path
    server: RedisServer
    redis_folder: Path

    def prepare(self) -> None:
        """Write models and keys."""
        for version in (1, 2):
            path = self.folder / "models" / "echo" / str(version) / "model.onnx"
            write_identity(path, "BYTES", [1])
        write_keys(self.folder / "keys")
        (self.folder / "master").write_text(MASTER_KEY.hex() + "\n")

    def config(self, replica: str) -> dict[str, Any]:  # Any: TOML
        """Return the configuration of one gateway."""
        keep = {"features": {"x": "keep", "y": "keep"}}
        spool = {"segment_bytes": 1 << 20, "max_bytes": 64 << 20, "min_free_bytes": 0}
        log = {
            "linger_ms": 1,
            "spool": {"directory": str(self.folder / "spool"), **spool},
            "capture": {"max_bytes": 256, "full_share": 1.0},
            "privacy": {
                "subject": "header:x-customer",
                "key_file": str(self.folder / "keys"),
                "master_key_file": str(self.folder / "master"),
            },
            "names": {
                "plain": keep,
                "sealed": {"features": {"x": "seal", "y": "seal"}},
                "large": {**keep, "capture": {"x": "reference", "y": "truncate"}},
            },
        }
        limits = {"queue_items": 1_000, "deadline_ms": 20_000}
        route = {
            "variants": {"stable": {"model": "echo", "version": "1", "weight": 100}},
            "shadows": {"next": {"model": "echo", "version": "2", "sample": 100, "limits": limits}},
        }
        return {
            "redis": {"url": self.server.url},
            "models": {"repository": str(self.folder / "models"), "intra_op_threads": 1},
            "server": {"replica": replica},
            "prediction_log": log,
            "routes": dict.fromkeys(NAMES, route),
        }

    def serve(self, replica: str) -> GatewayProcess:
        """Start a gateway; wait for it with `with`."""
        return GatewayProcess(self.config(replica), self.folder / replica)

    def erase(self, *arguments: str) -> int:
        """Run `sluice log erase` for the customer who leaves; return its exit code."""
        parser = argparse.ArgumentParser()
        erase.add_parser(parser.add_subparsers())
        config = str(self.folder / "gw-1" / "sluice.toml")
        words = ["erase", "--subject", MINE, "--config", config, "--timeout", "20", *arguments]
        parsed = parser.parse_args(words)
        code: int = parsed.run(parsed)
        return code

    def traces(self) -> list[str]:
        """Return where anything of the customer who leaves stands, in Redis' files and spools."""
        tags = Keyring.load(self.folder / "keys").tags(MINE)
        needles = [MINE.encode(), MARK.encode(), *tags, *(tag.hex().encode() for tag in tags)]
        limit_s = time.monotonic() + 5
        while True:  # Redis 7 deletes the files that it replaced a moment later
            traces = self.files_with(needles)
            if not traces or time.monotonic() > limit_s:
                return traces
            time.sleep(0.05)

    def files_with(self, needles: list[bytes]) -> list[str]:
        """Return in which files of Redis and of the spools one of the needles stands."""
        folders = self.redis_folder, self.folder / "spool"
        return [found for folder in folders for found in files_with(folder, needles)]

    def documents(self, name: str, kind: StreamKind) -> list[LoggedPrediction | LoggedLabel]:
        """Return what stands in the streams of a name, without the audits."""
        found = []
        with redis.Redis.from_url(self.server.url, protocol=2) as client:
            keys: Any = client.smembers(streams_key(name, kind))  # Any: as redis-py types it
            for key in sorted(keys):
                entries: Any = client.xrange(key)  # Any: as above
                found += [decode_any(fields[b"r"]) for _, fields in entries]
        return [one for one in found if isinstance(one, LoggedPrediction | LoggedLabel)]

    def counts(self, rids: Sequence[str]) -> dict[tuple[str, StreamKind], int]:
        """Return how many documents of these requests stand where."""
        counts = {}
        for name in NAMES:
            for kind in KINDS:
                of = [as_text(_request_of(one)) for one in self.documents(name, kind)]
                counts[name, kind] = sum(rid in rids for rid in of)
        return counts


def _request_of(one: LoggedPrediction | LoggedLabel) -> bytes:
    return (isinstance(one, LoggedPrediction) and one.parent_rid) or one.rid


def warm_up(gateway: GatewayProcess) -> None:
    """Return when the shadows answer as well: they are loaded after the gateway is ready."""

    def sent(name: str) -> float:
        labels = {"result": "sent", "route": name}
        return metric(gateway.at.metrics, "sluice_shadow_requests_total", **labels)

    with httpx.Client(base_url=f"http://{gateway.at.http}") as client:

        def is_warm(name: str) -> bool:
            _ask(client, name, "", "warm")
            return sent(name) > 0

        for name in NAMES:
            wait_until(partial(is_warm, name), f"the shadow of {name}", _COMMAND_S)


def ask_all(gateway: GatewayProcess, times: int = 1) -> Texts:
    """Have both customers ask for every name, and tell the truth; return their request ids."""
    asked: Texts = {MINE: [], THEIRS: []}
    with httpx.Client(base_url=f"http://{gateway.at.http}") as client:
        for _ in range(times):
            for customer, mark in ((MINE, MARK), (THEIRS, OTHER_MARK)):
                for name in NAMES:
                    text = mark * LARGE if name == "large" else mark
                    asked[customer].append(_ask(client, name, customer, text))
    return asked


def _ask(client: httpx.Client, name: str, customer: str, text: str) -> str:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    answer = client.post(
        f"/v2/models/{name}/infer", json={"inputs": [tensor]}, headers={"x-customer": customer}
    )
    assert answer.status_code == 200, answer.text
    rid: str = answer.headers["x-request-id"]
    truth = {"items": [{"request_id": rid, "target": text[:60]}]}
    answer = client.post(f"/v2/models/{name}/feedback", json=truth)
    assert answer.status_code == 202, answer.text
    return rid


def wait_shipped(gateway: GatewayProcess) -> None:
    """Return when Redis has all that a gateway has spooled."""
    wait_until(
        lambda: metric(gateway.at.metrics, "sluice_log_spooled_records") == 0,
        "all is shipped",
        limit_s=_COMMAND_S,
    )
