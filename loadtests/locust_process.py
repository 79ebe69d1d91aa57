"""Locust as a child process, headless, on the Locust file beside this one.

A process of its own, because Locust replaces the blocking calls of the one that imports it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from loadtests import figures
from loadtests.figures import Figures

LOCUST_FILE: Final = Path(__file__).with_name("locustfile.py")
FINISH_S: Final = 5
"""How long users may finish the request under way when the time is over."""
GRACE_S: Final = 60.0
"""Beyond the run's length: start, finish, and a machine that is busy."""
LAST_LINES: Final = 12
_POLL_S: Final = 0.1


class LocustFailed(Exception):
    """Locust measured nothing; the sentence ends with its last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to ask, how hard, and for how long."""

    http: str
    """URL of the predict listener, without a path."""
    grpc: str
    """host:port."""
    route: str
    users: int
    """Half of them over HTTP, half over gRPC."""
    duration_s: int


def run(load: Load, on_progress: Callable[[Figures], None], *, every_s: float = 5.0) -> Figures:
    """Run Locust to its end; return what it measured.

    Args:
        load: the load.
        on_progress: called with the figures so far.
        every_s: how often.

    Raises:
        LocustFailed: it ended without figures, or did not end.
    """
    with TemporaryDirectory(prefix="sluice-load-") as folder:
        path, log = Path(folder, "figures.json"), Path(folder, "locust.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(load, path),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                process_group=0,
            )
        try:
            _watch(process, path, load.duration_s, on_progress, every_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        measured = figures.read(path)
        # Locust's own code is 1 when a request failed, which the figures tell better.
        if measured is None or process.returncode not in (0, 1):
            lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise LocustFailed("\n".join(["Locust failed; its output ends with", *lines]))
        return measured


def command(load: Load, figures_path: Path) -> list[str]:
    """Return Locust's command line."""
    return [
        *(sys.executable, "-m", "locust", "--locustfile", str(LOCUST_FILE)),
        *("--headless", "--only-summary", "--skip-log-setup"),
        *("--users", str(load.users), "--spawn-rate", str(load.users)),
        *("--run-time", f"{load.duration_s}s", "--stop-timeout", str(FINISH_S)),
        *("--host", load.http, "--grpc", load.grpc, "--route", load.route),
        *("--figures", str(figures_path)),
    ]


def _environment() -> dict[str, str]:
    """Return ours, with this project's root on the path of imports."""
    root = str(LOCUST_FILE.parent.parent)
    before = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, before] if before else [root])}


def _watch(
    process: subprocess.Popen[bytes],
    path: Path,
    duration_s: float,
    on_progress: Callable[[Figures], None],
    every_s: float,
) -> None:
    """Wait for the end, reporting now and then."""
    started_s = last_s = time.monotonic()
    while process.poll() is None:
        time.sleep(_POLL_S)
        now_s = time.monotonic()
        if now_s - started_s > duration_s + GRACE_S:
            raise LocustFailed(f"Locust has not ended {GRACE_S:.0f} s after its time was over")
        if now_s - last_s >= every_s and (so_far := figures.read(path)) is not None:
            last_s = now_s
            on_progress(so_far)
