"""`python -m loadtests.shadow`: what a shadow costs the live requests that it copies.

Starts a Redis and a gateway, asks a model of two million weights at a fixed rate, and adds and
removes a shadow of all requests by turns, in one run: off, on, on, off, and so on, so that whatever
else the machine does meets both. The shadow's engine sleeps instead of computing: what is measured
is the copying, queueing, batching and logging, not the competition for cores, which depends on the
model. Latencies are those of callers; medians of the windows are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import numpy as np

from gateway.demo.gateway_process import url
from gateway.demo.redis_server import INSTALL_HINT, RedisServer, RedisStartError, find_redis
from gateway.demo.screen import DemoFailed
from loadtests import asking, gateway_process, http_loop, payloads
from loadtests.asking import NoAnswer
from loadtests.bench import machine, models
from loadtests.bench.machine import Setting
from loadtests.gateway_process import RunningGateway
from loadtests.http_loop import LoopFailed
from loadtests.open_loop import OpenLoop
from loadtests.paced import Connection
from loadtests.signals import sigterm_interrupts

RESULTS: Final = Path(__file__).parent / "results" / "shadow.json"
WINDOWS: Final = 12
WINDOW_S: Final = 3.0
SETTLE_S: Final = 0.5
"""Of load before each window that is not counted: after a change, caches and queues are others."""
RATE: Final = 200.0
WARM_UP_S: Final = 2.0
READY_S: Final = 20.0
ROUTE, LIVE, NEXT, SHADOW = "live", "mlp", "sleeper", "next"
WIDTHS: Final = (256, 1024, 1024, 1024, 256)
SHADOW_LATENCY_MS: Final = 1_000.0
"""Of a batch of the shadow's: idle all the time, so that most copies are dropped as too old."""
MAX_BATCH_SIZE: Final = 8
LOG_ENTRIES: Final = 100_000
METHOD: Final = (
    "open loop over HTTP binary, one row per request, independent arrivals (exponential gaps); "
    "latency from sending to the whole answer, at the caller; the shadow is added and removed "
    "through the admin API, and is ready before its window; metrics and the prediction log are on, "
    "live and shadow records go to Redis; caller, gateway and Redis share the cores"
)
_TENSOR: Final = {"datatype": "FP32", "shape": [-1, WIDTHS[0]]}


class NotMeasured(Exception):
    """The sentence says why there are no figures."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Some seconds with the shadow on or off."""

    is_on: bool
    requests: int
    """Answered well."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    eligible: int
    """Requests that the shadow was to copy; 0 while it is off."""
    sent: int
    """Copies that it answered meanwhile."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of the windows' percentiles, and how they compare."""

    off_p50_ms: float
    on_p50_ms: float
    off_p99_ms: float
    on_p99_ms: float
    ratio_p50: float
    """On over off, of the medians."""
    ratio_p99: float
    paired_ratio_p99: float
    """Median of on over off within each pair of neighbouring windows."""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    redis: str
    method: str
    requests_per_second: float
    window_s: float
    summary: Summary
    failed_requests: int
    first_failures: list[str]
    windows: list[Window]


def order(windows: int) -> list[bool]:
    """Return whether the shadow is on in each window: off, on, on, off, off, on, ..."""
    return [n % 4 in (1, 2) for n in range(windows)]


def window(latencies_s: Sequence[float], *, is_on: bool, eligible: int, sent: int) -> Window:
    """Return a window of some latencies; raises NotMeasured without any."""
    if not latencies_s:
        raise NotMeasured("no request of a window was answered")
    ranked = sorted(latencies_s)
    p50, p99, most = (
        round(ranked[math.ceil(share * len(ranked)) - 1] * 1e3, 3) for share in (0.5, 0.99, 1)
    )
    return Window(
        is_on=is_on,
        requests=len(ranked),
        p50_ms=p50,
        p99_ms=p99,
        max_ms=most,
        eligible=eligible,
        sent=sent,
    )


