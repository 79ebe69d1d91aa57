"""Which names are models and versions; whether a version is there is tested with `ensure`."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.folders import has_version, is_version, model_names, version_names


def test_models_are_the_folders_that_are_not_hidden_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").touch()
    assert model_names(tmp_path) == ["a", "b"]


def test_versions_are_in_numeric_order(tmp_path: Path) -> None:
    for name in ("10", "9", "2"):
        (tmp_path / name).mkdir()
    (tmp_path / "3").touch()
    assert version_names(tmp_path) == ["2", "9", "10"]


@pytest.mark.parametrize("name", ["", "0", "01", "-1", "+1", "1.0", "1 ", "v1", "\u0661", "\u00b2"])
def test_a_version_is_a_positive_integer_as_people_write_it(name: str) -> None:
    assert not is_version(name)
    assert is_version("1" + "0" * 20)


def test_a_file_is_no_version_and_a_link_to_a_folder_is_one(tmp_path: Path) -> None:
    (tmp_path / "echo").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "echo" / "1").touch()
    (tmp_path / "echo" / "2").symlink_to(tmp_path / "elsewhere")
    assert not has_version(tmp_path, "echo", "1")
    assert has_version(tmp_path, "echo", "2")
    assert version_names(tmp_path / "echo") == ["2"]
