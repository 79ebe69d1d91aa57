"""Runs h2spec, the HTTP/2 conformance tool, against our transport and prints its score.

`python -m tests.conformance.h2spec --binary PATH [--transport permissive|sluice|grpcio] [SPEC]...`;
README.md says how to build the tool, which is no part of this project. It asks for a plain page,
and most of its checks need a request that is taken: a gateway answers 415 to what is no gRPC before
anything can be wrong with it. Hence permissive.py, the default.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.conformance.agree import gateways
from tests.support.gateway import HOST

PATH: Final = "/inference.GRPCInferenceService/ServerLive"
_ROOT: Final = Path(__file__).parents[2]
_LIMIT_S: Final = 400
_STOP_LIMIT_S: Final = 10
_TEST_LIMIT_S: Final = 2
LARGE_FRAME: Final = "http2/4.2/3"
"""Sends a HEADERS frame over SETTINGS_MAX_FRAME_SIZE; what the tool sends by itself is over 16 KB,
which is not over what we announce: it fails unless it is told to send more."""
LARGE_HEADER_BYTES: Final = 260_000
"""Five such fields are over a megabyte, which is what we announce."""
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


def run(binary: Path, address: str, *specs: str, header_bytes: int | None = None) -> Score:
    """Run the tool against an address.

    Args:
        binary: the tool.
        address: host:port.
        specs: parts of the specification, such as http2/6.5; none: all.
        header_bytes: of each of the fields that shall make a head large; None: the tool's choice.
    """
    host, _, port = address.rpartition(":")
    command = [str(binary), *specs, "-h", host, "-p", port, "-P", PATH, "-o", str(_TEST_LIMIT_S)]
    if header_bytes is not None:
        command += ["--max-header-length", str(header_bytes)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    report = _COLOURS.sub("", finished.stdout + finished.stderr)
    found = _SUMMARY.search(report)
    if found is None:
        raise RuntimeError(f"h2spec came to no result:\n{report}")
    total, passed, skipped, failed = map(int, found.groups())
    return Score(total=total, passed=passed, skipped=skipped, failed=failed, report=report)


@contextmanager
def _address(transport: str) -> Iterator[str]:
    """Run a server and yield its address."""
    if transport != "permissive":
        with (
            tempfile.TemporaryDirectory() as folder,
            gateways(Path(folder), (transport,)) as (one,),
        ):
            yield one.at.grpc
        return
    with permissive() as address:
        yield address


@contextmanager
def permissive() -> Iterator[str]:
    """Run permissive.py and yield its address."""
    command = [sys.executable, "-m", "tests.conformance.permissive"]
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield f"{HOST}:{server.stdout.readline().strip()}"
        server.communicate(timeout=_STOP_LIMIT_S)


def main() -> int:
    """Start a server, run the tool, print its report."""
    parser = argparse.ArgumentParser(description="HTTP/2 conformance of the gRPC port")
    parser.add_argument("--binary", type=Path, required=True, help="h2spec")
    parser.add_argument("--transport", default="permissive")
    parser.add_argument("specs", nargs="*")
    asked = parser.parse_args()
    with _address(asked.transport) as address:
        scores = [run(asked.binary, address, *asked.specs)]
        if not asked.specs:
            scores.append(run(asked.binary, address, LARGE_FRAME, header_bytes=LARGE_HEADER_BYTES))
    print("\n".join(score.report for score in scores))  # noqa: T201
    return 1 if scores[-1].failed else 0


if __name__ == "__main__":
    sys.exit(main())
