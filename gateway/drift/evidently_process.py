"""Evidently's report on the same rows, made in an environment and a process of its own.

Evidently and what it needs take 1 GiB on disk and seconds to import, so it never comes into the
gateway's environment: see evidently-requirements.txt. It sends telemetry unless it is told not to,
which it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from gateway.drift import rows, tables
from gateway.drift.column import Kind, Values, numbers, texts
from gateway.drift.reference import Reference
from gateway.drift.rows import Columns, DriftError

REQUIREMENTS: Final = Path(__file__).with_name("evidently-requirements.txt")
TIMEOUT_S: Final = 600.0
_SCRIPT: Final = Path(__file__).with_name("evidently_script.py")


def write_page(
    python: Path, reference: Reference, old: Columns, window: Columns, page: Path
) -> tuple[int, int]:
    """Write Evidently's page; return how many columns drift by its own rules, and of how many.

    `old` are the rows that the reference was made of.

    Raises:
        DriftError: it did not work; with the last line that it said.
    """
    with tempfile.TemporaryDirectory(prefix="sluice-drift-") as folder:
        paths = Path(folder) / "reference.parquet", Path(folder) / "window.parquet"
        for path, columns in zip(paths, _alike(reference, old, window), strict=True):
            tables.write(path, columns)
        command = [str(python), "-I", str(_SCRIPT), *map(str, paths), str(page.absolute())]
        try:
            ran = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
                env=os.environ | {"DO_NOT_TRACK": "1"},
                cwd=folder,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise DriftError(f"Evidently cannot be run with {python}: {exc}") from exc
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or ["no word"])[-1]
        raise DriftError(f"Evidently failed: {last} (it needs what {REQUIREMENTS} lists)")
    said: dict[str, Any] = json.loads(ran.stdout)  # Any: JSON
    return said["drifted"], said["columns"]


def _alike(
    reference: Reference, old: Columns, window: Columns
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Return both tables with the reference's column names and one type per column."""
    before, now = rows.answered(old), rows.answered(window)
    places = rows.match(reference.profiles, now)
    made: tuple[dict[str, Values], dict[str, Values]] = {}, {}
    for name, place in places.items():
        convert = numbers if reference.profiles[name].kind is Kind.NUMBER else texts
        pair = convert(before[name]), convert(now[place])
        # Evidently stops at a column that has no value at all.
        if all(_has_values(values) for values in pair):
            made[0][name], made[1][name] = pair
    return made


def _has_values(values: Values) -> bool:
    if values.dtype.kind == "f":
        return bool(np.isfinite(values).any())
    return any(value is not None for value in values)
