"""`python -m loadtests.bench`: starts Redis and a gateway, measures, prints, writes bench.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from gateway.demo.redis_server import INSTALL_HINT, RedisServer, RedisStartError, find_redis
from gateway.demo.screen import DemoFailed
from loadtests import gateway_process
from loadtests.asking import NoAnswer
from loadtests.bench import cases, machine, report
from loadtests.bench.drivers import DriverFailed
from loadtests.bench.measure import Case, NotMeasured, Sample, interleaved
from loadtests.bench.report import Plan, Results
from loadtests.gateway_process import RunningGateway
from loadtests.signals import sigterm_interrupts

RESULTS: Final = Path(__file__).parent.parent / "results" / "bench.json"
ROUNDS: Final = 5
ROUND_S: Final = 2.0
SMOKE_ROUND_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    rounds: int
    round_s: float
    warm_up_s: float
    threads: int
    is_external: bool
    output: Path | None


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks; return the exit code."""
    options = read_options(arguments)
    try:
        with sigterm_interrupts(), TemporaryDirectory(prefix="sluice-bench-") as folder:
            results = _run(options, Path(folder))
    except (DemoFailed, RedisStartError, NoAnswer, DriverFailed, NotMeasured) as exc:
        details = exc.details if isinstance(exc, DemoFailed) else ()
        print(f"\nbench: {exc}", *details, sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for lines in (report.cpu_table(results.cpu), report.batching_table(results.batching)):
        print("", *lines, sep="\n")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
        print(f"\nevery round is in {options.output}")
    return 0


def read_options(arguments: Sequence[str]) -> Options:
    """Parse the command line; exits on a wrong one."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument(
        "--seconds", type=float, default=ROUND_S, help=f"of one round of one case; {ROUND_S:g}"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of onnxruntime, per session (default: 1)"
    )
    parser.add_argument(
        "--own-clients",
        action="store_true",
        help="do not use wrk and h2load, even if they are on PATH",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="one short round: does it run? The figures are noise"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: {RESULTS.name}")
    parsed = parser.parse_args(arguments)
    if parsed.rounds < 1 or parsed.seconds <= 0 or parsed.threads < 1:
        parser.error("--rounds, --seconds and --threads must be positive")
    return Options(
        rounds=1 if parsed.smoke else parsed.rounds,
        round_s=SMOKE_ROUND_S if parsed.smoke else parsed.seconds,
        warm_up_s=0.0 if parsed.smoke else parsed.seconds / 2,
        threads=parsed.threads,
        is_external=not parsed.own_clients,
        # A smoke run's figures are not to replace real ones.
        output=parsed.output or (None if parsed.smoke else RESULTS),
    )


def _run(options: Options, folder: Path) -> Results:
    binary = find_redis()
    if binary is None:
        raise NotMeasured(INSTALL_HINT)
    models = folder / "models"
    cases.write_models(models, threads=options.threads)
    print("starting Redis and the gateway ...", flush=True)
    with (
        RedisServer(binary, folder / "redis", append_only=False) as redis,
        gateway_process.running(folder, models, cases.tables(), redis_url=redis.url) as gateway,
    ):
        return _measure(options, gateway, folder, binary.source)


def _measure(options: Options, gateway: RunningGateway, folder: Path, redis: str) -> Results:
    external = options.is_external
    cpu = cases.cpu_cases(gateway, folder, is_external=external)
    batching = cases.batching_cases(
        gateway, folder, folder / "models", threads=options.threads, is_external=external
    )
    plan = Plan(
        rounds=options.rounds,
        round_s=options.round_s,
        warm_up_s=options.warm_up_s,
        threads=options.threads,
        redis=redis,
        drivers={case.name: case.label for case in (*cpu, *batching)},
    )
    setting = machine.describe()
    print("", *report.header(setting, plan), "", sep="\n", flush=True)
    return Results(
        setting=setting, plan=plan, cpu=_rounds(cpu, plan), batching=_rounds(batching, plan)
    )


def _rounds(measured: Sequence[Case], plan: Plan) -> list[Sample]:
    return interleaved(
        measured,
        rounds=plan.rounds,
        duration_s=plan.round_s,
        warm_up_s=plan.warm_up_s,
        on_round=lambda line: print(f"  {line}", flush=True),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
