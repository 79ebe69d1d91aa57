"""h2spec, where it has been built (README.md): every one of its tests passes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conformance.h2spec import LARGE_FRAME, LARGE_HEADER_BYTES, permissive, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

_TESTS = 146


@pytest.fixture(scope="module")
def binary() -> Path:
    """The tool: on the path, or where SLUICE_H2SPEC says."""
    found = os.environ.get("SLUICE_H2SPEC") or shutil.which("h2spec")
    if not found:
        pytest.skip("h2spec has not been built: tests/conformance/README.md says how")
    return Path(found)


def test_every_test_passes(binary: Path) -> None:
    """All but one by themselves, and that one when it does what its name says."""
    with permissive() as address:
        whole = run(binary, address)
        large = run(binary, address, LARGE_FRAME, header_bytes=LARGE_HEADER_BYTES)
    assert (whole.total, whole.skipped) == (_TESTS, 0)
    assert whole.failed == 1, whole.report
    assert "exceeds the SETTINGS_MAX_FRAME_SIZE" in whole.report.partition("Failures:")[2]
    assert (large.passed, large.failed) == (1, 0), large.report
