"""Attacks a gateway while a well-behaved client uses it, and measures both.

`python -m tests.conformance.attacks [--seconds 10] [--transport sluice] [PART OF A NAME]...` prints
a line per attack: the client's p99 without and with it, the server's memory before, at its peak and
after, and what the attacker got. Every attacker is a process of its own, so that its work is not
the client's; on two cores it still takes its share of them from the server.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.conformance import attacks_h1, attacks_h2
from tests.conformance.agree import OWN, gateways
from tests.conformance.attacks_h2 import Fate
from tests.conformance.watch import Client, GrpcAsking, Held, HttpAsking, Peak, held, pid_of
from tests.support.gateway import GatewayProcess

_ROOT: Final = Path(__file__).parents[2]
_CALM_S: Final = 0.5
_SETTLE_S: Final = 8.0
"""Within this time the server has let go of what an attacker held."""
LIMITS: Final[dict[str, Any]] = {  # Any: what a TOML file holds
    "connections": 1_000,
    "connection_bytes": 64 << 20,
    "handshake_timeout_s": 1.5,
    "slow_peer_timeout_s": 2.0,
}
"""Short timeouts, so that a short attack meets them."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A hostile client of a protocol."""

    protocol: str
    """grpc or http."""
    name: str

    @property
    def label(self) -> str:
        """Protocol and name."""
        return f"{self.protocol}: {self.name}"

    def play(self, address: str, seconds: float) -> Fate:
        """Attack in this process."""
        functions = attacks_h2.ATTACKS if self.protocol == "grpc" else attacks_h1.ATTACKS
        return functions[self.name](address, seconds)


ALL: Final = tuple(
    [Attack("grpc", name) for name in attacks_h2.ATTACKS]
    + [Attack("http", name) for name in attacks_h1.ATTACKS]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an attack came to."""

    attack: Attack
    calm_p99_s: float
    p99_s: float
    answered: int
    """Requests of the well-behaved client during the attack."""
    failures: list[str]
    before: Held
    peak_rss_bytes: int
    after: Held
    fate: Fate

    def line(self) -> str:
        """Return it as a line of a table."""
        mib = [
            x / (1 << 20)
            for x in (self.before.rss_bytes, self.peak_rss_bytes, self.after.rss_bytes)
        ]
        got = " ".join(f"{code}x{count}" for code, count in self.fate.codes.most_common(6))
        return (
            f"{self.attack.label:34} p99 {self.calm_p99_s * 1e3:6.1f} -> {self.p99_s * 1e3:7.1f} ms"
            f"  {self.answered:6} answered {len(self.failures)} failed"
            f"  MiB {mib[0]:5.0f} {mib[1]:5.0f} {mib[2]:5.0f}"
            f"  fds {self.before.fds} {self.after.fds}"
            f"  sent {self.fate.sent} on {self.fate.connections}: {got}"
        )


def suffer(gateway: GatewayProcess, attack: Attack, seconds: float) -> Result:
    """Attack a gateway, its client looking on."""
    address = gateway.at.grpc if attack.protocol == "grpc" else gateway.at.http
    asking = GrpcAsking if attack.protocol == "grpc" else HttpAsking
    with Client(asking(address)) as calm:
        time.sleep(min(seconds, _CALM_S))
    before = held(pid_of(gateway))
    with Peak(pid_of(gateway)) as peak, Client(asking(address), first=1_000_000) as client:
        command = [
            sys.executable,
            "-m",
            __spec__.name,
            "--play",
            attack.label,
            address,
            str(seconds),
        ]
        finished = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=seconds + 60, check=False
        )
        assert finished.returncode == 0, finished.stderr
    connections, sent, codes = json.loads(finished.stdout)
    return Result(
        attack=attack,
        calm_p99_s=calm.p99_s,
        p99_s=client.p99_s,
        answered=len(client.latencies_s),
        failures=calm.failures + client.failures,
        before=before,
        peak_rss_bytes=peak.rss_bytes,
        after=settled(gateway, lambda now: now.fds <= before.fds),
        fate=Fate(connections, sent, Counter(codes)),
    )


def settled(gateway: GatewayProcess, is_settled: Callable[[Held], bool]) -> Held:
    """Return what a gateway holds as soon as a condition is true, or at the limit."""
    limit = time.monotonic() + _SETTLE_S
    while not is_settled(now := held(pid_of(gateway))) and time.monotonic() < limit:
        time.sleep(0.1)
    return now


def main() -> int:
    """Play one attack for `suffer`, or all and print their table."""
    parser = argparse.ArgumentParser(description="hostile clients")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--transport", default=OWN)
    parser.add_argument("--play", nargs=3, metavar=("LABEL", "ADDRESS", "SECONDS"))
    parser.add_argument("parts", nargs="*", default=[""])
    asked = parser.parse_args()
    if asked.play:
        label, address, seconds = asked.play
        (attack,) = (attack for attack in ALL if attack.label == label)
        fate = attack.play(address, float(seconds))
        print(json.dumps([fate.connections, fate.sent, fate.codes]))  # noqa: T201
        return 0
    chosen = [attack for attack in ALL if any(part in attack.label for part in asked.parts)]
    with (
        tempfile.TemporaryDirectory() as folder,
        gateways(Path(folder), (asked.transport,), limits=LIMITS) as (gateway,),
    ):
        for attack in chosen:
            print(suffer(gateway, attack, asked.seconds).line(), flush=True)  # noqa: T201
        return gateway.stop()


if __name__ == "__main__":
    sys.exit(main())
