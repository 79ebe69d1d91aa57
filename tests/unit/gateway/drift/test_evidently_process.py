"""Evidently beside us, in a process of its own.

It is far too large for the project's own environment. Where SLUICE_EVIDENTLY_PYTHON names an
interpreter that has what gateway/drift/evidently-requirements.txt lists, it is really run.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from gateway.drift import decide, evidently_process
from gateway.drift.decide import Thresholds
from gateway.drift.rows import DriftError
from tests.support.drift import Table, normal_table, reference_of

PYTHON = os.environ.get("SLUICE_EVIDENTLY_PYTHON", "")


def test_an_interpreter_without_evidently_is_told_what_it_lacks(tmp_path: Path) -> None:
    table = normal_table(1, 100, 2)
    with pytest.raises(DriftError, match=r"No module named 'evidently'.*requirements\.txt"):
        evidently_process.write_page(
            Path(sys.executable), reference_of(table), table, table, tmp_path / "x.html"
        )
    assert evidently_process.REQUIREMENTS.is_file()


def test_a_path_that_is_no_interpreter_is_named(tmp_path: Path) -> None:
    table = normal_table(1, 100, 2)
    with pytest.raises(DriftError, match="cannot be run with /nowhere/python"):
        evidently_process.write_page(
            Path("/nowhere/python"), reference_of(table), table, table, tmp_path / "x.html"
        )


def test_it_is_told_not_to_track_and_is_given_both_tables_under_the_references_names(
    tmp_path: Path,
) -> None:
    """An interpreter stands in that notes what it was called with; the files are real."""
    noted = tmp_path / "noted"
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys, pyarrow.parquet as parquet\n"
        "tables = [parquet.read_table(path).to_pydict() for path in sys.argv[3:5]]\n"
        "said = [os.environ['DO_NOT_TRACK'], sys.argv[1], sys.argv[5], tables]\n"
        f"open({str(noted)!r}, 'w').write(json.dumps(said))\n"
        "print(json.dumps({'drifted': 1, 'columns': 2}))\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    words = np.array(["a", None] * 25, np.object_)
    old: Table = {"age": np.arange(50.0), "word": words, "gone": np.arange(50.0)}
    new: Table = {
        "in.x.age": np.arange(60, dtype=np.float32),
        "in.word": np.array(["b"] * 60, np.object_),
        "in.empty": np.full(60, np.nan),
        "status": np.array([500] * 10 + [200] * 50),
    }
    page = tmp_path / "page.html"
    counts = evidently_process.write_page(script, reference_of(old), old, new, page)
    assert counts == (1, 2)
    tracked, isolated, at, (reference, window) = json.loads(noted.read_text())
    assert (tracked, isolated, at) == ("1", "-I", str(page))
    assert set(reference) == set(window) == {"age", "word"}
    assert window["age"][0] == 10.0  # the rows of errors are not judged
    assert reference["word"][:2] == ["a", None]


@pytest.mark.skipif(not PYTHON, reason="SLUICE_EVIDENTLY_PYTHON names no environment that has it")
def test_evidently_finds_the_same_18_of_30_columns(tmp_path: Path) -> None:
    old, new = normal_table(1, 2_000), normal_table(2, 2_000, shifted=range(18))
    reference = reference_of(old)
    page = tmp_path / "page.html"
    assert evidently_process.write_page(Path(PYTHON), reference, old, new, page) == (18, 30)
    assert page.stat().st_size > 1_000_000
    verdict = decide.judge(reference, new, Thresholds())
    assert sum(column.is_drifted for column in verdict.columns) == 18
