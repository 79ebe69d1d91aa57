"""Runs the unmodified tritonclient, all four flavours of it, against a live gateway.

Run from the repository's folder with the environment of `make triton-venv`, at a gateway that
serves what tests/triton/repository.py writes:

    .venv-tritonclient/bin/python -m tests.triton.check_tritonclient \\
        --http 127.0.0.1:8000 --grpc 127.0.0.1:8001

Prints one line per check and flavour, and a summary. Exits 1 if any check failed.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Final

from tests.triton import (
    control_checks,
    describe_checks,
    error_checks,
    infer_checks,
    stream_checks,
    transfer_checks,
)
from tests.triton.flavours import NAMES, Flavour

_SHOWN_CHARS: Final = 2_000
_MODULES: Final = (describe_checks, infer_checks, transfer_checks, stream_checks, error_checks)


class Report:
    """Prints how each check went, and counts."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: list[str] = []

    def make(self, flavour: str, sentence: str, run: Callable[[], None]) -> None:
        """Make one check."""
        started_s = time.monotonic()
        line = f"{flavour:<9} {sentence}"
        try:
            run()
        except Exception:  # whatever it is, it is this check's failure, and the others go on
            self.failed.append(line)
            self.say(f"FAIL  {line}\n{traceback.format_exc()[-_SHOWN_CHARS:]}")
        else:
            self.passed += 1
            self.say(f"ok    {line} ({(time.monotonic() - started_s) * 1e3:.0f} ms)")

    def say(self, text: str) -> None:
        """Print at once: a check that hangs must be seen."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def summarise(self) -> int:
        """Print the summary; return the exit code."""
        for line in self.failed:
            self.say(f"failed: {line}")
        total = self.passed + len(self.failed)
        self.say(
            f"tritonclient {metadata.version('tritonclient')}, {', '.join(NAMES)}: "
            f"{total} checks, {self.passed} passed, {len(self.failed)} failed"
        )
        return 1 if self.failed or not total else 0


def main() -> int:
    """Make the checks; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--http", default="127.0.0.1:8000", metavar="HOST:PORT")
    parser.add_argument("--grpc", default="127.0.0.1:8001", metavar="HOST:PORT")
    parser.add_argument(
        "--control", action="store_true", help="check load and unload, where they are allowed"
    )
    arguments = parser.parse_args()
    flavours = [
        Flavour(name, arguments.http if name.startswith("http") else arguments.grpc)
        for name in NAMES
    ]
    report = Report()
    modules = (control_checks,) if arguments.control else _MODULES
    for flavour in flavours:
        for module in modules:
            for check in module.CHECKS:
                if check.concerns(flavour):
                    report.make(flavour.name, check.sentence, partial(check.run, flavour))
    if not arguments.control:
        _compare_sentences(report, flavours)
    for flavour in flavours:
        flavour.close()
    return report.summarise()


def _compare_sentences(report: Report, flavours: list[Flavour]) -> None:
    for refusal in error_checks.REFUSALS:
        if refusal.is_worded_alike:
            concerned = [f for f in flavours if refusal.check().concerns(f)]
            report.make(
                "all",
                f"the same sentence everywhere: {refusal.about}",
                partial(error_checks.expect_same_words, refusal, concerned),
            )


if __name__ == "__main__":
    sys.exit(main())