def summary(windows: Sequence[Window]) -> Summary:
    """Compare the windows with the shadow on with those without it; neighbours are a pair."""
    on, off = ([w for w in windows if w.is_on is is_on] for is_on in (True, False))
    on_p50, off_p50 = (statistics.median(w.p50_ms for w in some) for some in (on, off))
    on_p99, off_p99 = (statistics.median(w.p99_ms for w in some) for some in (on, off))
    pairs = zip(windows[::2], windows[1::2], strict=True)
    paired = [
        max(pair, key=lambda w: w.is_on).p99_ms / min(pair, key=lambda w: w.is_on).p99_ms
        for pair in pairs
    ]
    return Summary(
        off_p50_ms=round(off_p50, 3),
        on_p50_ms=round(on_p50, 3),
        off_p99_ms=round(off_p99, 3),
        on_p99_ms=round(on_p99, 3),
        ratio_p50=round(on_p50 / off_p50, 4),
        ratio_p99=round(on_p99 / off_p99, 4),
        paired_ratio_p99=round(statistics.median(paired), 4),
    )


def write_models(root: Path, shadow_latency_ms: float) -> None:
    """Write the live model, and the shadow's: a fake that sleeps."""
    models.write_mlp(root / LIVE / "1" / "model.onnx", WIDTHS, seed=1)
    models.write_config(root / LIVE, max_batch_size=MAX_BATCH_SIZE, is_batched=True, threads=1)
    script = {
        "inputs": [{"name": "x", **_TENSOR}],
        "outputs": [{"name": "y", **_TENSOR}],
        "max_batch_size": MAX_BATCH_SIZE,
        "latency_ms": shadow_latency_ms,
    }
    path = root / NEXT / "1" / "model.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(script))


def tables() -> str:
    """Return the route, without its shadow, and the log's settings, as TOML."""
    return (
        f'[routes.{ROUTE}]\nkey = ["header:x-user-id"]\n'
        f"[routes.{ROUTE}.variants]\n"
        f'stable = {{ model = "{LIVE}", version = "1", weight = 100 }}\n'
        f"[prediction_log.retention]\nmax_entries = {LOG_ENTRIES}\n"
    )


class Requests:
    """Makes infer calls of one row, each with a key of its own."""

    def __init__(self, gateway: RunningGateway) -> None:
        taken = payloads.signature(asking.get_json(f"{gateway.http_url}/v2/models/{ROUTE}"))
        row = payloads.random_row(taken, np.random.default_rng(1))
        self._body, json_bytes = payloads.as_binary(row)
        self._headers = {payloads.HEADER_LENGTH: str(json_bytes)}
        self._path = f"/v2/models/{ROUTE}/infer"

    def __call__(self) -> bytes:
        """Return the next one."""
        key = f"user-{random.getrandbits(64):016x}"
        return http_loop.post(self._path, self._body, self._headers | {"x-user-id": key})


