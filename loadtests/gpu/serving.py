"""The gateway that serves the variants: a process of its own, and what it says of itself.

Knows where things stand in its metrics, statistics and log; knows no load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from prometheus_client.parser import text_string_to_metric_families

from gateway import config as configuration
from gateway.demo import gateway_process
from gateway.demo.gateway_process import Addresses, url
from loadtests import asking
from loadtests.asking import NoAnswer
from loadtests.bench import process_tree
from loadtests.gpu.variants import SHADOW, SHADOWED

START_LIMIT_S: Final = 600.0
"""Every bucket of every lane of every variant is warmed up before it is ready."""


_COUNTERS: Final = (
    "sluice_batch_rows_count",
    "sluice_batch_rows_sum",
    "sluice_padded_rows_total",
)


class Counts(NamedTuple):
    """What a model has run; every number only grows."""

    batches: int
    rows: int
    padded_rows: int


class _Process(gateway_process.GatewayProcess):
    @property
    def pid(self) -> int:
        """Root of the process tree."""
        return self._process.pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway that serves."""

    addresses: Addresses
    pid: int
    log: Path

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes so far."""
        return process_tree.tree_cpu_s(self.pid)

    def unavailable(self) -> dict[str, str]:
        """Return the models that it does not serve, and why; raises NoAnswer."""
        at = f"{url(self.addresses.http)}/v2/repository/index"
        opener = build_opener(ProxyHandler({}))
        try:
            with opener.open(Request(at, b"{}"), timeout=asking.TIMEOUT_S) as answer:
                rows = json.loads(answer.read())
        except (OSError, HTTPException, ValueError) as exc:
            raise NoAnswer(f"{at}: {exc}") from exc
        return {row["name"]: row["reason"] for row in rows if row["state"] != "READY"}

    def counts(self, model: str) -> Counts:
        """Return what a model has run so far."""
        totals = dict.fromkeys(_COUNTERS, 0)
        text = asking.get_text(f"{url(self.addresses.metrics)}/metrics")
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in totals and sample.labels["model"] == model:
                    totals[sample.name] += int(sample.value)
        return Counts(*totals.values())

    def copies(self) -> tuple[int, int]:
        """Return how many requests the shadow was to copy, and how many copies it answered."""
        document = asking.get_json(f"{url(self.addresses.admin)}/v1/routes/{SHADOWED}/stats")
        row = document["shadows"].get(SHADOW, {"eligible": 0, "sent": 0})
        return row["eligible"], row["sent"]

    def warnings(self) -> list[str]:
        """Return what its log warns of, once each."""
        lines = []
        for line in self.log.read_text(errors="replace").splitlines():
            event = _event(line)
            if event.get("level") in ("warning", "error"):
                rest = [f"{k} {event[k]}" for k in ("model", "reason", "fields") if k in event]
                lines.append(", ".join([str(event.get("event")), *rest]))
        return list(dict.fromkeys(lines))


# Any: JSON.
def _event(line: str) -> dict[str, Any]:
    """Return a line of the log; nothing: it is no event."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


@contextmanager
def running(folder: Path, text: str) -> Iterator[Gateway]:
    """Run a gateway with this configuration; it is ready when the context is entered.

    Raises:
        DemoFailed: it ended, or did not become ready; with the last lines of its log.
    """
    config = folder / "sluice.toml"
    config.write_text(text)
    server = configuration.load(config, os.environ).server
    log = folder / "gateway.log"
    process = _Process(config, server, log)
    try:
        addresses = process.wait_ready(START_LIMIT_S)
        yield Gateway(addresses=addresses, pid=process.pid, log=log)
    finally:
        process.stop()
