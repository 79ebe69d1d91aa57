"""What a run of the Locust file measured: the file that passes it on, and how it is shown.

`locustfile.py` rewrites the file every second, `run.py` reads it: for its progress lines, and at
the end for the report. Showing is pure: figures in, lines out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from loadtests.split import SIGMAS, Share, shares

PROTOCOLS: Final[Mapping[str, str]] = {"http": "HTTP", "grpc": "gRPC"}
"""The first word of every request's name, and how it is shown."""
ERRORS_SHOWN: Final = 5
_HEADING: Final = (
    f"{'':28}{'requests':>10}{'failed':>8}{'per s':>9}"
    f"{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}"
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of one name, such as 'grpc ModelInfer digits'."""

    name: str
    requests: int
    failures: int
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @property
    def protocol(self) -> str:
        """http or grpc."""
        return self.name.partition(" ")[0]


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Failures of one name with one sentence."""

    name: str
    sentence: str
    occurrences: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A run so far."""

    elapsed_s: float
    entries: tuple[Entry, ...]
    errors: tuple[Errors, ...]
    answered: dict[str, dict[str, int]]
    """Protocol -> variant -> good answers."""

    def requests(self, protocol: str) -> int:
        """Return the requests of one protocol."""
        return sum(e.requests for e in self.entries if e.protocol == protocol)

    @property
    def failures(self) -> int:
        """Failed requests of all protocols."""
        return sum(e.failures for e in self.entries)


def write(figures: Figures, path: Path) -> None:
    """Put the file in place at once: a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(msgspec.json.encode(figures))
    os.replace(part, path)


def read(path: Path) -> Figures | None:
    """Return the figures so far; None before the first were written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Figures)
    except FileNotFoundError:
        return None


def progress_line(figures: Figures, duration_s: float) -> str:
    """Return one line on a run that is going on."""
    counts = ", ".join(f"{shown} {figures.requests(p):,}" for p, shown in PROTOCOLS.items())
    return f"  {figures.elapsed_s:4.0f} s of {duration_s:.0f}: {counts}, failed {figures.failures}"


def report(figures: Figures, weights: Mapping[str, float], sigmas: float = SIGMAS) -> list[str]:
    """Return the whole report: rates and percentiles, failures, the split per protocol."""
    lines = [_HEADING]
    lines += [
        f"{e.name:28}{e.requests:>10,}{e.failures:>8,}{e.per_second:>9,.0f}"
        f"{e.p50_ms:>9.1f}{e.p95_ms:>9.1f}{e.p99_ms:>9.1f}{e.max_ms:>9.1f}"
        for e in figures.entries
    ]
    for error in figures.errors[:ERRORS_SHOWN]:
        lines.append(f"  {error.occurrences} x {error.name}: {error.sentence}")
    if len(figures.errors) > ERRORS_SHOWN:
        lines.append(f"  and {len(figures.errors) - ERRORS_SHOWN} other sentences")
    for protocol, shown in PROTOCOLS.items():
        found = shares(figures.answered.get(protocol, {}), weights, sigmas)
        lines += ["", f"split over {shown}, random keys, interval of {sigmas:g} sigma"]
        lines += [_share_line(share) for share in found] or ["  no answers"]
    return lines


def _share_line(share: Share) -> str:
    verdict = "within" if share.is_within else "OUTSIDE"
    return (
        f"  {share.variant:12}{share.answered:>9,} answers, {share.observed:.3%}; "
        f"expected {share.expected:.2%}, {verdict} {share.low:.3%} to {share.high:.3%}"
    )


def faults(figures: Figures, weights: Mapping[str, float], sigmas: float = SIGMAS) -> Sequence[str]:
    """Return why the run has failed, a sentence each; empty where it has not."""
    found = []
    if figures.failures:
        found.append(f"{figures.failures} requests failed")
    for protocol, shown in PROTOCOLS.items():
        split = shares(figures.answered.get(protocol, {}), weights, sigmas)
        if not split:
            found.append(f"nothing was answered over {shown}")
        found += [
            f"over {shown} {s.variant!r} got {s.observed:.3%}, outside {s.low:.3%} to {s.high:.3%}"
            for s in split
            if not s.is_within
        ]
    return found