class Switch:
    """Adds and removes the shadow through the admin API."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._admin = gateway.addresses.admin
        self._url = f"{url(self._admin)}/v1/routes/{ROUTE}"

    async def counts(self) -> tuple[int, int]:
        """Return the requests that the shadow was eligible for and those that it answered."""
        answered = await asyncio.to_thread(asking.get_json, f"{self._url}/stats")
        row = answered["shadows"].get(SHADOW, {"eligible": 0, "sent": 0})
        return row["eligible"], row["sent"]

    async def turn(self, *, is_on: bool) -> None:
        """Add the shadow, or remove it; raises NotMeasured."""
        shadow: dict[str, Any] | None = None  # Any: a part of a route document
        if is_on:
            shadow = {"model": NEXT, "version": "1", "sample": 100}
        now = await asyncio.to_thread(asking.get_json, self._url)
        body = json.dumps({"shadows": {SHADOW: shadow}}).encode()
        lines = [
            f"PATCH /v1/routes/{ROUTE} HTTP/1.1",
            "Host: gateway",
            "Content-Type: application/merge-patch+json",
            f"Content-Length: {len(body)}",
            f'If-Match: "g{now["generation"]}-{now["revision"]}"',
            "X-Reason: measuring what a shadow costs",
        ]
        connection = await Connection.open(self._admin)
        try:
            answer = await connection.ask("\r\n".join([*lines, "", ""]).encode() + body)
        finally:
            connection.close()
        if answer.status != 200:
            raise NotMeasured(f"the shadow was not changed: {answer.status}: {answer.body!r}")

    async def wait_sending(self, load: OpenLoop) -> None:
        """Load until the shadow answers what it is sent; raises NotMeasured."""
        until_s = time.monotonic() + READY_S
        while (await self.counts())[1] == 0:
            if time.monotonic() > until_s:
                raise NotMeasured(f"the shadow has answered nothing within {READY_S:g} s")
            await load.run(0.1)


async def measure(
    gateway: RunningGateway, *, windows: int, window_s: float, rate: float
) -> tuple[list[Window], list[str]]:
    """Measure window after window; return them, and the requests that failed."""
    switch, measured, was_on = Switch(gateway), list[Window](), False
    async with OpenLoop(gateway.addresses.http, Requests(gateway), rate=rate) as load:
        await load.run(WARM_UP_S)
        for is_on in order(windows):
            if is_on is not was_on:
                await switch.turn(is_on=is_on)
                was_on = is_on
            if is_on:
                await switch.wait_sending(load)
            await load.run(SETTLE_S)
            before = await switch.counts()
            latencies_s = await load.run(window_s)
            eligible, sent = (b - a for a, b in zip(before, await switch.counts(), strict=True))
            measured.append(window(latencies_s, is_on=is_on, eligible=eligible, sent=sent))
            print(*shown_window(len(measured), measured[-1]), sep="\n", flush=True)
        return measured, load.failures


def shown_window(number: int, found: Window) -> list[str]:
    """Return a window as a line."""
    state = f"on, {found.sent} of {found.eligible} copies answered" if found.is_on else "off"
    figures = f"p50 {found.p50_ms:8.3f}  p99 {found.p99_ms:8.3f}  max {found.max_ms:8.3f} ms"
    return [f"  {number:2}  {figures}  {found.requests} requests, shadow {state}"]


def shown(found: Summary) -> list[str]:
    """Return the comparison as a table."""
    return [
        f"{'median of the windows, ms':28}{'shadow off':>12}{'shadow on':>12}{'on / off':>10}",
        f"{'p50':28}{found.off_p50_ms:>12.3f}{found.on_p50_ms:>12.3f}{found.ratio_p50:>10.3f}",
        f"{'p99':28}{found.off_p99_ms:>12.3f}{found.on_p99_ms:>12.3f}{found.ratio_p99:>10.3f}",
        f"{'p99, neighbours compared':28}{'':24}{found.paired_ratio_p99:>10.3f}",
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 0 unless a request failed or nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.shadow", description=__doc__)
    parser.add_argument("--windows", type=int, default=WINDOWS, help=f"even; {WINDOWS}")
    parser.add_argument("--seconds", type=float, default=WINDOW_S, help=f"each; {WINDOW_S:g}")
    parser.add_argument("--rate", type=float, default=RATE, help=f"requests/s; {RATE:g}")
    parser.add_argument(
        "--latency-ms", type=float, default=SHADOW_LATENCY_MS, help="of the shadow's engine"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.windows < 2 or options.windows % 2 or options.seconds <= 0 or options.rate <= 0:
        parser.error("--windows is even, --seconds and --rate are positive")
    try:
        with sigterm_interrupts():
            results = _run(options.windows, options.seconds, options.rate, options.latency_ms)
    except (DemoFailed, RedisStartError, NoAnswer, NotMeasured, LoopFailed, OSError) as exc:
        details = exc.details if isinstance(exc, DemoFailed) else ()
        print(f"\nshadow: {exc}", *details, sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    print("", *shown(results.summary), f"{results.failed_requests} requests failed", sep="\n")
    print(f"every window is in {options.output}")
    return 1 if results.failed_requests else 0


def _run(windows: int, window_s: float, rate: float, latency_ms: float) -> Results:
    binary = find_redis()
    if binary is None:
        raise NotMeasured(INSTALL_HINT)
    setting = machine.describe()
    print(f"{setting.cpu}, {setting.cores} cores, load {setting.load_average} (1 minute) before")
    print(f"revision {setting.revision}, {rate:g} requests/s, {windows} windows of {window_s:g} s")
    with TemporaryDirectory(prefix="sluice-shadow-") as name:
        folder = Path(name)
        write_models(folder / "models", latency_ms)
        with (
            RedisServer(binary, folder / "redis", append_only=False) as redis,
            gateway_process.running(
                folder, folder / "models", tables(), redis_url=redis.url
            ) as gateway,
        ):
            measured, failures = asyncio.run(
                measure(gateway, windows=windows, window_s=window_s, rate=rate)
            )
    return Results(
        setting=setting,
        redis=binary.source,
        method=METHOD,
        requests_per_second=rate,
        window_s=window_s,
        summary=summary(measured),
        failed_requests=len(failures),
        first_failures=failures[:5],
        windows=measured,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
