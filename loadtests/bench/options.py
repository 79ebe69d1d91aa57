"""The command line of the bench, and which cases it selects."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.bench import cases, peers
from loadtests.bench.cases import Case
from loadtests.bench.report import RESULTS
from loadtests.bench.targets import GOALS

ROUNDS: Final = 5
ROUND_S: Final = 2.0
QUICK_ROUNDS: Final = 2
SMOKE_ROUND_S: Final = 0.3
EXTRAS: Final = ("start", "idle", "pipeline")
"""What is measured besides cases."""
_SMOKED: Final = (
    "tiny: tiny grpc h2load 32",
    "tiny: tiny json wrk 32",
    "tiny: tiny json wrk 32 (starlette)",
    "tiny: tiny binary wrk 32",
    "mid: mid in-process 32",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure, and what."""

    rounds: int
    round_s: float
    warm_up_s: float
    threads: int
    is_external: bool
    is_pinned: bool
    is_quick: bool
    only: tuple[str, ...]
    is_smoke: bool
    output: Path | None

    def has_extra(self, name: str) -> bool:
        """Whether something besides cases is to be measured."""
        return not self.is_smoke and (not self.only or any(text in name for text in self.only))


def read(arguments: Sequence[str]) -> Options:
    """Parse the command line; exits on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description="measures what requests cost; see README.md"
    )
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--seconds", type=float, help=f"of one round of one case; {ROUND_S:g}")
    parser.add_argument(
        "--threads", type=int, default=1, help="of onnxruntime, per session (default: 1)"
    )
    parser.add_argument(
        "--own-clients", action="store_true", help="use our own loops instead of wrk and h2load"
    )
    parser.add_argument("--pin", action="store_true", help="servers on the first core alone")
    parser.add_argument("--quick", action="store_true", help="two rounds of a second, no peers")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="cases or targets whose name holds this; also start, idle, pipeline; repeatable",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="a few cases, briefly: does it run? Figures are noise"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: {RESULTS.name}")
    parsed = parser.parse_args(arguments)
    is_partial = parsed.smoke or parsed.quick or parsed.only
    rounds = parsed.rounds or (1 if parsed.smoke else QUICK_ROUNDS if parsed.quick else ROUNDS)
    seconds = parsed.seconds or (
        SMOKE_ROUND_S if parsed.smoke else 1.0 if parsed.quick else ROUND_S
    )
    if rounds < 1 or seconds <= 0 or parsed.threads < 1:
        parser.error("--rounds, --seconds and --threads must be positive")
    return Options(
        rounds=rounds,
        round_s=seconds,
        warm_up_s=0.0 if parsed.smoke or parsed.quick else 1.0,
        threads=parsed.threads,
        is_external=not parsed.own_clients,
        is_pinned=parsed.pin,
        is_quick=parsed.quick,
        only=tuple(parsed.only),
        is_smoke=parsed.smoke,
        # A part, or a short run, is not to replace a whole one.
        output=parsed.output or (None if is_partial else RESULTS),
    )


def selected(options: Options) -> list[Case]:
    """Return the cases to measure: those asked for, and what they are compared with."""
    if options.is_smoke:
        return [case for case in cases.CASES if case.name in _SMOKED]
    known = list(cases.CASES)
    if not options.is_quick:
        known.append(cases.beside_the_peers())
        known += [cases.peer_case(name) for name in peers.PEERS]
    if not options.only:
        return known
    wanted = {case.name for case in known if _is_asked(case.name, options.only)}
    for goal in GOALS:
        if _is_asked(goal.path, options.only):
            wanted.update(goal.cases)
    return [case for case in known if case.name in wanted]


def _is_asked(name: str, only: Sequence[str]) -> bool:
    return any(text.lower() in name.lower() for text in only)
