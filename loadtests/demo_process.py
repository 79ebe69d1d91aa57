"""`sluice demo` as a child process, for a load test that finds nobody at its addresses.

The demo trains, starts Redis and a gateway, and stays up until it is told to stop; what it started
it stops itself, on SIGTERM as on Ctrl-C.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loadtests import asking

READY_TIMEOUT_S: Final = 240.0
"""Includes the training of its two models, on a slow machine."""
STOP_TIMEOUT_S: Final = 60.0
LAST_LINES: Final = 12
_POLL_S: Final = 0.2


class DemoFailed(Exception):
    """The demo ended or did not become ready; the sentence ends with its last lines."""


@contextmanager
def demo(directory: Path, ready_url: str, addresses: Mapping[str, str]) -> Iterator[None]:
    """Run the demo until the context ends; it is ready when this is entered.

    Args:
        directory: the demo's folder; what an earlier run trained there is used again.
        ready_url: answers as soon as the demo can be asked.
        addresses: host:port by the name of the setting: http, grpc, admin.

    Raises:
        DemoFailed: it ended, or took too long.
    """
    overrides = {f"SLUICE__SERVER__{name.upper()}": value for name, value in addresses.items()}
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "load-demo.log"
    with log.open("wb") as output:
        # A process group of its own: Ctrl-C stops the load first, then this.
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "demo", "--dir", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | overrides,
            process_group=0,
        )
    try:
        _wait_ready(process, ready_url, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], ready_url: str, log: Path) -> None:
    until_s = time.monotonic() + READY_TIMEOUT_S
    while not asking.answers(ready_url):
        if process.poll() is not None:
            raise DemoFailed(f"the demo ended with exit code {process.returncode}:\n{_tail(log)}")
        if time.monotonic() > until_s:
            raise DemoFailed(f"the demo is not ready after {READY_TIMEOUT_S:.0f} s:\n{_tail(log)}")
        time.sleep(_POLL_S)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
