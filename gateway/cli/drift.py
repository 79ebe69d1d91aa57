"""`sluice drift`: what people type. Arguments and help only; drift_run.py does the work."""

from __future__ import annotations

import argparse
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.cli import drift_run, route_input
from gateway.config import address
from gateway.config_fields import ConfigError
from gateway.drift.decide import MIN_ROWS, Thresholds

if TYPE_CHECKING:
    # Private in argparse, and the only name of what `add_subparsers` returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EPILOG: Final = (
    "exit codes: 0 no drift; 1 it could not be judged: no Redis, or too few records; 2 the command "
    "line, the configuration or the reference is wrong; 3 drift"
)
DEFAULT_CONFIG: Final = Path("sluice.toml")
WINDOW_RECORDS: Final = 1_000
GROUP: Final = "drift"
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def add_parser(commands: Commands) -> None:
    """Add `drift` and its commands to the command line."""
    usual = Thresholds()
    drift = commands.add_parser(
        "drift", help="compare what is served now with a reference", epilog=EPILOG
    )
    drift.set_defaults(run=drift_run.run)
    _add_source(drift)
    drift.add_argument("--reference", type=Path, metavar="FILE", help="Parquet; needs pyarrow")
    _add_truth(drift)
    rule = drift.add_argument_group("what drift is")
    for name, kind, help_text in (
        ("level", _share, "most probability of a false alarm in the whole run"),
        ("psi", _from_zero, "a stability index from here on is large"),
        ("wasserstein", _from_zero, "so is a distance of this many standard deviations"),
        ("share", _share, "share of the features that make data drift; 0: one does"),
        ("error-rise", _share, "rise of the rate of error statuses that is large"),
        ("wrong-rise", _share, "rise of the rate of wrong answers that is large"),
    ):
        default = getattr(usual, name.replace("-", "_"))
        shown = f"{help_text}; default: {default:g}"
        rule.add_argument(f"--{name}", type=kind, default=default, metavar="X", help=shown)
    _add_follow(drift)
    output = drift.add_argument_group("output")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    output.add_argument("--json", action="store_true", help="print one JSON object per window")
    output.add_argument("--evidently", type=Path, metavar="FILE", help="write Evidently's page too")
    output.add_argument(
        "--evidently-python",
        type=Path,
        metavar="PYTHON",
        help="interpreter of an environment that has it; never the gateway's own",
    )
    _add_reference(drift)


def _add_follow(drift: argparse.ArgumentParser) -> None:
    follow = drift.add_argument_group("watching")
    follow.add_argument("--follow", action="store_true", help="judge window after window")
    follow.add_argument(
        "--window",
        type=_window,
        default=WINDOW_RECORDS,
        metavar="N",
        help=f"records per window; default: {WINDOW_RECORDS}",
    )
    follow.add_argument(
        "--windows", type=route_input.positive, metavar="N", help="stop after so many windows"
    )
    follow.add_argument(
        "--group", default=GROUP, help=f"consumer group, one per monitor; default: {GROUP}"
    )
    follow.add_argument(
        "--metrics", type=_address, metavar="HOST:PORT", help="serve Prometheus metrics there"
    )


def _add_reference(drift: argparse.ArgumentParser) -> None:
    commands = drift.add_subparsers(dest="drift_command", metavar="")
    reference = commands.add_parser("reference", help="make a reference from the log")
    reference.set_defaults(run=drift_run.reference)
    _add_source(reference)
    reference.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet")
    reference.add_argument("--labels", action="store_true", help="with the labels that came")


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("what is read")
    source.add_argument("--model", metavar="NAME", help="public name: a route or a model")
    source.add_argument(
        "--since",
        type=moment,
        metavar="WHEN",
        help="2026-08-24T10:00 (UTC), or 30m, 2h, 7d ago; default: all there is, or with --follow "
        "from now on",
    )
    source.add_argument("--until", type=moment, metavar="WHEN", help="before this moment")
    source.add_argument("--redis", metavar="URL", help="default: [redis] url of the configuration")
    source.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")


def _add_truth(parser: argparse.ArgumentParser) -> None:
    truth = parser.add_argument_group("labels")
    truth.add_argument(
        "--labels", action="store_true", help="hold answers against labels: concept drift"
    )
    truth.add_argument(
        "--predicted",
        default="",
        metavar="COLUMN",
        help="output that labels are compared with; default: the only one that is no measure",
    )
    truth.add_argument(
        "--tolerance",
        type=_from_zero,
        default=0.0,
        metavar="X",
        help="numbers are right up to this distance; default: 0",
    )


def moment(text: str) -> datetime:
    """Read a moment: ISO 8601, UTC unless it says otherwise, or a span ago such as 2h."""
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return datetime.fromtimestamp(time.time() - float(ago[1]) * _UNITS_S[ago[2]], UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        sentence = f"{text!r} is no moment, such as 2026-08-24T10:00 or 2h"
        raise argparse.ArgumentTypeError(sentence) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _share(text: str) -> float:
    found = _from_zero(text)
    if found > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1")
    return found


def _from_zero(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return found


def _window(text: str) -> int:
    found = route_input.positive(text)
    if found < MIN_ROWS:
        raise argparse.ArgumentTypeError(f"{text} records say too little: at least {MIN_ROWS}")
    return found


def _address(text: str) -> tuple[str, int]:
    try:
        return address(text, path="--metrics")
    except ConfigError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT") from None
