"""What a load generator is: asked for so many requests in flight, it says how many were answered.

Knows programs only in so far as it runs them and says where they come from; which ones there are is
generators.py.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

Address = tuple[str, int]
_GRACE_S: Final = 30.0


class GeneratorMissing(Exception):
    """The program is not on this machine; the sentence says where it comes from."""


class GeneratorFailed(Exception):
    """The load generator did not run, or saw errors."""


class Load(NamedTuple):
    """What a generator says of its run."""

    requests: int
    """Answered with success."""
    seconds: float
    """In which they were answered."""
    p50_us: float
    p99_us: float


class Generator(Protocol):
    """Asks one question again and again."""

    @property
    def label(self) -> str:
        """Its name, and what of it shows in the figures."""

    @property
    def slack(self) -> int | None:
        """How many requests more than it says the server may have answered: those that its end cut
        off; None: it leaves out any number of them."""

    def run(self, duration_s: float) -> Load:
        """Load for this long; raises GeneratorFailed if anything but good answers came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The listener that is asked."""

    address: Address
    certificate: Path | None = None
    """Speaks TLS with this one; None: plain text."""

    @property
    def url(self) -> str:
        """Without a path."""
        host, port = self.address
        return f"{'https' if self.certificate else 'http'}://{host}:{port}"


def find(name: str, source: str) -> str:
    """Return the path of a program on PATH; raises GeneratorMissing with where it comes from."""
    found = shutil.which(name)
    if found is None:
        raise GeneratorMissing(f"{name} is not on PATH ({source})")
    return found


def run_program(
    command: Sequence[str], duration_s: float, environ: Mapping[str, str] | None = None
) -> str:
    """Run a generator to its end; return what it printed.

    Raises:
        GeneratorFailed: it did not end, or not with 0.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=duration_s + _GRACE_S,
            stdin=subprocess.DEVNULL,
            env=environ,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GeneratorFailed(f"{name} did not end") from None
    said = done.stdout + done.stderr
    if done.returncode:
        raise GeneratorFailed(f"{name}: exit code {done.returncode}\n{said}")
    return said


def whole_s(duration_s: float) -> int:
    """Return whole seconds, at least one: wrk and h2load take no others."""
    return max(1, round(duration_s))
