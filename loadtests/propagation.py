"""`python -m loadtests.propagation`: how soon every replica serves a changed route.

Starts one Redis and some gateways, asks all of them at a steady pace, and changes the weights of
their route through the admin API of one after the other. Odd revisions give everything to one
version, even ones to the other, so that an answer made of two revisions shows. What is timed is
what callers see: from the change to the first answer, of the replica that is last, that names the
new revision. Once with Redis pub/sub, once with polling only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import redis as redis_client

from gateway import config as configuration
from gateway.demo.gateway_process import GatewayProcess, url
from gateway.demo.redis_server import INSTALL_HINT, RedisServer, RedisStartError, find_redis
from gateway.demo.screen import DemoFailed
from loadtests import asking, http_loop, paced
from loadtests.asking import NoAnswer
from loadtests.bench import machine, models
from loadtests.bench.machine import Setting
from loadtests.http_loop import HttpAddress
from loadtests.paced import Connection, Traffic
from loadtests.signals import sigterm_interrupts

RESULTS: Final = Path(__file__).parent / "results" / "propagation.json"
CHANGES: Final = 200
MOST_CHANGES: Final = 900
"""All revisions must still be in the history at the end, which keeps a thousand."""
REPLICAS: Final = 3
ROUTE: Final = "weighed"
MODEL: Final = "mlp"
VERSION_OF: Final = {"even": "1", "odd": "2"}
"""Variant -> version. The variant is named for the revisions that send everything to it."""
SIZES: Final = (4, 8, 3)
REACH_LIMIT_S: Final = 10.0
POLL_S: Final = 1.0
"""The gateways' own interval, give or take a fifth."""
SETTLE_S: Final = {True: 0.25, False: POLL_S}
"""Longest pause before a change, with and without pub/sub. Drawn at random, so that changes come at
any moment between two polls; a change made as soon as the last one has arrived would not."""
METHOD: Final = (
    "one operator, one change at a time, through the replicas in turn; the end is the first answer "
    "of the last replica that names the revision, seen by paced requests on every replica "
    "(one each 2.5 ms: so coarse is it); one clock, as operator and callers are one process; all "
    "processes share the cores"
)
_ROW: Final = {
    "name": "x",
    "datatype": "FP32",
    "shape": [1, SIZES[0]],
    "data": [1.0, 2.0, 3.0, 4.0],
}


class NotMeasured(Exception):
    """The sentence says why there are no figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """Where one gateway listens."""

    http: HttpAddress
    admin: HttpAddress


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One change."""

    revision: int
    via: int
    """Number of the replica that was asked to make it."""
    answer_ms: float
    """From sending the change to its answer."""
    sent_to_last_ms: float
    """From sending the change to the last replica's first answer with it."""
    answered_to_last_ms: float
    """From the change's answer; negative where every replica was quicker than that."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles by nearest rank: each is a value that was measured."""

    p50: float
    p90: float
    p99: float
    max: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """All changes in one mode."""

    pubsub: bool
    changes: int
    sent_to_last_ms: Spread
    answered_to_last_ms: Spread
    answer_ms: Spread
    requests: int
    """Answered with 200."""
    failed_requests: int
    mixed_revisions: int
    """Answers whose revision, variant and version do not belong together."""
    went_back: int
    """Answers with a lower revision than the one before on their connection."""
    first_failures: list[str]
    samples: list[Sample]

    @property
    def is_clean(self) -> bool:
        """Whether no request failed, mixed revisions or went back."""
        return not (self.failed_requests or self.mixed_revisions or self.went_back)


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    redis: str
    redis_py: str
    replicas: int
    requests_per_second: float
    """Asked of all replicas together."""
    method: str
    rounds: list[Round]


def spread(values: Sequence[float]) -> Spread:
    """Return percentiles of some values; raises ValueError without any."""
    if not values:
        raise ValueError("no values")
    ranked = sorted(values)
    p50, p90, p99 = (
        round(ranked[math.ceil(share * len(ranked)) - 1], 3) for share in (0.5, 0.9, 0.99)
    )
    return Spread(p50=p50, p90=p90, p99=p99, max=round(ranked[-1], 3))


def favoured(revision: int) -> str:
    """Return the variant that has all the weight in a revision."""
    return "odd" if revision % 2 else "even"


