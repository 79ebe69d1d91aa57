"""A storm over one gateway and one Redis: seeded, bounded, and the loss contract after it.

Two route names, a shadow, large tensors that are deferred, requests that fail, and a name that is
asked only at the beginning. Meanwhile, at random moments and also while another trouble lasts:
kill -9, SIGSTOP and SIGTERM of the gateway, kill -9 and SIGSTOP of Redis, FLUSHALL, SCRIPT FLUSH,
connections cut, no memory, no more than a replica, owner keys and streams deleted.

Whatever may be lost by it (a stream that was deleted) is still in the spool, so at the end nothing
may be missing, and nothing there twice; `run` says what is not as it should be.

    python -m tests.support.log_storm --seconds 600 --seed 7
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum, auto
from os import kill
from pathlib import Path
from typing import Final, NamedTuple

import redis

from gateway.demo.redis_server import RedisServer
from tests.support.gateway import Addresses, GatewayProcess
from tests.support.log_storm_checks import (
    faults_of_readers,
    faults_of_streams,
    imbalances,
    wait_for_all,
)
from tests.support.log_storm_site import (
    BAD_ASK,
    GOOD_ASK,
    NAMES,
    PROMISES,
    QUIET_ASK,
    WIDE_ASK,
    configuration,
)
from tests.support.redis import running_redis
from tests.support.witness import Witness

END_S: Final = 40.0
"""Longest time for a gateway to end after SIGTERM, also with Redis hanging."""
PACE_S: Final = 0.005
QUIET_CALLS: Final = 20
_PAUSES_S: Final = (0.02, 0.9)
FAULTS: Final = (
    "shipping prediction records failed",
    "prediction log housekeeping failed",
    "prediction record cannot be encoded",
    "another writer used this replica's stream",
    "Redis refuses prediction records",
    "the spool is damaged",
    "a reply callback failed",
    "was never retrieved",
    "Exception in callback",
)
"""What a gateway must never have to say in a storm like this."""


class State(StrEnum):
    """Of a process."""

    UP = auto()
    STOPPED = auto()
    """SIGSTOP."""
    ENDING = auto()
    """SIGTERM."""
    DOWN = auto()


class _Due(NamedTuple):
    at_s: float
    what: str
    do: Callable[[], None]


@dataclass
class Storm:
    """One gateway, one Redis, and what is done to them."""

    folder: Path
    server: RedisServer
    seed: int
    settings: dict[str, object] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._config = configuration(self.folder, self.server.url, **self.settings)
        listeners = self._config["server"]
        self.at = Addresses(
            **{name: listeners[name] for name in ("http", "grpc", "metrics", "admin")}
        )
        self._began_s = time.monotonic()
        self._redis = State.UP
        self._gateway_is = State.DOWN
        self._due: list[_Due] = []
        self._end_by_s = 0.0
        self._is_starved = self._is_replica = False
        self.faults: list[str] = []
        self._start_gateway()

    # What can be done, and when: every one returns at once; what ends it is put into `_due`.

    def _choices(self) -> Iterator[tuple[int, str, Callable[[], None]]]:
        """Yield weight, name and deed of everything that can be done now."""
        if self._redis is State.UP:
            yield 4, "kill redis", self._kill_redis
            yield 5, "stop redis", self._stop_redis
            if not self._is_replica:
                yield 4, "flushall", lambda: self._command("flushall")
                yield 3, "delete the owner keys", lambda: self._delete(":owner:")
                yield 4, "delete a stream", lambda: self._delete(":gw-1", most=1)
                yield 3, "make it a replica", self._demote
            yield 2, "script flush", lambda: self._command("script flush")
            yield 3, "cut connections", lambda: self._command("client kill type normal")
            if not self._is_starved:
                yield 3, "take the memory", self._starve
        if self._gateway_is is State.UP:
            yield 6, "kill the gateway", self._kill_gateway
            yield 3, "stop the gateway", self._stop_gateway
            if self.gateway.events("serving"):
                yield 4, "end the gateway", self._end_gateway
        if self._gateway_is is State.ENDING:
            yield 1, "kill the ending gateway", self._kill_gateway

    def rage(self, seconds: float) -> None:
        """Do one thing after the other, for so long."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self._pause(self._random.uniform(*_PAUSES_S))
            choices = list(self._choices())
            if choices:
                weights = [weight for weight, _, _ in choices]
                _, name, do = self._random.choices(choices, weights)[0]
                self._do(name, do)

    def settle(self) -> None:
        """End all troubles and return when everything promised is in Redis, or time is up."""
        while self._due or self._gateway_is is not State.UP:
            self._pause(0.1)
        self.gateway.wait_ready()

    def _pause(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while True:
            now_s = time.monotonic()
            for due in sorted(due for due in self._due if due.at_s <= now_s):
                self._due.remove(due)
                self._do(due.what, due.do)
            self._is_ending()
            if now_s >= until_s:
                return
            time.sleep(0.01)

    def _do(self, what: str, do: Callable[[], None]) -> None:
        self.events[what] += 1
        self.history.append(f"{time.monotonic() - self._began_s:7.2f} {what}")
        do()

    def _later(self, low_s: float, high_s: float, what: str, do: Callable[[], None]) -> None:
        at_s = time.monotonic() + self._random.uniform(low_s, high_s)
        self._due.append(_Due(at_s, what, do))

    def _command(self, text: str) -> None:
        with redis.Redis.from_url(self.server.url) as client:
            client.execute_command(*text.split())

    def _delete(self, part: str, most: int = 100) -> None:
        with redis.Redis.from_url(self.server.url) as client:
            keys = sorted(key for key in client.keys("pl:{*") if part.encode() in key)
            streams = [key for key in keys if part != ":gw-1" or client.type(key) == b"stream"]
            self._random.shuffle(streams)
            for key in streams[:most]:
                self.history[-1] += f" {key.decode()}"
                client.delete(key)

    def _starve(self) -> None:
        self._command("config set maxmemory 1000")
        self._is_starved = True
        self._later(0.1, 2.0, "give the memory back", self._feed)

    def _feed(self) -> None:
        self._is_starved = False
        if self._redis is State.UP:  # else it has forgotten the limit, or will be told
            self._command("config set maxmemory 0")
        elif self._redis is State.STOPPED:
            self._is_starved = True
            self._later(0.1, 0.5, "give the memory back", self._feed)

    def _demote(self) -> None:
        self._command("replicaof 127.0.0.1 1")
        self._is_replica = True
        self._later(0.1, 2.0, "promote it", self._promote)

    def _promote(self) -> None:
        if self._redis is State.UP:
            self._command("replicaof no one")
            self._is_replica = False
        elif self._redis is State.STOPPED:
            self._later(0.1, 0.5, "promote it", self._promote)

    def _kill_redis(self) -> None:
        self.server.kill()
        self._redis = State.DOWN
        self._is_starved = self._is_replica = False
        self._later(0.0, 2.0, "start redis", self._start_redis)

    def _start_redis(self) -> None:
        self.server.start()
        self._redis = State.UP

    def _stop_redis(self) -> None:
        kill(self.server.pid, signal.SIGSTOP)
        self._redis = State.STOPPED
        self._later(0.1, 4.0, "continue redis", self._continue_redis)

    def _continue_redis(self) -> None:
        kill(self.server.pid, signal.SIGCONT)
        self._redis = State.UP

    def _start_gateway(self) -> None:
        self.gateway = GatewayProcess(self._config, self.folder)
        self._gateway_is = State.UP

    def _kill_gateway(self) -> None:
        self.gateway.kill()
        self._gone()

    def _gone(self) -> None:
        self.look_for_faults()
        self._gateway_is = State.DOWN
        self._later(0.0, 0.5, "start the gateway", self._start_gateway)

    def _stop_gateway(self) -> None:
        self.gateway.signal(signal.SIGSTOP)
        self._gateway_is = State.STOPPED
        self._later(0.1, 3.0, "continue the gateway", self._continue_gateway)

    def _continue_gateway(self) -> None:
        self.gateway.signal(signal.SIGCONT)
        self._gateway_is = State.UP

    def _end_gateway(self) -> None:
        self.gateway.signal(signal.SIGTERM)
        self._gateway_is = State.ENDING
        self._end_by_s = time.monotonic() + END_S

    def _is_ending(self) -> bool:
        """Whether the gateway was told to end and has not; starts another one if it has."""
        if self._gateway_is is not State.ENDING:
            return False
        code = self.gateway.code
        if code is None:
            assert time.monotonic() < self._end_by_s, f"it does not end:\n{self.gateway.log}"
            return True
        if code != 0:
            self.faults.append(f"the gateway ended with {code}:\n{self.gateway.log[-2000:]}")
        self._gone()
        return False

    def look_for_faults(self) -> None:
        """Note what the gateway says that it should never have to."""
        for line in self.gateway.log.splitlines():
            if any(fault in line for fault in FAULTS):
                self.faults.append(line)


class Outcome(NamedTuple):
    """What was promised, and what has become of it."""

    promised: int
    problems: list[str]
    text: str


@dataclass
class _Callers:
    """Everybody who calls, by the name that they ask."""

    witnesses: list[tuple[str, Witness]]

    @property
    def promised(self) -> dict[str, set[str]]:
        ids: dict[str, set[str]] = {name: set() for name in NAMES}
        for name, witness in self.witnesses:
            ids[name].update(witness.ids)
        return ids


@contextmanager
def _calling(storm: Storm) -> Iterator[_Callers]:
    asks = (("split", GOOD_ASK), ("split", BAD_ASK), ("wide", WIDE_ASK))
    with ExitStack() as stack:
        with Witness(storm.at, QUIET_ASK, threads_per_protocol=1, pause_s=PACE_S) as quiet:
            quiet.flow(QUIET_CALLS)
        each = [("quiet", quiet)]
        for name, ask in asks:
            witness = Witness(
                storm.at, ask, threads_per_protocol=1, promises=PROMISES, pause_s=PACE_S
            )
            each.append((name, stack.enter_context(witness)))
        yield _Callers(each)


def run(folder: Path, *, seconds: float, seed: int, **settings: object) -> Outcome:
    """Let a storm pass, and return what is not as it should be afterwards."""
    with running_redis(append_only=bool(seed % 2)) as server:
        storm = Storm(folder, server, seed, settings)
        try:
            storm.gateway.wait_ready()
            with _calling(storm) as callers:
                storm.rage(seconds)
                storm.settle()
                time.sleep(0.5)
            promised = callers.promised
            wait_for_all(storm.at, server.url, promised)
            problems = list(imbalances(storm.at))
            code = storm.gateway.stop()
            if code:
                problems.append(f"the gateway ended with {code}")
            storm.look_for_faults()
            with redis.Redis.from_url(server.url) as client:
                problems += faults_of_streams(client, promised)
                problems += faults_of_readers(client, promised)
        finally:
            storm.gateway.signal(signal.SIGCONT)
            storm.gateway.kill()
            kill(server.pid, signal.SIGCONT)
        text = ", ".join(f"{what} {count}" for what, count in sorted(storm.events.items()))
        (folder / "history.txt").write_text("\n".join(storm.history))
        total = sum(map(len, promised.values()))
        return Outcome(total, problems + storm.faults, text)


def main() -> int:
    """Run storms from the command line; the folder of one that found something is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--append", choices=("loop", "thread"), default="loop")
    parser.add_argument("--durability", choices=("process", "disk"), default="process")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=f"storm-{given.seed}-"))
    outcome = run(
        folder,
        seconds=given.seconds,
        seed=given.seed,
        append=given.append,
        durability=given.durability,
    )
    lines = [f"seed {given.seed}: {outcome.promised} promised, {outcome.text}", *outcome.problems]
    sys.stdout.write("\n".join(lines) + f"\n{folder}\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
