"""`make load`: Locust's HTTP and gRPC users against a gateway, and a verdict on what they saw.

Starts the demo if nothing answers at the addresses, and stops it afterwards. Exit codes: 0 all is
well, 1 a request failed or a split is outside its interval, 2 there was nothing to measure.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.config import address
from gateway.config_fields import ConfigError
from loadtests import asking, figures, locust_process
from loadtests.demo_process import DemoFailed, demo
from loadtests.locust_process import Load, LocustFailed
from loadtests.signals import sigterm_interrupts
from loadtests.split import SIGMAS

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class NotMeasurable(Exception):
    """There is nothing to load; the sentence says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The gateway under test; addresses are host:port."""

    http: str
    grpc: str
    admin: str
    route: str

    @property
    def addresses(self) -> dict[str, str]:
        """The addresses by listener."""
        return {"http": self.http, "grpc": self.grpc, "admin": self.admin}

    @property
    def is_local(self) -> bool:
        """Whether the demo could be started there."""
        hosts = [address(text, path=name)[0] for name, text in self.addresses.items()]
        return all(host in _LOOPBACK for host in hosts)


def main(arguments: Sequence[str]) -> int:
    """Run the load test; return the exit code."""
    options = parser().parse_args(arguments)
    target = Target(http=options.http, grpc=options.grpc, admin=options.admin, route=options.route)
    load = Load(
        http=f"http://{options.http}",
        grpc=options.grpc,
        route=options.route,
        users=options.users,
        duration_s=options.duration,
    )
    try:
        with sigterm_interrupts(), ExitStack() as stack:
            _find_or_start(target, options.dir, stack)
            return _measure(load, weights(target), options.sigmas)
    except (NotMeasurable, DemoFailed, LocustFailed, asking.NoAnswer, ConfigError) as exc:
        print(f"load: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="python -m loadtests.run", description=__doc__)
    made.add_argument("--http", default="127.0.0.1:8000", metavar="HOST:PORT")
    made.add_argument("--grpc", default="127.0.0.1:8001", metavar="HOST:PORT")
    made.add_argument("--admin", default="127.0.0.1:8003", metavar="HOST:PORT")
    made.add_argument("--route", default="digits", help="the route to ask (default: digits)")
    made.add_argument("--users", type=_positive, default=16, help="half per protocol (default: 16)")
    made.add_argument(
        "--duration", type=_positive, default=60, metavar="SECONDS", help="default: 60"
    )
    made.add_argument(
        "--sigmas",
        type=float,
        default=SIGMAS,
        help=f"half the split's interval (default: {SIGMAS})",
    )
    made.add_argument(
        "--dir", type=Path, default=Path(".demo"), help="folder of a demo that is started here"
    )
    return made


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def weights(target: Target) -> dict[str, float]:
    """Return the route's weights in percent, as the admin API tells them; raises NoAnswer."""
    route = asking.get_json(f"http://{target.admin}/v1/routes/{target.route}")
    return {name: float(variant["weight"]) for name, variant in route["variants"].items()}


def _find_or_start(target: Target, directory: Path, stack: ExitStack) -> None:
    """Return when the route can be asked.

    Raises:
        NotMeasurable: some listeners answer and some do not, or none does and it is not for us to
            start one there.
    """
    ready_url = f"http://{target.http}/v2/models/{target.route}/ready"
    missing = [name for name, text in target.addresses.items() if not _is_open(text)]
    if not missing:
        asking.get_json(ready_url)
        return
    if len(missing) < len(target.addresses) or not target.is_local:
        absent = ", ".join(f"{name} {target.addresses[name]}" for name in missing)
        raise NotMeasurable(f"nothing listens at {absent}")
    print(f"nothing listens at {target.http}: starting the demo in {directory} ...", flush=True)
    stack.enter_context(demo(directory, ready_url, target.addresses))


def _is_open(where: str) -> bool:
    try:
        socket.create_connection(address(where, path="address"), timeout=2.0).close()
    except OSError:
        return False
    return True


def _measure(load: Load, weight_of: dict[str, float], sigmas: float) -> int:
    """Load, report, judge."""
    configured = ", ".join(f"{name} {weight:g} %" for name, weight in weight_of.items())
    print(
        f"{load.users} Locust users, half over HTTP, half over gRPC, for {load.duration_s} s\n"
        f"against {load.route!r} at {load.http} and {load.grpc}; configured split: {configured}",
        flush=True,
    )
    measured = locust_process.run(
        load, lambda so_far: print(figures.progress_line(so_far, load.duration_s), flush=True)
    )
    print("", *figures.report(measured, weight_of, sigmas), "", sep="\n")
    found = figures.faults(measured, weight_of, sigmas)
    for sentence in found:
        print(f"FAILED: {sentence}")
    if not found:
        print("no failures, every split within its interval")
    sys.stdout.flush()
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
