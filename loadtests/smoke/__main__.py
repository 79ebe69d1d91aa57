"""`python -m loadtests.smoke`: has a request become dearer? Under a minute; exit code 1 if so.

Starts Redis and a gateway with everything on, has bursts of requests answered by turns with the
calibration loop, and compares the ratios with loadtests/results/smoke.json. Over the limit it tries
again, twice: only what is over every time has failed. --write makes the baseline anew.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from gateway.demo.redis_server import INSTALL_HINT, RedisServer, RedisStartError, find_redis
from gateway.demo.screen import DemoFailed
from loadtests import gateway_process
from loadtests.bench import content, machine
from loadtests.bench.cases import Protocol
from loadtests.bench.questions import question
from loadtests.bench.servers import read_counts
from loadtests.gateway_process import RunningGateway
from loadtests.signals import sigterm_interrupts
from loadtests.smoke import compare
from loadtests.smoke.calibration import Calibration
from loadtests.smoke.clients import Client, GrpcClient, HttpClient, Refused
from loadtests.smoke.compare import Baseline, NotComparable, Ratios
from loadtests.smoke.costs import Meter, meters

BASELINE: Final = Path(__file__).parents[1] / "results" / "smoke.json"
ATTEMPTS: Final = 3
ROUNDS: Final = 5
REQUESTS: Final = 1_920
"""Of one case in one round."""
TURNS: Final = 2_000
"""Of the calibration loop in one round."""
BURST: Final = 32
Costs = Mapping[str, float]
"""By unit."""
Meters = Mapping[str, Meter]
"""By unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeCase:
    """Bursts of one kind."""

    name: str
    protocol: Protocol
    burst: int = BURST
    requests: int = REQUESTS


CASES: Final = (
    SmokeCase(name="gRPC, 32 at once", protocol="grpc"),
    SmokeCase(name="gRPC, one by one", protocol="grpc", burst=1, requests=640),
    SmokeCase(name="HTTP JSON, 32 at once", protocol="json"),
    SmokeCase(name="HTTP binary, 32 at once", protocol="binary"),
)


class NotMeasured(Exception):
    """There are no figures; the sentence says why."""


