"""A gateway of our own on free ports, as a child process, for benchmarks and their tests.

Knows how a configuration is written and a gateway is started; the models are the caller's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway import config as configuration
from gateway.demo import gateway_process
from gateway.demo.gateway_process import Addresses

_SERVER: Final = """\
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
metrics = "127.0.0.1:0"
admin = "127.0.0.1:0"
"""


class _Process(gateway_process.GatewayProcess):
    @property
    def pid(self) -> int:
        """Of the process: the root of the tree whose CPU time is measured."""
        return self._process.pid


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningGateway:
    """A gateway that serves."""

    addresses: Addresses
    pid: int

    @property
    def http_url(self) -> str:
        """Where the predict listener is, without a path."""
        return gateway_process.url(self.addresses.http)


@contextmanager
def running(
    folder: Path, models: Path, tables: str, *, redis_url: str | None = None
) -> Iterator[RunningGateway]:
    """Run a gateway until the context ends; it is ready when this is entered.

    Args:
        folder: for its configuration and its log.
        models: the repository.
        tables: further TOML: routes, prediction_log.
        redis_url: where the prediction log goes; None: nowhere.

    Raises:
        DemoFailed: it ended, or did not become ready; with the last lines of its log.
    """
    config = folder / "sluice.toml"
    parts = [_SERVER, f"[models]\nrepository = {json.dumps(str(models.resolve()))}\n"]
    if redis_url is not None:
        parts.append(f"[redis]\nurl = {json.dumps(redis_url)}\n")
    config.write_text("\n".join([*parts, tables]))
    server = configuration.load(config, os.environ).server
    process = _Process(config, server, folder / "gateway.log")
    try:
        addresses = process.wait_ready()
        yield RunningGateway(addresses=addresses, pid=process.pid)
    finally:
        process.stop()
