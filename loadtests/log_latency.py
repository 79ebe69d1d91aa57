"""`python -m loadtests.log_latency WHAT`: how the prediction log is felt in latencies.

Asks a small model at a fixed rate, in windows that alternate within one run (off, on, on, off, …),
so that whatever else the machine does meets both; medians of the windows are compared. WHAT is

  stopped   on: Redis is stopped (SIGSTOP) for the window, and continued after it; one gateway
  thread    on: a gateway whose records a thread writes; off: one whose event loop writes them
  disk      on: a gateway that syncs records to the disk before it answers; off: the default
  log       on: a gateway with the prediction log; off: one without
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

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
from loadtests.shadow import NotMeasured, Summary, Window, order, summary, window
from loadtests.signals import sigterm_interrupts

RESULTS: Final = Path(__file__).parent / "results"
SETTINGS: Final = {
    "stopped": ("", ""),
    "thread": ("", 'append = "thread"\n'),
    "disk": ("", 'durability = "disk"\n'),
    "log": ("enabled = false\n", ""),
}
"""Of [prediction_log], off and on."""
WINDOWS: Final = 12
WINDOW_S: Final = {"stopped": 10.0}
DEFAULT_WINDOW_S: Final = 5.0
SETTLE_S: Final = 0.5
RATE: Final = 800.0
WARM_UP_S: Final = 2.0
MODEL: Final = "small"
WIDTHS: Final = (30, 64, 3)
CATCH_UP_S: Final = 60.0
CAUGHT_UP: Final = 100
"""Records that may be on their way to a Redis that has caught up."""
METHOD: Final = (
    "open loop over HTTP binary, one row of 30 FP32 per request, independent arrivals; latency "
    "from sending to the whole answer, at the caller; caller, gateways and Redis share the cores"
)


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    redis: str
    method: str
    requests_per_second: float
    window_s: float
    summary: Summary
    failed_requests: int
    windows: list[Window]


class Requests:
    """Makes infer calls of one row."""

    def __init__(self, gateway: RunningGateway) -> None:
        taken = payloads.signature(asking.get_json(f"{gateway.http_url}/v2/models/{MODEL}"))
        body, json_bytes = payloads.as_binary(payloads.random_row(taken, np.random.default_rng(1)))
        headers = {payloads.HEADER_LENGTH: str(json_bytes)}
        self._request = http_loop.post(f"/v2/models/{MODEL}/infer", body, headers)

    def __call__(self) -> bytes:
        """Return the next one."""
        return self._request


class Stopped:
    """Redis that is stopped while a window is on, and has caught up before the next begins."""

    def __init__(self, gateway: RunningGateway, redis: RedisServer) -> None:
        self._metrics = f"{url(gateway.addresses.metrics)}/metrics"
        self._redis = redis

    async def turn(self, *, is_on: bool) -> None:
        """Stop Redis, or continue it and wait until it has everything."""
        os.kill(self._redis.pid, signal.SIGSTOP if is_on else signal.SIGCONT)
        until_s = time.monotonic() + CATCH_UP_S
        while not is_on and await asyncio.to_thread(self._spooled) > CAUGHT_UP:
            if time.monotonic() > until_s:
                raise NotMeasured("the gateway does not catch up")
            await asyncio.sleep(0.2)

    def _spooled(self) -> float:
        text = asking.get_text(self._metrics)
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("sluice_log_spooled_records{")
        )


async def measure(
    gateways: Sequence[RunningGateway], stopped: Stopped | None, options: argparse.Namespace
) -> tuple[list[Window], int]:
    """Measure window after window; return them, and how many requests failed."""
    measured, was_on = list[Window](), False
    async with AsyncExitStack() as stack:
        loads = [
            await stack.enter_async_context(
                OpenLoop(gateway.addresses.http, Requests(gateway), rate=options.rate)
            )
            for gateway in gateways
        ]
        for load in loads:
            await load.run(WARM_UP_S)
        for is_on in order(options.windows):
            if stopped is not None and is_on is not was_on:
                await stopped.turn(is_on=is_on)
            was_on = is_on
            load = loads[is_on and len(loads) - 1]
            await load.run(SETTLE_S)
            latencies_s = await load.run(options.seconds)
            measured.append(window(latencies_s, is_on=is_on, eligible=0, sent=0))
            print(shown_window(len(measured), measured[-1]), flush=True)
        if stopped is not None:
            await stopped.turn(is_on=False)
        return measured, sum(len(load.failures) for load in loads)


def shown_window(number: int, found: Window) -> str:
    """Return a window as a line."""
    figures = f"p50 {found.p50_ms:8.3f}  p99 {found.p99_ms:8.3f}  max {found.max_ms:8.3f} ms"
    return f"  {number:2} {'on ' if found.is_on else 'off'} {figures}  {found.requests} requests"


def shown(found: Summary) -> list[str]:
    """Return the comparison as a table."""
    return [
        f"{'median of the windows, ms':28}{'off':>12}{'on':>12}{'on / off':>10}",
        f"{'p50':28}{found.off_p50_ms:>12.3f}{found.on_p50_ms:>12.3f}{found.ratio_p50:>10.3f}",
        f"{'p99':28}{found.off_p99_ms:>12.3f}{found.on_p99_ms:>12.3f}{found.ratio_p99:>10.3f}",
        f"{'p99, neighbours compared':28}{'':24}{found.paired_ratio_p99:>10.3f}",
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 0 unless a request failed or nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.log_latency", description=__doc__)
    parser.add_argument("what", choices=sorted(SETTINGS))
    parser.add_argument("--windows", type=int, default=WINDOWS, help=f"even; {WINDOWS}")
    parser.add_argument("--seconds", type=float, help="each")
    parser.add_argument("--rate", type=float, default=RATE, help=f"requests/s; {RATE:g}")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or WINDOW_S.get(options.what, DEFAULT_WINDOW_S)
    if options.windows < 2 or options.windows % 2 or options.rate <= 0:
        parser.error("--windows is even, --rate is positive")
    try:
        with sigterm_interrupts():
            results = _run(options)
    except (DemoFailed, RedisStartError, NoAnswer, NotMeasured, LoopFailed, OSError) as exc:
        details = exc.details if isinstance(exc, DemoFailed) else ()
        print(f"\nlog_latency: {exc}", *details, sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    output = RESULTS / f"log-{options.what}.json"
    output.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    print("", *shown(results.summary), f"{results.failed_requests} requests failed", sep="\n")
    print(f"every window is in {output}")
    return 1 if results.failed_requests else 0


def _run(options: argparse.Namespace) -> Results:
    binary = find_redis()
    if binary is None:
        raise NotMeasured(INSTALL_HINT)
    setting = machine.describe()
    print(f"{setting.cpu}, {setting.cores} cores, load {setting.load_average} (1 minute) before")
    with TemporaryDirectory(prefix="sluice-log-") as name, ExitStack() as stack:
        folder = Path(name)
        models.write_mlp(folder / "models" / MODEL / "1" / "model.onnx", WIDTHS, seed=1)
        redis = stack.enter_context(RedisServer(binary, folder / "redis", append_only=False))
        is_one = options.what == "stopped"
        gateways = []
        for state, settings in zip(("off", "on"), SETTINGS[options.what], strict=True):
            if is_one and state == "on":
                continue
            home = folder / state
            home.mkdir()
            running = gateway_process.running(
                home, folder / "models", f"[prediction_log]\n{settings}", redis_url=redis.url
            )
            gateways.append(stack.enter_context(running))
        stopped = Stopped(gateways[0], redis) if is_one else None
        measured, failures = asyncio.run(measure(gateways, stopped, options))
    return Results(
        setting=setting,
        redis=binary.source,
        method=METHOD,
        requests_per_second=options.rate,
        window_s=options.seconds,
        summary=summary(measured),
        failed_requests=failures,
        windows=measured,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
