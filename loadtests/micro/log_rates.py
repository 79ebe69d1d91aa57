"""`python -m loadtests.micro.log_rates`: what a record costs the gateway, and how fast it is read.

The prediction log alone (PredictionLog, with a spool in a temporary folder and a real Redis), in
this process. For each durability, by turns:

  whole           records come in as fast as they are shipped: CPU per record until Redis has all
  offer, commit   the same with Redis stopped (SIGSTOP), so that nothing is shipped
  shipping        Redis is continued, and takes what has piled up

CPU is that of this process with all its threads; Redis' own is not counted, but it shares the
cores. Then a reader that starts late: see log_reading.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import redis
import uvloop

from gateway.demo.redis_server import INSTALL_HINT, RedisServer, find_redis
from gateway.garbage import spare_the_collector
from gateway.prediction_log.log import PredictionLog
from gateway.prediction_log_config import PredictionLogConfig, RetentionConfig
from loadtests.bench import machine
from loadtests.bench.machine import Setting
from loadtests.micro import log_reading
from loadtests.micro.log_load import (
    BATCH,
    CALLERS,
    CLASSES,
    FEATURES,
    MOST_SPOOLED,
    REPLICA,
    Feed,
    NotMeasured,
    check,
    emptied,
)
from loadtests.micro.log_reading import Reading

RESULTS: Final = Path(__file__).parents[1] / "results" / "log-rates.json"
ROUNDS: Final = 5
RECORDS: Final = 200_000
"""Of one phase of one round."""
READ: Final = 1_000_000
LIMIT_US: Final = 5.0
"""Of the whole, with the default settings."""
DEFAULT: Final = "process, loop"
DURABILITIES: Final[Mapping[str, Mapping[str, str]]] = {
    "memory": {"durability": "memory"},
    DEFAULT: {"durability": "process", "append": "loop"},
    "process, thread": {"durability": "process", "append": "thread"},
    "disk": {"durability": "disk"},
}
METHOD: Final = (
    f"batches of {BATCH} records of {FEATURES} FP32 in and {CLASSES} FP32 out, one commit each, "
    f"{CALLERS} batches at a time, each after the one before it in its row is written; CPU of the "
    "process and its threads until all is shipped, without making the records, which are used "
    "again; Redis without persistence on the same cores, its CPU not counted; the stream is "
    "trimmed meanwhile; what piled up is sent unpaced; rates by the wall clock"
)
_TRIMMED_TO: Final = 100_000
_PATIENT_S: Final = 600.0
"""Longer than Redis is ever stopped here."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One durability in one round."""

    whole_us: float
    records_per_s: float
    """Sustained: offered and shipped."""
    intake_us: float
    """Offer and commit alone, with the spool's own work."""
    shipping_us: float
    shipped_per_s: float
    """Of what had piled up."""
    shipped_at_once: float
    """Records per exchange with Redis, of those."""
    spool_bytes: float
    """Per record."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """One durability."""

    durability: str
    samples: list[Sample]

    def median(self, field: str) -> float:
        """Return the median of the rounds."""
        values: list[float] = [getattr(sample, field) for sample in self.samples]
        return statistics.median(values)


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    redis: str
    filesystem: str
    """Under the segment files; on tmpfs nothing can be said of durability disk."""
    method: str
    records: int
    limit_us: float
    rates: list[Rate]
    reading: Reading | None = None

    @property
    def is_good(self) -> bool:
        """Whether the default settings keep to the limit, and gaps were named exactly."""
        default = [rate for rate in self.rates if rate.durability == DEFAULT]
        is_within = all(rate.median("whole_us") <= self.limit_us for rate in default)
        return is_within and (self.reading is None or self.reading.is_exact)


class Stopwatch:
    """CPU time of this process and wall time, from when it is made."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Return CPU microseconds per record, and records per second."""
        cpu_s, wall_s = time.process_time() - self._cpu_s, time.perf_counter() - self._wall_s
        return round(cpu_s / self._records * 1e6, 3), round(self._records / wall_s)


