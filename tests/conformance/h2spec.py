"""Runs h2spec, the HTTP/2 conformance tool, against a gateway and prints its score.

`python -m tests.conformance.h2spec --binary PATH [--transport sluice|grpcio] [SPEC]...`; README.md
says how to build the tool, which is no part of this project. It asks for a plain page; a gRPC
server that refuses what is no gRPC is asked for a gRPC method's path, and its refusals are answers
too, so that nothing has to be made permissive.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.conformance.agree import OWN, gateways

PATH: Final = "/inference.GRPCInferenceService/ServerLive"
_LIMIT_S: Final = 400
_SUMMARY: Final = re.compile(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed")
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the tool found."""

    total: int
    passed: int
    skipped: int
    failed: int
    report: str
    """All that it printed."""


def run(binary: Path, address: str, *specs: str, timeout_s: int = 2) -> Score:
    """Run the tool against an address.

    Args:
        binary: the tool.
        address: host:port.
        specs: parts of the specification, such as http2/6.5; none: all.
        timeout_s: how long each test may wait for the server.
    """
    host, _, port = address.rpartition(":")
    command = [str(binary), *specs, "-h", host, "-p", port, "-P", PATH, "-o", str(timeout_s)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    report = _COLOURS.sub("", finished.stdout + finished.stderr)
    found = _SUMMARY.search(report)
    if found is None:
        raise RuntimeError(f"h2spec came to no result:\n{report}")
    total, passed, skipped, failed = map(int, found.groups())
    return Score(total=total, passed=passed, skipped=skipped, failed=failed, report=report)


def main() -> int:
    """Start a gateway, run the tool, print its report."""
    parser = argparse.ArgumentParser(description="HTTP/2 conformance of the gRPC port")
    parser.add_argument("--binary", type=Path, required=True, help="h2spec")
    parser.add_argument("--transport", default=OWN)
    parser.add_argument("--address", help="host:port of a server that runs already")
    parser.add_argument("specs", nargs="*")
    asked = parser.parse_args()
    if asked.address:
        score = run(asked.binary, asked.address, *asked.specs)
    else:
        with (
            tempfile.TemporaryDirectory() as folder,
            gateways(Path(folder), (asked.transport,)) as (gateway,),
        ):
            score = run(asked.binary, gateway.at.grpc, *asked.specs)
    print(score.report)  # noqa: T201
    return 1 if score.failed else 0


if __name__ == "__main__":
    sys.exit(main())
