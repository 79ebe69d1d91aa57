"""Metrics of padding, of instances whose device failed, and of choices that ended on the CPU."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from engines import fake
from engines.base import EngineConfig
from engines.errors import EngineError
from engines.repository import Repository
from gateway.metrics import MetricsCollector, RequestMetrics
from tests.support.repositories import Shelf, ask

DEADLY: Final = 13.0


class Site:
    """A repository and its metrics."""

    def __init__(self, shelf: Shelf) -> None:
        self.metrics = RequestMetrics()
        self.repository = Repository(
            root=shelf.root,
            read_spec=shelf.read_spec,
            loaders={"fake": fake.load},
            on_batch=self.metrics.observe_batch,
        )

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the samples of one metric by their labels' values."""
        collector = MetricsCollector(
            version="1",
            requests=self.metrics,
            versions=self.repository.versions,
            log=lambda: None,
            is_ready=lambda: True,
        )
        return {
            tuple(sample.labels.values()): sample.value
            for family in collector.collect()
            for sample in family.samples
            if sample.name == name
        }

    async def ask(self, model: str, *values: float) -> object:
        """Send one request to version 1 and wait for its outcome."""
        return await ask(self.repository.get(model, "1"), *values).outcome()


def test_the_rows_that_fill_a_bucket_are_counted_apart(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.add_fake("padded", "1", max_batch_size=8, buckets=[4, 8])
    shelf.add_fake("plain", "1", max_batch_size=8)

    async def scenario() -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], float]]:
        site = Site(shelf)
        await site.repository.start({})
        for values in ((1.0,), (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 4.0, 5.0)):
            await site.ask("padded", *values)
            await site.ask("plain", *values)
        found = site.samples("sluice_padded_rows_total"), site.samples("sluice_batch_rows_sum")
        await site.repository.close()
        return found

    padded, rows = asyncio.run(scenario())
    assert padded == {("padded", "1"): 3.0 + 0.0 + 3.0, ("plain", "1"): 0.0}
    assert rows == {("padded", "1"): 10.0, ("plain", "1"): 10.0}, "the requests' own rows"


def test_an_instance_whose_device_failed_is_counted_until_it_is_replaced(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.add_fake("frail", "1", die_on=DEADLY)
    shelf.configure("frail", instances=2)
    shelf.add_fake("alone", "1", die_on=DEADLY)

    async def scenario() -> list[dict[tuple[str, ...], float]]:
        site = Site(shelf)
        await site.repository.start({})
        found = [site.samples("sluice_lost_instances")]
        for model in ("frail", "alone"):
            assert isinstance(await site.ask(model, DEADLY), EngineError)
            found.append(site.samples("sluice_lost_instances"))
        found.append(site.samples("sluice_instances"))
        found.append(site.samples("sluice_version_ready"))
        await site.repository.close()
        return found

    before, one, both, instances, ready = asyncio.run(scenario())
    frail, alone = ("frail", "1"), ("alone", "1")
    assert before == {frail: 0.0, alone: 0.0}
    assert one == {frail: 1.0, alone: 0.0}
    assert both == {frail: 1.0, alone: 1.0}, "also of a version that has none left"
    assert instances == {frail: 2.0, alone: 1.0}, "lost ones among them"
    assert ready == {frail: 1.0, alone: 0.0}


def test_a_choice_that_ended_on_the_cpu_is_a_gauge_of_the_device_in_use(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for model in ("chosen", "told"):
        shelf.add_fake(model, "1")
    shelf.configure("chosen", engine=EngineConfig(device="auto"))

    async def scenario() -> dict[tuple[str, ...], float]:
        site = Site(shelf)
        await site.repository.start({})
        found = site.samples("sluice_device_fallback")
        await site.repository.close()
        return found

    assert asyncio.run(scenario()) == {("chosen", "1", "cpu"): 1.0}