def settings(durability: str, records: int) -> PredictionLogConfig:
    """Return the defaults, but for what is measured and room for what piles up."""
    changes: dict[str, Any] = {  # Any: fields of the settings
        **DURABILITIES[durability],
        "buffer_records": 2 * records + 65_536,
        "buffer_bytes": 8 << 30,
        "replay_factor": 1e9,
        "timeout_s": _PATIENT_S,
        "retention": RetentionConfig(max_entries=_TRIMMED_TO),
    }
    return msgspec.structs.replace(PredictionLogConfig(), **changes)


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    """Stop Redis for the length of a block."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def measure(durability: str, base: Path, server: RedisServer, records: int) -> Sample:
    """Measure a fresh log once.

    Raises:
        NotMeasured: records were lost, or sent twice.
    """
    config = settings(durability, records)
    log = PredictionLog(config, url=server.url, replica=REPLICA, base=base)
    warm_up = max(BATCH, log_reading.whole_batches(records // 4))
    await log.start()
    try:
        spare_the_collector()
        await Feed(log, warm_up, most_spooled=MOST_SPOOLED).run()
        await emptied(log)
        feed, watch = Feed(log, records, most_spooled=MOST_SPOOLED), Stopwatch(records)
        await feed.run()
        await emptied(log)
        whole_us, records_per_s = watch.read()
        with stopped(server):
            feed, watch = Feed(log, records), Stopwatch(records)
            await feed.run()
            intake_us, _ = watch.read()
            before = log.statistics()
        watch = Stopwatch(records)
        await emptied(log)
        shipping_us, shipped_per_s = watch.read()
        exchanges = log.statistics().ship_batches - before.ship_batches
    finally:
        await log.close(_PATIENT_S)
    check(log, offered=warm_up + 2 * records)
    return Sample(
        whole_us=whole_us,
        records_per_s=records_per_s,
        intake_us=intake_us,
        shipping_us=shipping_us,
        shipped_per_s=shipped_per_s,
        shipped_at_once=round(records / exchanges, 1),
        spool_bytes=round(before.spooled_bytes / records, 1),
    )


async def measure_all(
    folder: Path, server: RedisServer, *, records: int, rounds: int
) -> list[Rate]:
    """Measure every durability once per round.

    Raises:
        NotMeasured: records were lost, or sent twice.
    """
    taken: dict[str, list[Sample]] = {durability: [] for durability in DURABILITIES}
    for _ in range(rounds):
        for durability, samples in taken.items():
            with TemporaryDirectory(dir=folder) as base:
                samples.append(await measure(durability, Path(base), server, records))
            with redis.Redis.from_url(server.url) as client:
                client.flushall()
    return [Rate(durability=name, samples=samples) for name, samples in taken.items()]


def filesystem(folder: Path, mounts: str) -> str:
    """Return the type of file system that a folder is on, by the text of /proc/mounts."""
    lines = [line.split() for line in mounts.splitlines()]
    above = {str(path) for path in (folder, *folder.parents)}
    # Of those mounted on one folder the last one is seen.
    around = [(len(fields[1]), number, fields[2]) for number, fields in enumerate(lines)
              if fields[1] in above]  # fmt: skip
    return max(around, default=(0, 0, "unknown"))[2]


def shown(results: Results) -> list[str]:
    """Return the tables."""
    columns = ("whole", "offer, commit", "shipping", "records/s", "shipped/s", "bytes")
    fields = (
        "whole_us", "intake_us", "shipping_us", "records_per_s", "shipped_per_s", "spool_bytes",
    )  # fmt: skip
    lines = [
        f"CPU of the prediction log, microseconds per record (spool on {results.filesystem})",
        f"{'durability':18}" + "".join(f"{column:>14}" for column in columns),
    ]
    for rate in results.rates:
        medians = [rate.median(field) for field in fields]
        figures = "".join(f"{value:>14.2f}" for value in medians[:3])
        figures += "".join(f"{value:>14,.0f}" for value in medians[3:])
        lines.append(f"{rate.durability:18}{figures}")
    for rate in results.rates:
        if rate.durability == DEFAULT:
            whole_us = rate.median("whole_us")
            verdict = "within" if whole_us <= results.limit_us else "OVER"
            limit = f"{verdict} the limit of {results.limit_us:g}"
            lines.append(f"{DEFAULT}: {whole_us:.2f}, {limit}")
    return lines + (results.reading.shown() if results.reading is not None else [])


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 0 if the limit was kept and gaps were named exactly."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.micro.log_rates", description=__doc__
    )
    parser.add_argument("--records", type=int, default=RECORDS, help=f"per phase; {RECORDS}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS}")
    parser.add_argument("--read", type=int, default=READ, help=f"records, 0: none; {READ}")
    parser.add_argument("--folder", type=Path, help="where the spools are; temporary files'")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    options.records = log_reading.whole_batches(options.records)
    options.read = log_reading.whole_batches(options.read)
    if options.records < BATCH or options.rounds < 1:
        parser.error(f"--records is at least {BATCH}, --rounds is positive")
    if options.read and options.read < log_reading.SMALLEST:
        parser.error(f"--read is 0 or at least {log_reading.SMALLEST}")
    try:
        results = _run(options)
    except NotMeasured as exc:
        print(exc, file=sys.stderr)
        return 1
    print(*shown(results), sep="\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    return 0 if results.is_good else 1


def _run(options: argparse.Namespace) -> Results:
    binary = find_redis()
    if binary is None:
        raise NotMeasured(INSTALL_HINT)
    setting = machine.describe_fully()
    print(f"{setting.cpu}, {setting.cores} cores, others take {setting.busy:.0%}")
    reading = None
    with (
        TemporaryDirectory(prefix="sluice-log-", dir=options.folder) as name,
        RedisServer(binary, Path(name, "redis"), append_only=False) as server,
    ):
        folder = Path(name)
        rates = uvloop.run(
            measure_all(folder, server, records=options.records, rounds=options.rounds)
        )
        if options.read:
            uvloop.run(log_reading.fill(folder / "late", server.url, options.read))
            reading = log_reading.measure(server, options.read)
        found = filesystem(folder.resolve(), Path("/proc/mounts").read_text())
    return Results(
        setting=setting,
        redis=binary.source,
        filesystem=found,
        method=METHOD,
        records=options.records,
        limit_us=LIMIT_US,
        rates=rates,
        reading=reading,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
