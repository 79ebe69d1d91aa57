"""GPU metrics: their names, labels and values in the text that is scraped."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engines.nvml import GpuSample
from gateway.gpu_metrics import GpuCollector

FULL = GpuSample(
    index=0,
    uuid="GPU-a",
    name='Some "GPU"',
    utilization_ratio=0.5,
    memory_utilization_ratio=0.25,
    memory_used_bytes=3,
    memory_total_bytes=4,
    process_memory_bytes=2,
    power_watts=100.5,
    temperature_celsius=60,
    ecc_errors=1,
)
SLICE = replace(
    FULL,
    index=1,
    uuid="MIG-b",
    utilization_ratio=None,
    memory_utilization_ratio=None,
    process_memory_bytes=None,
    power_watts=None,
    ecc_errors=None,
)


def scraped(*samples: GpuSample) -> dict[tuple[str, str], float]:
    """Return value by (name, number of the GPU), after what a scraper would parse."""
    registry = CollectorRegistry()
    registry.register(GpuCollector(lambda: samples))
    text = generate_latest(registry).decode()
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert set(sample.labels) == {"gpu", "uuid", "name"}
            found[sample.name, sample.labels["gpu"]] = sample.value
    return found


def test_every_value_of_a_gpu_has_its_family() -> None:
    assert scraped(FULL) == {
        ("sluice_gpu_utilization_ratio", "0"): 0.5,
        ("sluice_gpu_memory_utilization_ratio", "0"): 0.25,
        ("sluice_gpu_memory_used_bytes", "0"): 3,
        ("sluice_gpu_memory_total_bytes", "0"): 4,
        ("sluice_gpu_process_memory_bytes", "0"): 2,
        ("sluice_gpu_power_watts", "0"): 100.5,
        ("sluice_gpu_temperature_celsius", "0"): 60,
        ("sluice_gpu_ecc_errors_total", "0"): 1,
    }


def test_a_value_that_a_gpu_does_not_tell_is_no_zero_but_absent() -> None:
    told = {name for name, gpu in scraped(FULL, SLICE) if gpu == "1"}
    assert told == {
        "sluice_gpu_memory_used_bytes",
        "sluice_gpu_memory_total_bytes",
        "sluice_gpu_temperature_celsius",
    }


def test_a_zero_that_a_gpu_tells_is_written() -> None:
    assert scraped(replace(FULL, ecc_errors=0))["sluice_gpu_ecc_errors_total", "0"] == 0


def test_a_family_is_absent_where_no_gpu_has_its_value() -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector(lambda: [SLICE]))
    assert "power_watts" not in generate_latest(registry).decode()


def test_without_a_gpu_nothing_is_written() -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector(list))
    assert generate_latest(registry) == b""


def test_the_labels_are_the_number_the_uuid_and_the_name() -> None:
    (family,) = (m for m in GpuCollector(lambda: [FULL]).collect() if m.name.endswith("watts"))
    (sample,) = family.samples
    assert sample.labels == {"gpu": "0", "uuid": "GPU-a", "name": 'Some "GPU"'}
