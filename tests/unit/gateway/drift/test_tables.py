"""References in Parquet files, written by us and by others."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from gateway.drift import tables
from gateway.drift.column import Kind, kind_of, numbers, texts
from gateway.drift.rows import DriftError
from tests.support.drift import mixed_table

arrow: Final[Any] = import_module("pyarrow")  # Any: it ships no types
parquet: Final[Any] = import_module("pyarrow.parquet")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    table = mixed_table(1, 50) | {"label": np.array([1, None, "x", [2]] * 12 + [1, 1], np.object_)}
    tables.write(tmp_path / "a.parquet", table)
    found = tables.read(tmp_path / "a.parquet")
    assert list(found) == list(table)
    for name in ("in.age", "in.gaps", "out.score"):
        np.testing.assert_array_equal(found[name], table[name])
    assert texts(found["in.city"]).tolist() == table["in.city"].tolist()
    assert found["label"][:4].tolist() == ["1", None, "x", "[2]"]
    assert kind_of(found["out.label"]) is Kind.CATEGORY


def test_files_of_others_may_have_columns_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "of others=1.parquet"
    made = {
        "dictionary": arrow.array(["a", "b", None]).dictionary_encode(),
        "decimal": arrow.array([Decimal("1.5"), None, Decimal(2)]),
        "nothing": arrow.array([None, None, None]),
        "date": arrow.array([0, 1, 2], arrow.date32()),
        "time": arrow.array([1, 2, None], arrow.timestamp("ns")),
        "whole": arrow.array([1, None, 3]),
        "large": arrow.array(["x", "y", "z"], arrow.large_string()),
    }
    parquet.write_table(arrow.table(made), path)
    found = tables.read(path)
    assert texts(found["dictionary"]).tolist() == ["a", "b", None]
    assert numbers(found["decimal"])[[0, 2]].tolist() == [1.5, 2.0]
    assert np.isnan(numbers(found["nothing"])).all()
    assert numbers(found["date"]).tolist() == [0, 86_400, 172_800]
    assert np.isnan(numbers(found["time"])).tolist() == [False, False, True]
    assert kind_of(found["whole"]) is Kind.NUMBER
    assert texts(found["large"]).tolist() == ["x", "y", "z"]


def test_a_reference_of_the_log_keeps_nobodys_ids() -> None:
    table = mixed_table(1, 10) | {
        "rid": np.zeros(10),
        "cid": np.zeros(10),
        "subject": np.zeros(10),
        "label": np.zeros(10),
        "weight": np.ones(10),
        "in.x.digest": np.zeros(10),
    }
    kept = tables.for_reference(table)
    assert set(table) - set(kept) == {"rid", "cid", "subject", "in.x.digest"}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("none.parquet", "cannot read .*No such file"), (".", "cannot read .*Is a directory")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, path: str, sentence: str) -> None:
    with pytest.raises(DriftError, match=sentence):
        tables.read(tmp_path / path)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a,b\n1,2\n")
    with pytest.raises(DriftError, match="x is no Parquet file"):
        tables.read(tmp_path / "x")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DriftError, match=r"cannot write .*No such file"):
        tables.write(tmp_path / "no" / "x", {"a": np.zeros(2)})


def test_without_pyarrow_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None; from pathlib import Path;"
        "from gateway.drift import tables; tables.read(Path('x'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert "DriftError: Parquet needs pyarrow: pip install 'sluice-gateway[drift]'" in ran.stderr
