"""Triton's Python client, unmodified and the newest, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.gateway import GatewayProcess
from tests.triton.repository import configuration, write_models

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(400)]

_ROOT: Final = Path(__file__).parents[2]
_PYTHON: Final = _ROOT / ".venv-tritonclient" / "bin" / "python"
_INSTALL_LIMIT_S: Final = 240
_CHECKS_LIMIT_S: Final = 120


@pytest.fixture(scope="module")
def tritonclient_python() -> Path:
    """The interpreter beside tritonclient; a test fails where it cannot be made."""
    command = ["make", "--no-print-directory", "triton-venv", f"PYTHON={sys.executable}"]
    made = _run(command, _INSTALL_LIMIT_S)
    assert made.returncode == 0, f"make triton-venv failed:\n{made.stdout}"
    return _PYTHON


def test_the_unmodified_client_passes_every_check_in_all_four_flavours(
    tritonclient_python: Path, tmp_path: Path
) -> None:
    write_models(tmp_path / "models")
    with GatewayProcess(configuration(), tmp_path) as gateway:
        _expect_all_passed(_check(tritonclient_python, gateway))
        assert gateway.stop() == 0, gateway.log
    # The checks make one model fail on purpose; no mistake of a caller is an error of the server.
    assert _errors(gateway) == {"engine failed"}, gateway.log
    assert "\nTraceback" not in gateway.log, gateway.log  # one that no logger of ours wrote


def test_the_unmodified_client_loads_and_unloads_where_the_configuration_allows_it(
    tritonclient_python: Path, tmp_path: Path
) -> None:
    write_models(tmp_path / "models")
    with GatewayProcess(configuration(control="explicit"), tmp_path) as gateway:
        _expect_all_passed(_check(tritonclient_python, gateway, "--control"))
        assert gateway.stop() == 0, gateway.log


def _check(
    python: Path, gateway: GatewayProcess, *options: str
) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "tests.triton.check_tritonclient", *options]
    return _run([*command, "--http", gateway.at.http, "--grpc", gateway.at.grpc], _CHECKS_LIMIT_S)


def _expect_all_passed(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, f"exit code {finished.returncode}:\n{finished.stdout}"
    assert " checks, " in finished.stdout, finished.stdout
    assert finished.stdout.rstrip().endswith(" 0 failed"), finished.stdout


def _errors(gateway: GatewayProcess) -> set[str]:
    """Return the events that the gateway logged as errors."""
    entries = [json.loads(line) for line in gateway.log.splitlines() if line.startswith("{")]
    return {entry["event"] for entry in entries if entry["level"] == "error"}


def _run(command: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
        check=False,
    )