def route() -> dict[str, Any]:  # Any: what a TOML file holds
    """Return the route's first revision, which is number 1."""
    return {
        "variants": {
            variant: {"model": MODEL, "version": version, "weight": weight}
            for (variant, version), weight in zip(VERSION_OF.items(), (0, 100), strict=True)
        }
    }


def write_models(folder: Path) -> None:
    """Write both versions."""
    for version in VERSION_OF.values():
        models.write_mlp(folder / MODEL / version / "model.onnx", SIZES, seed=int(version))


def request() -> bytes:
    """Return the request that is sent again and again."""
    body = json.dumps({"inputs": [_ROW]}).encode()
    return http_loop.post(f"/v2/models/{ROUTE}/infer", body, {})


def weight_change(revision: int, etag: str) -> bytes:
    """Return the PATCH that makes a revision, ready to send."""
    winner = favoured(revision)
    weights = {name: {"weight": 100 if name == winner else 0} for name in VERSION_OF}
    body = json.dumps({"variants": weights}).encode()
    head = "\r\n".join(
        [
            f"PATCH /v1/routes/{ROUTE} HTTP/1.1",
            "Host: gateway",
            "Content-Type: application/merge-patch+json",
            f"Content-Length: {len(body)}",
            f"If-Match: {etag}",
            f"X-Reason: everything to {winner}",
        ]
    )
    return f"{head}\r\n\r\n".encode() + body


async def measure(replicas: Sequence[Replica], *, changes: int, pubsub: bool) -> Round:
    """Change the route so many times under load and time each change.

    Raises:
        NotMeasured: a change was refused, or did not reach every replica.
    """
    first = asking.get_json(f"{url(replicas[0].admin)}/v1/routes/{ROUTE}")
    revision, generation = first["revision"], first["generation"]
    samples = []
    async with Traffic([replica.http for replica in replicas], request()) as traffic:
        await _reached(traffic, revision)
        for n in range(changes):
            await asyncio.sleep(random.uniform(0, SETTLE_S[pubsub]))
            revision += 1
            via = n % len(replicas)
            etag = f'"g{generation}-{revision - 1}"'
            samples.append(await _change(traffic, replicas[via], via, revision, etag))
    allowed = await asyncio.to_thread(history, replicas[0].admin)
    answers = traffic.answers
    return Round(
        pubsub=pubsub,
        changes=changes,
        sent_to_last_ms=spread([sample.sent_to_last_ms for sample in samples]),
        answered_to_last_ms=spread([sample.answered_to_last_ms for sample in samples]),
        answer_ms=spread([sample.answer_ms for sample in samples]),
        requests=answers.total(),
        failed_requests=len(traffic.failed),
        mixed_revisions=sum(answers[seen] for seen in paced.mixed(answers, allowed)),
        went_back=len(traffic.decreased),
        first_failures=traffic.failed[:5],
        samples=samples,
    )


async def _change(traffic: Traffic, replica: Replica, via: int, revision: int, etag: str) -> Sample:
    operator = await Connection.open(replica.admin)
    try:
        sent_s = time.monotonic()
        answer = await operator.ask(weight_change(revision, etag))
        answered_s = time.monotonic()
    finally:
        operator.close()
    if answer.status != 200:
        raise NotMeasured(f"the change to revision {revision} got {answer.status}: {answer.body!r}")
    last_s = max(await _reached(traffic, revision))
    return Sample(
        revision=revision,
        via=via,
        answer_ms=_ms(answered_s - sent_s),
        sent_to_last_ms=_ms(last_s - sent_s),
        answered_to_last_ms=_ms(last_s - answered_s),
    )


async def _reached(traffic: Traffic, revision: int) -> list[float]:
    try:
        return await traffic.reached(revision, REACH_LIMIT_S)
    except TimeoutError:
        latest = [observed.latest for observed in traffic.replicas]
        sentence = f"not everywhere after {REACH_LIMIT_S:g} s: revision {revision}; {latest}"
        raise NotMeasured(sentence) from None


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def history(admin: HttpAddress) -> Mapping[int, Set[tuple[str, str]]]:
    """Return what each revision of the route sends traffic to: variants with their versions.

    Raises:
        NoAnswer.
    """
    rows = asking.get_json(f"{url(admin)}/v1/routes/{ROUTE}/revisions?limit=1000")["revisions"]
    return {
        row["revision"]: {(name, VERSION_OF[name]) for name, w in row["weights"].items() if w}
        for row in rows
    }


