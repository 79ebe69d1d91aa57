"""A gateway of our own on free ports, as a child process, for benchmarks and their tests.

Knows how a configuration is written and a gateway is started; the models are the caller's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway import config as configuration
from gateway.config import ServerConfig
from gateway.demo import gateway_process
from gateway.demo.gateway_process import Addresses
from gateway.demo.screen import DemoFailed
from loadtests import asking

_SERVER: Final = """\
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
metrics = "127.0.0.1:0"
admin = "127.0.0.1:0"
"""
_POLL_S: Final = 0.005
"""Fine enough to measure how long a start takes."""


class _Process(gateway_process.GatewayProcess):
    def __init__(self, config: Path, server: ServerConfig, log: Path) -> None:
        super().__init__(config, server, log)
        self.has_tls = server.tls is not None

    @property
    def pid(self) -> int:
        """Of the process: the root of the tree whose CPU time is measured."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = gateway_process.START_TIMEOUT_S) -> Addresses:
        """Wait until the gateway serves, over TLS where that is what it speaks."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            code = self._process.poll()
            if code is not None:
                raise self.ended(code)
            ports = gateway_process.serving_ports(self._log)
            if ports is not None:
                found = gateway_process.addresses(self._server, ports)
                if asking.is_ok(f"{base_url(found.http, self.has_tls)}/v2/health/ready"):
                    return found
            time.sleep(_POLL_S)
        raise DemoFailed(
            f"the gateway is not ready after {timeout_s:.0f} s; its log, {self._log}, ends with",
            *gateway_process.last_lines(self._log),
        )


def base_url(address: tuple[str, int], has_tls: bool) -> str:
    """Return an address as the start of a URL."""
    plain = gateway_process.url(address)
    return plain.replace("http://", "https://", 1) if has_tls else plain


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningGateway:
    """A gateway that serves."""

    addresses: Addresses
    pid: int
    has_tls: bool = False
    start_s: float = 0.0
    """From the start of the process until it was ready."""

    @property
    def http_url(self) -> str:
        """Where the predict listener is, without a path."""
        return base_url(self.addresses.http, self.has_tls)


@contextmanager
def running(
    folder: Path,
    models: Path,
    tables: str,
    *,
    redis_url: str | None = None,
    server: Mapping[str, str | int] | None = None,
) -> Iterator[RunningGateway]:
    """Run a gateway until the context ends; it is ready when this is entered.

    Args:
        folder: for its configuration and its log.
        models: the repository.
        tables: further TOML: routes, prediction_log, server.tls.
        redis_url: where the prediction log goes; None: nowhere.
        server: further fields of [server].

    Raises:
        DemoFailed: it ended, or did not become ready; with the last lines of its log.
    """
    config = folder / "sluice.toml"
    lines = [f"{field} = {json.dumps(value)}\n" for field, value in (server or {}).items()]
    parts = [_SERVER + "".join(lines)]
    parts.append(f"[models]\nrepository = {json.dumps(str(models.resolve()))}\n")
    if redis_url is not None:
        parts.append(f"[redis]\nurl = {json.dumps(redis_url)}\n")
    config.write_text("\n".join([*parts, tables]))
    settings = configuration.load(config, os.environ).server
    started_s = time.monotonic()
    process = _Process(config, settings, folder / "gateway.log")
    try:
        addresses = process.wait_ready()
        yield RunningGateway(
            addresses=addresses,
            pid=process.pid,
            has_tls=process.has_tls,
            start_s=time.monotonic() - started_s,
        )
    finally:
        process.stop()
