"""Triton's perf_analyzer, unmodified, against a live gateway: HTTP and gRPC on a route.

Skipped, with the reason, where the machine lacks a library that only its package manager installs.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from gateway.demo.gateway_process import Addresses
from loadtests import perf_analyzer, perf_analyzer_binary
from loadtests.perf_analyzer import HTTP, MODEL, RunFailed, Subject
from loadtests.perf_analyzer_binary import NotAvailable, PerfAnalyzer
from tests.support.gateway import HOST, free_port

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(400)]

_ROOT: Final = Path(__file__).parents[2]
_LIMIT_S: Final = 120


@pytest.fixture(scope="module")
def binary() -> PerfAnalyzer:
    """The tool, installed if it was not."""
    try:
        return perf_analyzer_binary.prepare()
    except NotAvailable as exc:
        pytest.skip(str(exc))


def test_runs_over_http_and_grpc_end_and_print_the_servers_queue_and_compute_times(
    binary: PerfAnalyzer,
) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "loadtests.perf_analyzer", "--short"],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    for line in (
        "route digits      HTTP ",
        "route digits      gRPC ",
        "2 of 2 runs came to their end",
    ):
        assert f"\n{line}" in finished.stdout, finished.stdout


def test_a_run_that_reaches_nobody_fails_with_the_tools_own_words(binary: PerfAnalyzer) -> None:
    nobody = (HOST, free_port())
    addresses = Addresses(http=nobody, grpc=nobody, metrics=nobody, admin=nobody)
    subject = Subject(name=MODEL, shown=MODEL)
    with pytest.raises(RunFailed, match="failed to get model metadata"):
        perf_analyzer.measure(binary, subject, HTTP, addresses, perf_analyzer.SHORT)


def test_a_missing_library_is_named(binary: PerfAnalyzer, tmp_path: Path) -> None:
    assert binary.missing() == []
    assert replace(binary, library_folder=tmp_path).missing() == ["libcudart.so.12"]


def test_a_file_that_is_no_program_is_refused_with_a_reason(
    binary: PerfAnalyzer, tmp_path: Path
) -> None:
    text = tmp_path / "perf_analyzer"
    text.write_text("no program")
    with pytest.raises(NotAvailable, match="does not run on this machine"):
        replace(binary, path=text).missing()
