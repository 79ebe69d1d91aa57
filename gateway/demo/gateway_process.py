"""The gateway as a child process: start, wait until it serves, read its log, stop.

Its ports are read from its own log, not probed: whoever answers on port 8000 may be another
process, and a port given as 0 is known only there.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway import config as configuration
from gateway.config import ServerConfig
from gateway.demo.screen import DemoFailed

START_TIMEOUT_S: Final = 60.0
LAST_LINES: Final = 8
_POLL_S: Final = 0.05
_KILL_AFTER_DRAIN_S: Final = 10.0
_LISTENERS: Final = ("http", "grpc", "metrics", "admin")
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_NOT_SHOWN: Final = ("time", "level", "logger", "event", "trace")
_OTHER_PORTS: Final = (
    "",
    "Another demo may be running. Other ports can be given in front of the command:",
    "  SLUICE__SERVER__HTTP=127.0.0.1:9000 SLUICE__SERVER__GRPC=127.0.0.1:9001 \\",
    "  SLUICE__SERVER__METRICS=127.0.0.1:9002 SLUICE__SERVER__ADMIN=127.0.0.1:9003",
)

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a caller on this machine reaches each listener."""

    http: Address
    grpc: Address
    metrics: Address
    admin: Address


def url(address: Address) -> str:
    """Return an address as the start of a URL."""
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class GatewayProcess:
    """One `sluice serve`, in a process group of its own: Ctrl-C reaches the demo alone."""

    def __init__(self, config: Path, server: ServerConfig, log: Path) -> None:
        self._server = server
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> Addresses:
        """Wait until the gateway says that it is ready.

        Raises:
            DemoFailed: it ended, or took too long.
        """
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            code = self._process.poll()
            if code is not None:
                raise self.ended(code)
            ports = serving_ports(self._log)
            if ports is not None and _is_ready(addresses(self._server, ports).http):
                return addresses(self._server, ports)
            time.sleep(_POLL_S)
        raise DemoFailed(
            f"the gateway is not ready after {timeout_s:.0f} s; its log, {self._log}, ends with",
            *last_lines(self._log),
        )

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def wait(self) -> int:
        """Wait until the process ends; return its exit code."""
        return self._process.wait()

    def ended(self, code: int) -> DemoFailed:
        """Return the error for a gateway that ended by itself."""
        reason = refusal(self._log)
        if reason is not None:
            advice = _OTHER_PORTS if "in use" in reason else ()
            return DemoFailed(f"the gateway does not start: {reason}", *advice)
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return DemoFailed(
            f"the gateway ended with {how}; its log, {self._log}, ends with",
            *last_lines(self._log),
        )

    def stop(self) -> None:
        """Ask the gateway to finish what it accepted; kill it if it does not, or on Ctrl-C.

        Idempotent.
        """
        self._process.terminate()
        try:
            self._process.wait(self._server.drain_timeout_s + _KILL_AFTER_DRAIN_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()


def addresses(server: ServerConfig, ports: Mapping[str, int]) -> Addresses:
    """Return the configured hosts, as reached from here, with the ports that were bound."""
    found: dict[str, Address] = {}
    for listener in _LISTENERS:
        host, _ = configuration.address(getattr(server, listener), path=f"$.server.{listener}")
        found[listener] = (_WILDCARDS.get(host, host), ports[listener])
    return Addresses(**found)


def serving_ports(log: Path) -> dict[str, int] | None:
    """Return the ports that the gateway's log names, None while it does not serve."""
    for event in _events(log):
        if isinstance(event, dict) and event.get("event") == "serving":
            return {listener: int(event[listener]) for listener in _LISTENERS}
    return None


def refusal(log: Path) -> str | None:
    """Return why the gateway would not start, in its own words; None if it did not say."""
    for event in _events(log):
        if isinstance(event, dict) and event.get("event") == "cannot start":
            return str(event.get("reason"))
    return None


def last_lines(log: Path) -> list[str]:
    """Return the end of a gateway's log in a form for people, without stack traces."""
    lines = [_readable(event) for event in _events(log) if not _is_trace(event)]
    return [f"  {line}" for line in lines[-LAST_LINES:]]


def _events(log: Path) -> list[Any]:  # Any: JSON
    """Return each line decoded, and as text where it is no JSON (or not yet a whole line)."""
    events: list[Any] = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            events.append(line)
    return events


def _is_trace(event: Any) -> bool:  # Any: JSON
    """Whether a line belongs to the body of a trace of Python; its last line is the error."""
    return isinstance(event, str) and event.startswith((" ", "Traceback ("))


def _readable(event: Any) -> str:  # Any: JSON
    if not isinstance(event, dict):
        return str(event)
    pairs = "".join(f" {k}={v}" for k, v in event.items() if k not in _NOT_SHOWN)
    trace = str(event.get("trace", "")).strip().splitlines()
    cause = f": {trace[-1]}" if trace else ""
    return f"{event.get('level', ''):<7} {event.get('event', '')}{pairs}{cause}"


def _is_ready(address: Address) -> bool:
    connection = http.client.HTTPConnection(*address, timeout=1.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
