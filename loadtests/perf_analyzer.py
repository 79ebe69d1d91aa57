"""`make perf-analyzer`: Triton's perf_analyzer, unmodified, against a gateway of its own.

Shows that the tool works here in each of its modes, on a route and on a model, and what it prints:
rates and latencies as the client sees them, queue and compute times as the server states them. The
load and the gateway share the machine and a window lasts a second: for figures to compare, see
`make bench`. Exit codes: 0 every run came to its end and printed all of it, 1 not so.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.demo.gateway_process import Addresses
from gateway.demo.redis_server import RedisServer, find_redis
from gateway.demo.screen import DemoFailed
from loadtests import gateway_process, perf_analyzer_binary
from loadtests.bench.models import TINY, write_mlp
from loadtests.perf_analyzer_binary import NotAvailable, PerfAnalyzer

ROUTE: Final = "digits"
"""Bears the name of its model, as in the documentation."""
MODEL: Final = "tiny"
STABILITY_PERCENT: Final = 100
"""perf_analyzer ends a run when three windows in a row differ by no more than this."""
TRIALS: Final = 10
"""Windows after which a run that does not settle has failed."""
_RUN_LIMIT_S: Final = 120.0
_ROUTES: Final = f"""\
[routes.{ROUTE}.variants]
stable = {{ model = "{ROUTE}", version = "1", weight = 90 }}
canary = {{ model = "{ROUTE}", version = "2", weight = 10 }}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to use perf_analyzer."""

    name: str
    protocol: str
    """http or grpc."""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is asked: a public name, and a version of it or the one that the server chooses."""

    name: str
    shown: str
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The runs to make: each mode on each subject, at each concurrency."""

    runs: tuple[tuple[Subject, Mode], ...]
    concurrencies: tuple[int, ...]
    window_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What perf_analyzer printed of one concurrency."""

    concurrency: int
    per_second: float
    average_us: int
    p50_us: int
    p99_us: int
    requests: int
    """Successful ones, as the server counted them."""
    queue_us: int
    input_us: int
    infer_us: int
    output_us: int


HTTP: Final = Mode(name="HTTP", protocol="http")
GRPC: Final = Mode(name="gRPC", protocol="grpc")
_JSON: Final = ("--input-tensor-format", "json", "--output-tensor-format", "json")
_MODES: Final = (
    HTTP,
    Mode(name="HTTP async", protocol="http", options=("-a",)),
    Mode(name="HTTP JSON", protocol="http", options=_JSON),
    GRPC,
    Mode(name="gRPC async", protocol="grpc", options=("-a",)),
    Mode(name="gRPC streaming", protocol="grpc", options=("-a", "--streaming")),
    Mode(name="gRPC gzip", protocol="grpc", options=("--grpc-compression-algorithm", "gzip")),
)
_ON_ROUTE: Final = Subject(name=ROUTE, shown=f"route {ROUTE}")
_ON_MODEL: Final = Subject(name=MODEL, shown=f"model {MODEL}")
_ON_VERSION: Final = Subject(name=ROUTE, shown=f"{ROUTE} version 2", version="2")
FULL: Final = Plan(
    runs=(
        *((subject, mode) for subject in (_ON_ROUTE, _ON_MODEL) for mode in _MODES),
        *((_ON_VERSION, mode) for mode in (HTTP, GRPC)),
    ),
    concurrencies=(1, 8),
    window_ms=1_000,
)
SHORT: Final = Plan(
    runs=tuple((_ON_ROUTE, mode) for mode in (HTTP, GRPC)), concurrencies=(8,), window_ms=500
)
_HEADING: Final = (
    f"{'':34}{'at once':>8}{'per s':>9}{'avg us':>9}{'p99 us':>9}"
    f"{'server: queue':>16}{'input':>7}{'infer':>7}{'output us':>11}"
)


class RunFailed(Exception):
    """perf_analyzer did not come to its end, or did not print what it should."""


def main(arguments: Sequence[str]) -> int:
    """Make the runs; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.perf_analyzer", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("--short", action="store_true", help="HTTP and gRPC on the route, briefly")
    options = parser.parse_args(arguments)
    try:
        binary = perf_analyzer_binary.prepare()
        with _serving() as addresses:
            return _make(SHORT if options.short else FULL, binary, addresses)
    except (NotAvailable, DemoFailed) as exc:
        print(f"perf-analyzer: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def _serving() -> Iterator[Addresses]:
    """Serve a route over two versions, and a model, with a prediction log if there is a Redis."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-perf-")))
        models = folder / "models"
        for seed, (name, version) in enumerate(((ROUTE, "1"), (ROUTE, "2"), (MODEL, "1"))):
            write_mlp(models / name / version / "model.onnx", TINY, seed=seed)
        redis, url = find_redis(), None
        if redis is not None:
            directory = folder / "redis"
            directory.mkdir()
            url = stack.enter_context(RedisServer(redis, directory)).url
        where = redis.source if redis is not None else "nowhere: there is no Redis"
        print(
            f"a perceptron of widths {TINY}; route {ROUTE} 90/10; predictions are logged: {where}"
        )
        running = stack.enter_context(
            gateway_process.running(folder, models, _ROUTES, redis_url=url)
        )
        yield running.addresses