def main(arguments: Sequence[str]) -> int:
    """Measure and compare; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.smoke", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the baseline anew")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of a case in a round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    try:
        with sigterm_interrupts(), _served() as gateway:
            attempts = Attempts(gateway, rounds=options.rounds, requests=options.requests)
            if options.write:
                return _write(attempts, options.baseline)
            return _compare(attempts, options.baseline)
    except (DemoFailed, RedisStartError, NotMeasured, NotComparable, Refused) as exc:
        print(f"bench-smoke: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


@contextmanager
def _served() -> Iterator[RunningGateway]:
    binary = find_redis()
    if binary is None:
        raise NotMeasured(INSTALL_HINT)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sluice-smoke-")))
        redis = stack.enter_context(RedisServer(binary, folder / "redis", append_only=False))
        content.write_models(folder / "models", threads=1)
        yield stack.enter_context(
            gateway_process.running(
                folder, folder / "models", content.tables(), redis_url=redis.url
            )
        )


class Attempts:
    """Measures, as often as it is asked."""

    def __init__(self, gateway: RunningGateway, *, rounds: int, requests: int) -> None:
        self._gateway = gateway
        self._rounds = rounds
        self._share = requests / REQUESTS
        self._asked = content.target("tiny", "route")

    def measure(self) -> dict[str, Ratios]:
        """Return the ratios of one attempt: unit -> case -> ratio."""
        with ExitStack() as stack:
            calibration = Calibration()
            stack.callback(calibration.close)
            clients: dict[SmokeCase, Client] = {}
            for case in CASES:
                clients[case] = stack.enter_context(self._client(case))
            server: Meters = stack.enter_context(meters(self._gateway.pid))
            ours: Meters = stack.enter_context(meters(os.getpid()))
            for case, client in clients.items():
                self._cost(case, client, server)
            calibration.run(TURNS)
            turns: list[Costs] = []
            costs: dict[str, list[Costs]] = {case.name: [] for case in CASES}
            for _ in range(self._rounds):
                before = read_all(ours)
                calibration.run(TURNS)
                turns.append(spent(before, read_all(ours), TURNS))
                for case, client in clients.items():
                    costs[case.name].append(self._cost(case, client, server))
            return {
                unit: compare.ratios(
                    {case: [cost[unit] for cost in rounds] for case, rounds in costs.items()},
                    [turn[unit] for turn in turns],
                )
                for unit in compare.PREFERRED
                if unit in server and unit in ours
            }

    def _client(self, case: SmokeCase) -> AbstractContextManager[Client]:
        asked = question(case.protocol, "tiny", self._asked)
        if asked.is_grpc:
            return GrpcClient(self._gateway.addresses.grpc, asked, case.burst)
        return HttpClient(self._gateway.addresses.http, asked, case.burst)

    def _cost(self, case: SmokeCase, client: Client, server: Meters) -> Costs:
        """Have a round's requests answered; return what each cost.

        Raises:
            NotMeasured: the server does not count every one of them as a success.
        """
        bursts = max(1, round(case.requests * self._share / case.burst))
        answered = bursts * case.burst
        counted = read_counts(self._gateway, self._asked)
        before = read_all(server)
        for _ in range(bursts):
            client.burst(case.burst)
        cost = spent(before, read_all(server), answered)
        after = read_counts(self._gateway, self._asked)
        if after.requests - counted.requests != answered or after.failures != counted.failures:
            raise NotMeasured(
                f"{case.name}: {answered} sent, {after.requests - counted.requests} succeeded"
            )
        return cost


def read_all(consumed: Meters) -> Costs:
    """Read every meter."""
    return {unit: meter.read() for unit, meter in consumed.items()}


def spent(before: Costs, after: Costs, times: int) -> Costs:
    """Return the difference of two readings, divided."""
    return {unit: (after[unit] - before[unit]) / times for unit in before}


def _write(attempts: Attempts, path: Path) -> int:
    found = [attempts.measure() for _ in range(ATTEMPTS)]
    least = {
        unit: {case.name: round(min(a[unit][case.name] for a in found), 4) for case in CASES}
        for unit in found[0]
    }
    baseline = Baseline(setting=machine.describe_fully(), ratios=least)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(baseline)) + b"\n")
    for unit, ratios in least.items():
        for case, ratio in ratios.items():
            print(f"{unit:13}{case:26}{ratio:8.3f}")
    return 0


def _compare(attempts: Attempts, path: Path) -> int:
    try:
        baseline = msgspec.json.decode(path.read_bytes(), type=Baseline)
    except FileNotFoundError:
        raise NotMeasured(f"there is no {path.name}: make one with --write") from None
    found: list[Ratios] = []
    for number in range(1, ATTEMPTS + 1):
        measured = attempts.measure()
        unit = compare.unit_for(baseline, measured)
        found.append(measured[unit])
        verdicts = compare.judge(baseline.ratios[unit], found)
        print(f"attempt {number}, {unit} per request in turns of the calibration loop")
        for verdict in verdicts:
            print(
                f"  {verdict.case:26}{verdict.obtained:8.3f}, baseline {verdict.baseline:.3f}: "
                f"{verdict.change:+.1%}{' OVER' if verdict.is_over else ''}",
                flush=True,
            )
        if not any(verdict.is_over for verdict in verdicts):
            return 0
        if why := compare.apart(baseline.setting, machine.describe(), unit):
            print(f"bench-smoke: told, not judged: {why}")
            return 0
    print(f"bench-smoke: over +{compare.TOLERANCE:.0%} in {ATTEMPTS} attempts", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
