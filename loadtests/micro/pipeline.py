"""`python -m loadtests.micro.pipeline`: what log, metrics and routing cost, by switching them off.

Runs the gateway's own composition (gateway.app.App, with a model, a route and a real Redis) in this
process, without a transport: requests as the adapters make them are submitted in bursts and
answered by callback. Four of them live side by side and are measured by turns:

  full      log, metrics, routing
  log       without a prediction log (prediction_log.enabled = false)
  metrics   with books that take no notice: the App is given Accounts that count nothing
  routing   the version is asked for directly, past its route

CPU is that of this process, engine threads and the log's writer included: a round ends when the
log is empty. Redis' own CPU time is not counted. A stage costs the difference to full in its round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from unittest import mock

import msgspec
import uvloop

from engines.tensors import Tensor, from_array
from gateway import app as composition
from gateway import config as configuration
from gateway.accounts import Accounts
from gateway.app import App
from gateway.demo.redis_server import INSTALL_HINT, RedisServer, find_redis
from gateway.garbage import spare_the_collector
from gateway.metrics import RequestMetrics
from gateway.request import InferRequest, InferResponse, ServedBy
from loadtests.bench import content, machine, models, questions
from loadtests.bench.results import StageCost, StageCosts

RESULTS: Final = Path(__file__).parents[1] / "results" / "pipeline.json"
ROUNDS: Final = 9
REQUESTS: Final = 20_000
"""Of one variation in one round."""
IN_FLIGHT: Final = 32
_USERS: Final = 256
_FULL: Final = "full"
STAGES: Final = ("log", "metrics", "routing")
_SERVER: Final = """\
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
metrics = "127.0.0.1:0"
admin = "127.0.0.1:0"
grpc_transport = "grpcio"
"""


class NotCounting(Accounts):
    """Books that take no notice of answers. What reads them finds them empty."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = _NoBatches()

    def answered(self, *_: object, **__: object) -> None:
        """Count nothing."""


class _NoBatches(RequestMetrics):
    def observe_batch(self, *_: object, **__: object) -> None:
        """Count nothing."""


