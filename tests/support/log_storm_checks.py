"""What has to be so when a storm (log_storm.py) is over: streams, counters, readers' words."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import httpx
import redis
from prometheus_client.parser import text_string_to_metric_families

from gateway.prediction_log import reader
from gateway.prediction_log.streams import StreamKind
from tests.support.gateway import Addresses
from tests.support.witness import found, rids

KINDS: Final = (StreamKind.LIVE, StreamKind.SHADOW, StreamKind.BIG)
SETTLE_S: Final = 60.0


def missing(client: redis.Redis, promised: dict[str, set[str]]) -> dict[str, int]:
    """Return how many promised records are not there, by name."""
    return {name: len(ids - set(rids(found(client, name)))) for name, ids in promised.items()}


def wait_for_all(at: Addresses, url: str, promised: dict[str, set[str]]) -> None:
    """Return when all is there and nothing is spooled, or the time is up."""
    limit_s = time.monotonic() + SETTLE_S
    with redis.Redis.from_url(url) as client:
        while time.monotonic() < limit_s:
            if not spooled(at) and not any(missing(client, promised).values()):
                return
            time.sleep(0.3)


def samples(at: Addresses) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of every sample of a gateway's metrics."""
    text = httpx.get(f"http://{at.metrics}/metrics", timeout=10).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, dict(sample.labels), sample.value


def spooled(at: Addresses) -> int:
    """Return the records of all names and kinds that Redis is not known to have."""
    return sum(int(v) for name, _, v in samples(at) if name == "sluice_log_spooled_records")


def imbalances(at: Addresses) -> Iterator[str]:
    """Yield what does not add up of the counters of a gateway that is at rest."""
    sums: Counter[tuple[str, str]] = Counter()
    for name, labels, value in samples(at):
        sign = 0
        if name == "sluice_log_spooled_records":
            sign = -1
        elif name == "sluice_log_records_total":
            sign = 1 if labels["result"] in ("answered", "recovered") else -1
            if labels["result"] == "dropped" and value:
                yield f"dropped: {labels} {value:g}"
        if sign:
            sums[labels.get("name", ""), labels["kind"]] += sign * int(value)
    for of, difference in sums.items():
        if difference:
            yield f"the counters of {of} are out by {difference}"


def faults_of_streams(client: redis.Redis, promised: dict[str, set[str]]) -> Iterator[str]:
    """Yield what is lost, and what is there more than once."""
    for name, ids in promised.items():
        for kind in KINDS:
            there = rids(found(client, name, kind))
            twice = {rid: count for rid, count in there.items() if count > 1}
            if twice:
                yield f"{name} {kind}: {len(twice)} records are there more than once: {twice}"
            if kind is StreamKind.LIVE and (lost := ids - set(there)):
                yield f"{name}: {len(lost)} of {len(ids)} lost: {sorted(lost)[:5]}"


def faults_of_readers(client: redis.Redis, promised: dict[str, set[str]]) -> Iterator[str]:
    """Yield what readers say where not all is there and known to be all."""
    for name in promised:
        for kind in (StreamKind.LIVE, StreamKind.SHADOW):
            whole = reader.read_frame(client, name, kind=kind).completeness
            if not whole.is_complete or whole.repeats or whole.unreadable or whole.unknown_ends:
                yield f"a reader of {name} {kind} says:\n{whole.text()}"
