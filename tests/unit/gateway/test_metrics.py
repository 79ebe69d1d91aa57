"""Metrics: buckets, labels, and that what is written out can be read and adds up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import ROWS_BUCKETS, MetricsCollector
from gateway.prediction_log.counts import KindCounts, LogStatistics
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import StreamKind
from tests.support.desk import Desk, open_desk, request_of, route_of
from tests.support.repositories import Shelf

Labels = tuple[tuple[str, str], ...]


def collector(desk: Desk, statistics: LogStatistics) -> MetricsCollector:
    """Return a collector over a desk."""
    return MetricsCollector(
        version="9.9",
        requests=desk.metrics,
        versions=desk.repository.versions,
        log=lambda: statistics,
        is_ready=lambda: desk.lifecycle.is_ready,
    )


def samples(families: Iterable[Metric]) -> dict[tuple[str, Labels], float]:
    """Return every sample by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def labels(**values: str) -> Labels:
    """Return labels as `samples` has them."""
    return tuple(sorted(values.items()))


def scraped(tmp_path: Path) -> dict[tuple[str, Labels], float]:
    """Serve some requests, and return what Prometheus would read."""
    shelf = Shelf(tmp_path)
    shelf.add_fake("echo", "1", fail_on=13)
    shelf.add_fake("echo", "2")
    shelf.add_fake("broken", "1").write_text("no script")
    split = route_of("split", ("stable", "echo", "1", 100), ("canary", "echo", "2", 0))
    counts = KindCounts(
        answered=9, sampled_out=2, shipped=3, dropped={DropReason.DISK_FULL: 1}, spooled=3
    )
    log = LogStatistics(
        kinds={("split", StreamKind.LIVE): counts},
        spooled_bytes=99,
        oldest_unshipped_s=1.5,
        is_sink_up=True,
        trimmed_unread={("split", StreamKind.LIVE): 4},
    )

    async def scenario() -> bytes:
        async with open_desk(shelf, split) as desk:
            desk.shelf.gate.open()
            registry = CollectorRegistry()
            registry.register(collector(desk, log))
            for request in (
                request_of("split", 1.0, 2.0, 3.0),
                request_of("split", 13.0),
                request_of("nobody"),
            ):
                _, answered = desk.submit(request)
                await answered.answer()
            desk.metrics.count_refused("http", 3)
            for served, report in shelf.reports:
                desk.metrics.observe_batch(served, report)
            return generate_latest(registry)

    text = asyncio.run(scenario()).decode()
    return samples(text_string_to_metric_families(text))


def test_everything_is_written_out_and_adds_up(tmp_path: Path) -> None:
    found = scraped(tmp_path)
    stable = {"route": "split", "variant": "stable", "model": "echo", "version": "1"}
    log = {"name": "split", "kind": "live"}
    nowhere = dict.fromkeys(stable, "")
    expected = {
        ("sluice_build_info", labels(version="9.9")): 1.0,
        ("sluice_ready", ()): 1.0,
        ("sluice_requests_total", labels(**stable, protocol="http", code="OK")): 1.0,
        ("sluice_requests_total", labels(**stable, protocol="http", code="INTERNAL")): 1.0,
        ("sluice_errors_total", labels(**stable, protocol="http", code="INTERNAL")): 1.0,
        ("sluice_requests_total", labels(**nowhere, protocol="http", code="NOT_FOUND")): 1.0,
        ("sluice_errors_total", labels(**nowhere, protocol="http", code="INVALID_ARGUMENT")): 1.0,
        ("sluice_request_latency_seconds_count", labels(**stable)): 2.0,
        ("sluice_queue_delay_seconds_count", labels(**stable)): 1.0,
        ("sluice_inference_seconds_count", labels(**stable)): 1.0,
        ("sluice_batch_rows_sum", labels(model="echo", version="1")): 4.0,
        ("sluice_batched_requests_total", labels(model="echo", version="1")): 2.0,
        ("sluice_version_ready", labels(model="echo", version="2")): 1.0,
        ("sluice_version_ready", labels(model="broken", version="1")): 0.0,
        ("sluice_queued_rows", labels(model="echo", version="1")): 0.0,
        ("sluice_busy_instances", labels(model="echo", version="1")): 0.0,
        ("sluice_instances", labels(model="echo", version="1")): 1.0,
        ("sluice_queue_refused_total", labels(model="echo", version="1")): 0.0,
        ("sluice_log_records_total", labels(**log, result="answered", reason="")): 9.0,
        ("sluice_log_records_total", labels(**log, result="sampled_out", reason="")): 2.0,
        ("sluice_log_records_total", labels(**log, result="shipped", reason="")): 3.0,
        ("sluice_log_records_total", labels(**log, result="dropped", reason="disk_full")): 1.0,
        ("sluice_log_spooled_records", labels(**log)): 3.0,
        ("sluice_log_spool_bytes", ()): 99.0,
        ("sluice_log_ship_lag_seconds", ()): 1.5,
        ("sluice_log_trimmed_unread_total", labels(**log)): 4.0,
        ("sluice_log_sink_up", ()): 1.0,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert ("sluice_errors_total", labels(**stable, protocol="http", code="OK")) not in found
    by_reason = [
        value
        for (name, found_labels), value in found.items()
        if name == "sluice_batches_total" and ("version", "1") in found_labels
    ]
    assert sum(by_reason) == 2


def test_the_buckets_of_a_batch_hold_the_sizes_that_batches_have(tmp_path: Path) -> None:
    found = scraped(tmp_path)
    echo = {"model": "echo", "version": "1"}
    counts = [
        found["sluice_batch_rows_bucket", labels(**echo, le=str(float(bound)))]
        for bound in ROWS_BUCKETS
    ]
    assert counts[:3] == [1.0, 1.0, 2.0]
    assert all(earlier <= later for earlier, later in itertools.pairwise(counts))