class NotComparable(Exception):
    """What was switched off was not off, or requests failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """A running gateway, and how it is asked."""

    stage: str
    app: App
    name: str
    version: str

    async def run(self, requests: int) -> float:
        """Have so many requests answered; return CPU microseconds per request.

        Raises:
            NotComparable: one failed.
        """
        burst = _Burst(self, requests)
        cpu_before_s = time.process_time()
        await burst.done
        # Polled: the log tells nobody that it is empty, and one poll per linger costs nothing.
        while self.app.log.statistics().total.spooled:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        cpu_s = time.process_time() - cpu_before_s
        if burst.failed is not None:
            raise NotComparable(f"{self.stage}: {burst.failed!r}")
        return cpu_s / requests * 1e6


class _Burst:
    """Keeps requests under way until so many are answered: the next ones when all are.

    Transports hand requests over as they come out of one read, in bursts; so does this.
    """

    def __init__(self, asked: Variation, requests: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed: Exception | None = None
        self._asked = asked
        self._left = requests
        self._under_way = 0
        self._number = 0
        self._submit()

    def _submit(self) -> None:
        self._under_way = many = min(IN_FLIGHT, self._left)
        for _ in range(many):
            self._number += 1
            user = _USER_NAMES[self._number % _USERS]
            request = InferRequest(
                name=self._asked.name,
                version=self._asked.version,
                inputs=_INPUTS,
                header={content.KEY_HEADER: user}.get,
                protocol="grpc",
            )
            self._asked.app.pipeline.submit(request, self._reply)

    def _reply(self, answer: InferResponse | Exception, _: ServedBy) -> None:
        if isinstance(answer, Exception):
            self.failed = answer
        self._left -= 1
        self._under_way -= 1
        if self._under_way:
            return
        if self._left and self.failed is None:
            # Not from inside the batch's own answers: a transport reads first.
            asyncio.get_running_loop().call_soon(self._submit)
        else:
            self.done.set_result(None)


_USER_NAMES: Final = tuple(f"user-{number:04}" for number in range(_USERS))
_INPUTS: Final[tuple[Tensor, ...]] = (from_array(models.INPUT, "FP32", questions.row("tiny")),)


async def compose(folder: Path, models_folder: Path, redis_url: str, stage: str) -> Variation:
    """Start one gateway with a stage switched off, or with none."""
    home = folder / stage
    home.mkdir()
    parts = [_SERVER, f'replica = "{stage}"\n', f"[redis]\nurl = {json.dumps(redis_url)}\n"]
    tables = content.tables()
    if stage == "log":
        tables = tables.replace("[prediction_log]\n", "[prediction_log]\nenabled = false\n")
    file = home / "sluice.toml"
    file.write_text("".join([*parts, tables]))
    config = configuration.load(file, {})
    with mock.patch.object(
        composition, "Accounts", NotCounting if stage == "metrics" else Accounts
    ):
        app = App(config, models_folder, home)
    await app.start()
    past = stage == "routing"
    asked = content.target("tiny", "version" if past else "route")
    return Variation(stage=stage, app=app, name=asked.name, version=asked.version)


async def measure(folder: Path, redis_url: str, *, rounds: int, requests: int) -> list[StageCost]:
    """Measure every variation once per round, and the costs from the differences.

    Raises:
        NotComparable: requests failed, or a stage that is off was at work.
    """
    models_folder = folder / "models"
    content.write_models(models_folder, threads=1)
    taken_us: dict[str, list[float]] = {stage: [] for stage in (_FULL, *STAGES)}
    async with AsyncExitStack() as stack:
        variations = []
        for stage in taken_us:
            made = await compose(folder, models_folder, redis_url, stage)
            stack.push_async_callback(made.app.stop)
            variations.append(made)
        spare_the_collector()
        for variation in variations:
            await variation.run(max(IN_FLIGHT, requests // 4))
        for _ in range(rounds):
            for variation in variations:
                taken_us[variation.stage].append(await variation.run(requests))
        for variation in variations:
            _check(variation)
    return costs(taken_us)


def _check(variation: Variation) -> None:
    """Raise NotComparable unless exactly the stage that is meant was switched off."""
    app, stage = variation.app, variation.stage
    has_logged = app.log.statistics().total.shipped > 0
    has_counted = app.accounts.statistics.row("tiny", "1").success.count > 0
    if has_logged == (stage == "log"):
        raise NotComparable(f"{stage}: the prediction log was {'on' if has_logged else 'off'}")
    if has_counted == (stage == "metrics"):
        raise NotComparable(f"{stage}: metrics were {'on' if has_counted else 'off'}")


def costs(taken_us: Mapping[str, Sequence[float]]) -> list[StageCost]:
    """Return the cost of the whole, and of each stage: round by round what its absence saves."""
    full = taken_us[_FULL]
    found = [StageCost(stage=_FULL, rounds_us=[round(us, 3) for us in full])]
    for stage in STAGES:
        saved = [round(a - b, 3) for a, b in zip(full, taken_us[stage], strict=True)]
        found.append(StageCost(stage=stage, rounds_us=saved))
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.micro.pipeline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each in each round")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.requests < IN_FLIGHT:
        parser.error(f"--rounds must be positive, --requests at least {IN_FLIGHT}")
    binary = find_redis()
    if binary is None:
        print(INSTALL_HINT, file=sys.stderr)
        return 1
    setting = machine.describe_fully()
    with (
        TemporaryDirectory(prefix="sluice-pipeline-") as name,
        RedisServer(binary, Path(name, "redis"), append_only=False) as redis,
    ):
        measuring = measure(Path(name), redis.url, rounds=options.rounds, requests=options.requests)
        try:
            found = uvloop.run(measuring)
        except NotComparable as exc:
            print(exc, file=sys.stderr)
            return 1
    results = StageCosts(
        setting=setting, requests=options.requests, in_flight=IN_FLIGHT, stages=found
    )
    print(f"{setting.cpu}, others take {setting.busy:.0%} of it; CPU us per request, median")
    for cost in found:
        print(f"  {cost.stage:10}{cost.median_us:8.2f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
