"""Load generators: wrk and h2load where they are installed, else our own loops on asyncio.

A driver keeps so many requests of one kind under way for a while and checks that they were
answered. How many were answered, the gateway is asked, not the driver: the counts of one generator
would not compare with another's.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import numpy as np

from gateway.demo.gateway_process import url
from loadtests import grpc_loop, http_loop, payloads
from loadtests.payloads import Signature

T = TypeVar("T")
Kind = Literal["grpc", "json", "binary"]
Address = tuple[str, int]

KINDS: Final[Mapping[Kind, str]] = {
    "grpc": "gRPC",
    "json": "HTTP JSON",
    "binary": "HTTP binary",
}
KEY_HEADER: Final = "x-user-id"
POST_LUA: Final = Path(__file__).with_name("post.lua")
_CONTENT_TYPES: Final = {"json": "application/json", "binary": "application/octet-stream"}
_GRACE_S: Final = 30.0
_SEED: Final = 1


class DriverFailed(Exception):
    """The load generator did not run, or saw errors."""


class Driver(Protocol):
    """Asks one question again and again."""

    @property
    def label(self) -> str:
        """Its name, and what of it shows in the figures."""

    def run(self, duration_s: float) -> None:
        """Load for this long; raises DriverFailed if anything but good answers came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request, in the form of one protocol."""

    kind: Kind
    name: str
    """Of the model or route."""
    path: str
    body: bytes
    """Of the HTTP request, or the gRPC message."""
    json_bytes: int | None = None
    """Length of the JSON header, where tensors follow it."""

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers besides the length and the key."""
        lines = {"Content-Type": _CONTENT_TYPES[self.kind]}
        if self.json_bytes is not None:
            lines[payloads.HEADER_LENGTH] = str(self.json_bytes)
        return lines


def question(kind: Kind, asked: Signature) -> Question:
    """Make a question of one random row."""
    row = payloads.random_row(asked, np.random.default_rng(_SEED))
    name, path, json_bytes = asked.name, f"/v2/models/{asked.name}/infer", None
    if kind == "grpc":
        path, body = grpc_loop.METHOD, payloads.as_grpc(name, row)
    elif kind == "json":
        body = payloads.as_json(row)
    else:
        body, json_bytes = payloads.as_binary(row)
    return Question(kind=kind, name=name, path=path, body=body, json_bytes=json_bytes)


def choose(
    asked: Question, address: Address, folder: Path, *, concurrency: int, is_external: bool
) -> Driver:
    """Return the driver for a question.

    Args:
        asked: the question.
        address: of the listener for its protocol.
        folder: for the files that external generators read.
        concurrency: requests under way.
        is_external: use wrk and h2load if they are on PATH.
    """
    is_grpc = asked.kind == "grpc"
    program = shutil.which("h2load" if is_grpc else "wrk") if is_external else None
    if program is None:
        own = GrpcLoop if is_grpc else HttpLoop
        return own(asked=asked, address=address, concurrency=concurrency)
    body = folder / f"body-{asked.name}-{asked.kind}"
    if is_grpc:
        body.write_bytes(b"\0" + len(asked.body).to_bytes(4, "big") + asked.body)
        command = h2load_command(program, asked, address, body, concurrency)
        return External(command=command, label="h2load")
    body.write_bytes(asked.body)
    return External(command=wrk_command(program, asked, address, body, concurrency), label="wrk")


def wrk_command(
    program: str, asked: Question, address: Address, body: Path, concurrency: int
) -> list[str]:
    """Return wrk's command line for one thread; DURATION is to be filled in."""
    return [
        *(program, "--threads", "1", "--connections", str(concurrency)),
        *("--duration", "DURATION", "--timeout", "10s", "--script", str(POST_LUA)),
        *(url(address) + asked.path, "--"),
        *(str(body), asked.headers["Content-Type"], str(asked.json_bytes or "-")),
    ]


def h2load_command(
    program: str, asked: Question, address: Address, body: Path, concurrency: int
) -> list[str]:
    """Return h2load's command line: one connection, as many streams; DURATION to be filled in."""
    return [
        *(program, "--clients", "1", "--threads", "1"),
        *("--max-concurrent-streams", str(concurrency), "--duration", "DURATION"),
        *("--header", "content-type: application/grpc", "--header", "te: trailers"),
        *("--data", str(body), url(address) + asked.path),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """A generator that is a program of its own."""

    command: list[str]
    label: str

    def run(self, duration_s: float) -> None:
        """Run the program; both take whole seconds, so less than one becomes one."""
        whole_s = max(1, round(duration_s))
        command = [f"{whole_s}s" if part == "DURATION" else part for part in self.command]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=whole_s + _GRACE_S,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DriverFailed(f"{self.label} did not end") from None
        said = done.stdout + done.stderr
        fault = fault_in(said) if done.returncode == 0 else f"exit code {done.returncode}"
        if fault is not None:
            raise DriverFailed(f"{self.label}: {fault}\n{said}")


def fault_in(said: str) -> str | None:
    """Return the line in wrk's or h2load's output that tells of errors, None without one.

    Requests that the end of the run cut off are none.
    """
    for line in said.splitlines():
        if "Non-2xx" in line or ("Socket errors" in line and re.search(r"[1-9]", line)):
            return line.strip()
        if line.startswith("status codes:"):
            found = re.search(r"(\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", line)
            if found is None or int(found[1]) == 0 or any(int(n) for n in found.groups()[1:]):
                return line.strip()
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLoop:
    """Our own HTTP client, in this process."""

    asked: Question
    address: Address
    concurrency: int
    label: str = field(default="asyncio loop", init=False)

    def run(self, duration_s: float) -> None:
        """Ask for this long."""
        refused: list[str] = []

        def on_answer(_: None, answer: http_loop.Answer) -> None:
            if answer.status != 200:
                refused.append(f"{answer.status}: {answer.body[:200].decode(errors='replace')}")

        def request() -> tuple[None, bytes]:
            headers = self.asked.headers | {KEY_HEADER: f"{random.getrandbits(64):016x}"}
            return None, http_loop.post(self.asked.path, self.asked.body, headers)

        running = http_loop.closed_loop(
            self.address, until(duration_s, request), on_answer, connections=self.concurrency
        )
        try:
            asyncio.run(running)
        except (OSError, http_loop.LoopFailed) as exc:
            raise DriverFailed(f"{self.label}: {exc}") from exc
        if refused:
            raise DriverFailed(f"{self.label}: {len(refused)} refused, first with {refused[0]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcLoop:
    """grpcio's client, in this process."""

    asked: Question
    address: Address
    concurrency: int
    label: str = field(default="grpc.aio loop", init=False)

    def run(self, duration_s: float) -> None:
        """Ask for this long."""
        running = grpc_loop.closed_loop(
            self.address,
            until(duration_s, lambda: (None, self.asked.body, ())),
            lambda tag, answer, trailers: None,
            concurrency=self.concurrency,
        )
        try:
            asyncio.run(running)
        except grpc_loop.CallFailed as exc:
            raise DriverFailed(f"{self.label}: {exc.code().name}: {exc.details()}") from exc


def until(duration_s: float, make: Callable[[], T]) -> Iterator[T]:
    """Yield what `make` makes until the time is over."""
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        yield make()
