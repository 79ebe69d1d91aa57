"""`sluice doctor`: what this machine can run, what is missing, and what does not go together.

Exit codes: 0 nothing is an error, 1 something is, 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from engines.doctor import Facts, Finding, Severity, gather, judge
from gateway.cli import server
from gateway.cli.route_session import wants_colours
from gateway.cli.route_text import GAP, PLAIN, Style, printable
from gateway.config_fields import ConfigError

if TYPE_CHECKING:
    # Private in argparse, and the only name of what `add_subparsers` returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_NOTE: Final = ": note: "
_PLURALS: Final = {Severity.ERROR: "errors", Severity.WARNING: "warnings", Severity.NOTE: "notes"}


def add_parser(commands: Commands) -> None:
    """Add `doctor` to the command line."""
    doctor = commands.add_parser(
        "doctor",
        help="say what this machine can run, what is missing, and what to install",
        epilog="exit codes: 0 nothing is an error; 1 something is; 2 the command line is wrong",
    )
    doctor.set_defaults(run=run)
    doctor.add_argument(
        "--config", type=Path, metavar="FILE", help="check what its models ask for, too"
    )
    doctor.add_argument("--json", action="store_true", help="one JSON document, with all facts")


def run(arguments: argparse.Namespace) -> int:
    """Examine this machine; print the findings."""
    facts = gather()
    findings = judge(facts)
    if arguments.config is not None:
        findings += of_models(arguments.config)
    is_good = all(finding.severity is not Severity.ERROR for finding in findings)
    if arguments.json:
        print(document(facts, findings, is_good=is_good))
    else:
        style = Style(is_coloured=wants_colours(sys.stdout, os.environ))
        print("\n".join(text(findings, style)))
    return 0 if is_good else 1


def of_models(path: Path) -> list[Finding]:
    """Return what keeps the models of a configuration from being served on this machine."""
    # Imported here: the other commands need nothing of what reads a model's configuration.
    from gateway.cli import model_checks

    try:
        config, root = server.read(path)
    except ConfigError as exc:
        return [Finding(Severity.ERROR, "config", f"{path}: {exc}")]
    found = model_checks.look_through(config, path, root)
    findings = [Finding(Severity.ERROR, "models", fault) for fault in found.faults]
    if not findings:
        sentence = f"what the models in {root} ask for is here"
        findings.append(Finding(Severity.OK, "models", sentence))
    notes = (note.replace(_NOTE, ": ", 1) for note in found.notes)
    return findings + [Finding(Severity.NOTE, "models", note) for note in notes]


def document(facts: Facts, findings: Sequence[Finding], *, is_good: bool) -> str:
    """Return everything as JSON."""
    whole = {"is_good": is_good, "findings": list(findings), "facts": facts}
    return msgspec.json.encode(whole).decode()


def text(findings: Sequence[Finding], style: Style = PLAIN) -> Iterator[str]:
    """Yield the lines for people: aligned, the remedy below its finding, a summary at the end."""
    severity_width = max(len(severity) for severity in Severity)
    area_width = max(len(finding.area) for finding in findings)
    indent = " " * (severity_width + area_width + 2 * len(GAP))
    for finding in findings:
        severity = _coloured(finding.severity, style, width=severity_width)
        area = finding.area.ljust(area_width)
        yield f"{severity}{GAP}{area}{GAP}{printable(finding.sentence)}"
        if finding.fix:
            yield f"{indent}-> {printable(finding.fix)}"
    yield ""
    yield _summary(findings, style)


def _coloured(severity: Severity, style: Style, *, width: int) -> str:
    padded = severity.ljust(width)
    if severity is Severity.ERROR:
        return style.warning(padded)
    if severity is Severity.WARNING:
        return style.bold(padded)
    return style.good(padded) if severity is Severity.OK else padded


def _summary(findings: Sequence[Finding], style: Style) -> str:
    counts = Counter(finding.severity for finding in findings)
    parts = [
        f"{counts[severity]} {severity if counts[severity] == 1 else plural}"
        for severity, plural in _PLURALS.items()
        if counts[severity]
    ]
    line = ", ".join(parts) or "nothing to add"
    return style.warning(line) if counts[Severity.ERROR] else style.good(line)