def _make(plan: Plan, binary: PerfAnalyzer, addresses: Addresses) -> int:
    print(f"{binary.version()}, unmodified\n{_HEADING}", flush=True)
    failed = 0
    for subject, mode in plan.runs:
        label = f"{subject.shown:<18}{mode.name:<16}"
        try:
            found = measure(binary, subject, mode, addresses, plan)
        except RunFailed as exc:
            failed += 1
            print(f"{label}FAILED: {exc}", flush=True)
            continue
        for row in found:
            print(label + show(row), flush=True)
    total = len(plan.runs)
    print(f"{total - failed} of {total} runs came to their end and printed the server's times")
    return 1 if failed else 0


def measure(
    binary: PerfAnalyzer, subject: Subject, mode: Mode, addresses: Addresses, plan: Plan
) -> list[Measured]:
    """Run perf_analyzer once; return what it printed.

    Raises:
        RunFailed: with all of its output.
    """
    host, port = getattr(addresses, mode.protocol)
    first, last = plan.concurrencies[0], plan.concurrencies[-1]
    command = [str(binary.path), "-m", subject.name, "-i", mode.protocol, "-u", f"{host}:{port}"]
    command += ["-x", subject.version] if subject.version else []
    command += ["--concurrency-range", f"{first}:{last}:{max(last - first, 1)}"]
    command += ["-p", str(plan.window_ms), "-s", str(STABILITY_PERCENT), "-r", str(TRIALS)]
    try:
        finished = subprocess.run(
            [*command, *mode.options],
            env=binary.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_RUN_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        output = (exc.stdout or b"").decode(errors="replace")
        raise RunFailed(f"not at its end after {_RUN_LIMIT_S:.0f} s:\n{output}") from None
    if finished.returncode:
        raise RunFailed(f"exit code {finished.returncode}:\n{finished.stdout}")
    found = read(finished.stdout)
    if tuple(row.concurrency for row in found) != plan.concurrencies:
        raise RunFailed(f"the figures are not those of {plan.concurrencies}:\n{finished.stdout}")
    return found


# The pieces of a report that matter, in the order in which perf_analyzer prints them.
_REPORT: Final = re.compile(
    r"Request concurrency: (?P<concurrency>\d+)\n"
    r".*?Throughput: (?P<per_second>[\d.]+) infer/sec\n"
    r".*?Avg latency: (?P<average_us>\d+) usec"
    r".*?p50 latency: (?P<p50_us>\d+) usec"
    r".*?p99 latency: (?P<p99_us>\d+) usec"
    r".*?Server: *\n"
    r".*?Successful request count: (?P<requests>\d+)\n"
    r".*?queue (?P<queue_us>\d+) usec \+ compute input (?P<input_us>\d+) usec \+ "
    r"compute infer (?P<infer_us>\d+) usec \+ compute output (?P<output_us>\d+) usec",
    re.DOTALL,
)


def read(output: str) -> list[Measured]:
    """Return the figures of each concurrency.

    Raises:
        RunFailed: a report lacks one of them, the server's times for instance, or counts nothing.
    """
    reports = output.split("Request concurrency: ")[1:]
    found = []
    for report in reports:
        match = _REPORT.match(f"Request concurrency: {report}")
        if match is None:
            raise RunFailed(f"a report lacks latencies or the server's times:\n{output}")
        texts = match.groupdict()
        row = Measured(
            per_second=float(texts.pop("per_second")),
            **{name: int(text) for name, text in texts.items()},
        )
        if not row.requests or not row.per_second:
            raise RunFailed(f"no request was counted:\n{output}")
        found.append(row)
    return found


def show(row: Measured) -> str:
    """Return a line of the table, without its label."""
    return (
        f"{row.concurrency:>8}{row.per_second:>9.0f}{row.average_us:>9}{row.p99_us:>9}"
        f"{row.queue_us:>16}{row.input_us:>7}{row.infer_us:>7}{row.output_us:>11}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
