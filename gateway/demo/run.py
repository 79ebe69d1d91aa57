"""`sluice demo`: models, Redis, a gateway, two predictions, a record and drift, shown to a person.

The table of contents of the demo; each step is a file of its own. What is started here is stopped
here, in reverse order, however the demo ends: by itself, by Ctrl-C, by SIGTERM, by an error.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NoReturn

import redis

from gateway.config import Config
from gateway.demo import ask, digits, go_on, redis_choice, settings, show, turned
from gateway.demo.ask import Answer
from gateway.demo.digits import Digits, Picture
from gateway.demo.gateway_process import Addresses, GatewayProcess, url
from gateway.demo.screen import DemoFailed, Screen, shown
from gateway.prediction_log import reader
from gateway.prediction_log.record import LoggedPrediction

STEPS: Final = 6
RECORD_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.05
_SHOWN_DIGIT: Final = 4


def run(*, directory: Path, redis_url: str | None, once: bool) -> int:
    """Run the demo in a folder; return the exit code.

    Args:
        directory: where models, data and logs go; what an earlier run left there is used again.
        redis_url: of a running server; None: see `redis_choice`.
        once: stop everything after the first answers.
    """
    screen = Screen(sys.stdout, STEPS)
    try:
        with _signals_interrupt(), _only_one(directory), ExitStack() as stack:
            _run(screen, stack, directory=directory, redis_url=redis_url, once=once)
    except DemoFailed as exc:
        print(f"\nsluice demo: {exc}", *exc.details, sep="\n", file=sys.stderr)
        return 1
    return 0


def _run(
    screen: Screen, stack: ExitStack, *, directory: Path, redis_url: str | None, once: bool
) -> None:
    named = redis_choice.given(redis_url, os.environ)
    screen.line(f"Sluice demo, in {shown(directory)}", indent="")
    trained = _models(screen, directory)
    screen.step("Redis")
    used_url = redis_choice.use(screen, stack, directory, named)
    screen.step("Gateway")
    config = _configuration(screen, directory, used_url)
    gateway, addresses = _gateway(screen, stack, directory, config)
    screen.step("Predictions")
    picture = trained.pictures[_SHOWN_DIGIT]
    asked = _predictions(screen, addresses, picture)
    screen.step("Prediction record of the HTTP request, read back from Redis")
    for line in show.record(_record(used_url, asked)):
        screen.line(line)
    screen.step("Drift")
    for line in turned.run(directory, addresses.http, used_url, asked.user):
        screen.line(line)
    _say_how_to_go_on(screen, directory, addresses, picture, asked.user)
    if once:
        screen.line(
            "All done. For these lines, run the demo without --once: it stays up.", indent=""
        )
        screen.line()
        return
    screen.line(f"The gateway's log is {shown(directory / 'gateway.log')}.", indent="")
    screen.line("Ctrl-C stops everything.", indent="")
    _stay_up(screen, gateway)


def _models(screen: Screen, directory: Path) -> Digits:
    screen.step("Models")
    trained = digits.find(directory)
    if trained is None:
        trained = digits.make(directory, screen.work)
    else:
        screen.line("trained in an earlier run")
    for version in trained.versions:
        screen.line(
            f"version {version.version}, {version.kind}: "
            f"{show.percent(version.accuracy)} of {trained.held_out} held-out pictures right"
        )
    return trained


def _configuration(screen: Screen, directory: Path, used_url: str) -> Config:
    path = settings.write(directory, used_url)
    screen.line(f"{shown(path)}: the route's key is {ask.KEY_HEADER}")
    return settings.load(path, os.environ)


def _gateway(
    screen: Screen, stack: ExitStack, directory: Path, config: Config
) -> tuple[GatewayProcess, Addresses]:
    path = directory / settings.CONFIG_NAME
    with screen.work("starting it and warming its models up"):
        gateway = GatewayProcess(path, config.server, directory / "gateway.log")
        stack.callback(_stop, screen, gateway)
        addresses = gateway.wait_ready()
    screen.line(f"HTTP     {url(addresses.http)}")
    screen.line(f"gRPC     {url(addresses.grpc).removeprefix('http://')}")
    screen.line(f"metrics  {url(addresses.metrics)}/metrics")
    screen.line(f"admin    {url(addresses.admin)}")
    return gateway, addresses


def _stop(screen: Screen, gateway: GatewayProcess) -> None:
    if gateway.has_ended:
        return
    try:
        with screen.work("stopping the gateway"):
            gateway.stop()
    finally:
        gateway.stop()  # also where nobody reads any more that it is being stopped


def _predictions(screen: Screen, addresses: Addresses, picture: Picture) -> Answer:
    """Ask twice about one picture, as users of different variants; return the first answer."""
    compiled = ask.route(addresses.admin)
    users = settings.users(compiled) if compiled else {}
    for line in show.split(compiled):
        screen.line(line)
    given = (
        ask.by_http(addresses.http, picture.pixels, users.get("stable", "user-1")),
        ask.by_grpc(addresses.grpc, picture.pixels, users.get("canary", "user-1")),
    )
    for line in show.answers(picture, given, screen.encoding):
        screen.line(line)
    for line in show.reasons(given):
        screen.line(line)
    return given[0]


def _record(used_url: str, answer: Answer) -> LoggedPrediction:
    """Return the record of an answered request; the gateway writes it a moment later.

    Raises:
        DemoFailed: it does not come.
    """
    client = reader.connect(used_url)
    until_s = time.monotonic() + RECORD_TIMEOUT_S
    try:
        while time.monotonic() < until_s:
            found = reader.find(client, digits.NAME, answer.request_id)
            if found is not None:
                return found
            time.sleep(_POLL_S)
    except redis.RedisError as exc:
        raise DemoFailed(f"the record cannot be read from Redis: {exc}") from exc
    finally:
        client.close()
    raise DemoFailed(f"the record of the request is not in Redis after {RECORD_TIMEOUT_S:.0f} s")


def _say_how_to_go_on(
    screen: Screen, directory: Path, addresses: Addresses, picture: Picture, user: str
) -> None:
    go_on.write_script(directory, addresses)
    screen.line()
    screen.line("Go on in another terminal; each line works as pasted here:", indent="")
    screen.line()
    for line in go_on.lines(directory, addresses, picture.pixels, user):
        screen.line(line, indent="")


def _stay_up(screen: Screen, gateway: GatewayProcess) -> None:
    """Return on Ctrl-C or SIGTERM.

    Raises:
        DemoFailed: the gateway ended by itself.
    """
    try:
        code = gateway.wait()
    except KeyboardInterrupt:
        screen.line()
        return
    raise gateway.ended(code)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM, and the end of the terminal, do what Ctrl-C does.

    SIGINT is set as well: a shell starts background commands with it ignored.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the folder: a second demo would rewrite the configuration under the first.

    Raises:
        DemoFailed: another demo holds it, or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as exc:
        raise DemoFailed(f"the folder {directory} cannot be used: {exc.strerror}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise DemoFailed(f"another demo is running in {directory}") from exc
        yield