@contextmanager
def running(folder: Path, count: int, redis_url: str, *, pubsub: bool) -> Iterator[list[Replica]]:
    """Run so many gateways on one Redis until the context ends; raises DemoFailed."""
    with ExitStack() as stack:
        replicas = []
        for n in range(count):
            own = folder / f"replica-{n}"
            own.mkdir()
            config = own / "sluice.toml"
            config.write_text(_configuration(folder / "models", n, redis_url, pubsub=pubsub))
            server = configuration.load(config, os.environ).server
            process = GatewayProcess(config, server, own / "gateway.log")
            stack.callback(process.stop)
            addresses = process.wait_ready()
            replicas.append(Replica(http=addresses.http, admin=addresses.admin))
        yield replicas


def _configuration(models_folder: Path, n: int, redis_url: str, *, pubsub: bool) -> str:
    variants = route()["variants"]
    lines = [
        "[server]",
        *(f'{name} = "127.0.0.1:0"' for name in ("http", "grpc", "metrics", "admin")),
        f'replica = "replica-{n}"',
        f"[models]\nrepository = {json.dumps(str(models_folder.resolve()))}\nintra_op_threads = 1",
        f"[redis]\nurl = {json.dumps(redis_url)}",
        f"[control]\npubsub = {json.dumps(pubsub)}",
    ]
    for name, variant in variants.items():
        lines.append(f"[routes.{ROUTE}.variants.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in variant.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Measure both modes, print and write the figures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.propagation", description=__doc__)
    parser.add_argument("--changes", type=int, default=CHANGES, help=f"per mode; {CHANGES}")
    parser.add_argument("--replicas", type=int, default=REPLICAS, help=f"default: {REPLICAS}")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    if not 1 <= options.changes <= MOST_CHANGES or options.replicas < 1:
        parser.error(f"--changes is 1 to {MOST_CHANGES}, --replicas at least 1")
    try:
        with sigterm_interrupts():
            results = _run(options.changes, options.replicas)
    except (DemoFailed, RedisStartError, NoAnswer, NotMeasured) as exc:
        details = exc.details if isinstance(exc, DemoFailed) else ()
        print(f"\npropagation: {exc}", *details, sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    print(f"\nevery change is in {options.output}")
    return 0 if all(each.is_clean for each in results.rounds) else 1


def _run(changes: int, replicas: int) -> Results:
    binary = find_redis()
    if binary is None:
        raise NotMeasured(INSTALL_HINT)
    setting = machine.describe()
    print(f"{setting.cpu}, {setting.cores} cores, load {setting.load_average} (1 minute) before")
    print(f"revision {setting.revision}, {replicas} replicas, {changes} changes per mode\n")
    rounds, version = [], ""
    for pubsub in (True, False):
        with (
            TemporaryDirectory(prefix="sluice-propagation-") as name,
            RedisServer(binary, Path(name) / "redis") as server,
        ):
            folder = Path(name)
            write_models(folder / "models")
            version = _redis_version(server.url)
            with running(folder, replicas, server.url, pubsub=pubsub) as live:
                rounds.append(asyncio.run(measure(live, changes=changes, pubsub=pubsub)))
        print(*shown(rounds[-1]), sep="\n", flush=True)
    return Results(
        setting=setting,
        redis=f"{version}, {binary.source}",
        redis_py=metadata.version("redis"),
        replicas=replicas,
        requests_per_second=replicas * paced.CONNECTIONS / paced.PAUSE_S,
        method=METHOD,
        rounds=rounds,
    )


def _redis_version(redis_url: str) -> str:
    with redis_client.Redis.from_url(redis_url) as client:
        return str(client.info("server")["redis_version"])


def shown(measured: Round) -> list[str]:
    """Return a round as lines for a person."""
    rows = (
        ("sent -> last replica", measured.sent_to_last_ms),
        ("answered -> last replica", measured.answered_to_last_ms),
        ("sent -> answered", measured.answer_ms),
    )
    heading = "with pub/sub" if measured.pubsub else "polling only"
    faults = (
        f"{measured.failed_requests} failed, {measured.mixed_revisions} mixed two revisions, "
        f"{measured.went_back} went back"
    )
    return [
        f"{heading:26}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}{'max ms':>10}",
        *(f"{name:26}{s.p50:10.1f}{s.p90:10.1f}{s.p99:10.1f}{s.max:10.1f}" for name, s in rows),
        f"{measured.changes} changes, {measured.requests} requests: {faults}\n",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
