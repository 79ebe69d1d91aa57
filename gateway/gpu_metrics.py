"""The GPUs' state as metrics: the last samples, written out when somebody scrapes.

A family is there only while some GPU tells its value: without a GPU there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.nvml import GpuSample

_LABELS: Final = ("gpu", "uuid", "name")


class _Family(NamedTuple):
    kind: type[GaugeMetricFamily | CounterMetricFamily]
    name: str
    text: str
    value: Callable[[GpuSample], float | None]


_FAMILIES: Final = (
    _Family(
        GaugeMetricFamily,
        "utilization_ratio",
        "Part of the last moments in which a kernel ran, whoever's it was.",
        lambda sample: sample.utilization_ratio,
    ),
    _Family(
        GaugeMetricFamily,
        "memory_utilization_ratio",
        "Part of the last moments in which GPU memory was read or written.",
        lambda sample: sample.memory_utilization_ratio,
    ),
    _Family(
        GaugeMetricFamily,
        "memory_used_bytes",
        "GPU memory in use, by all processes.",
        lambda sample: sample.memory_used_bytes,
    ),
    _Family(
        GaugeMetricFamily,
        "memory_total_bytes",
        "GPU memory there is.",
        lambda sample: sample.memory_total_bytes,
    ),
    _Family(
        GaugeMetricFamily,
        "process_memory_bytes",
        "GPU memory in use by this process.",
        lambda sample: sample.process_memory_bytes,
    ),
    _Family(GaugeMetricFamily, "power_watts", "Power drawn.", lambda sample: sample.power_watts),
    _Family(
        GaugeMetricFamily,
        "temperature_celsius",
        "Temperature of the GPU.",
        lambda sample: sample.temperature_celsius,
    ),
    _Family(
        CounterMetricFamily,
        "ecc_errors",
        "GPU memory errors that could not be corrected, since the driver was loaded.",
        lambda sample: sample.ecc_errors,
    ),
)


class GpuCollector(Collector):
    """Writes out what `engines.nvml.Sampler` saw last.

    Args:
        samples: returns the last sample of every GPU.
    """

    def __init__(self, samples: Callable[[], Iterable[GpuSample]]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        """Yield every family that has a value."""
        samples = tuple(self._samples())
        for kind, name, text, value_of in _FAMILIES:
            family = kind(f"sluice_gpu_{name}", text, labels=_LABELS)
            for sample in samples:
                value = value_of(sample)
                if value is not None:
                    family.add_metric([str(sample.index), sample.uuid, sample.name], value)
            if family.samples:
                yield family
