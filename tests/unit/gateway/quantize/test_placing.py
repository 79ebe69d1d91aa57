from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.quantize import placing
from gateway.quantize.faults import CannotQuantize, WrongInput


def test_a_file_is_put_with_its_folders_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "models" / "digits" / "3" / "model.onnx"
    placing.put(path, b"content", force=False)
    assert path.read_bytes() == b"content"
    assert os.listdir(path.parent) == ["model.onnx"]


def test_a_file_that_came_meanwhile_is_not_replaced_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"theirs")
    with pytest.raises(CannotQuantize, match="written by somebody else meanwhile"):
        placing.put(path, b"ours", force=False)
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["model.onnx"]
    placing.put(path, b"ours", force=True)
    assert path.read_bytes() == b"ours"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotQuantize, match=r"cannot write .*file/3/model.onnx: "):
        placing.put(tmp_path / "file" / "3" / "model.onnx", b"", force=False)


def test_places_that_are_taken_are_refused_before_the_work(tmp_path: Path) -> None:
    parent = tmp_path / "1" / "model.onnx"
    placing.put(parent, b"parent", force=False)
    placing.check_free(tmp_path / "2" / "model.onnx", parent=parent, force=False)
    with pytest.raises(WrongInput, match=r"is a folder; name the file: .*/1/model.onnx"):
        placing.check_free(tmp_path / "1", parent=parent, force=True)
    alias = tmp_path / "alias.onnx"
    alias.symlink_to(parent)
    for same in (parent, alias):
        with pytest.raises(WrongInput, match="is the model itself"):
            placing.check_free(same, parent=parent, force=True)
    other = tmp_path / "other.onnx"
    other.touch()
    with pytest.raises(WrongInput, match="is there already; --force replaces it"):
        placing.check_free(other, parent=parent, force=False)
    placing.check_free(other, parent=parent, force=True)
