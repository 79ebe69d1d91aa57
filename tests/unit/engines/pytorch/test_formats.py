"""What a model file of torch is, told without reading anything in it as code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import pytorch
from engines.base import EngineConfig
from engines.errors import ModelLoadError
from engines.pytorch.formats import Format, identify
from tests.support.torch_models import Evil, Identity, write_identity, write_script


def archive(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def test_an_exported_program_is_known_by_its_directory(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "anything.bin", "FP32", [3], True)
    found = identify(path)
    assert (found.format, found.model) == (Format.EXPORTED, "model")


def test_a_script_is_known_by_its_directory(tmp_path: Path) -> None:
    assert identify(write_script(tmp_path / "model.pt", Identity())).format is Format.SCRIPT


def test_a_compiled_package_tells_the_machine_that_it_was_built_for(tmp_path: Path) -> None:
    folder = "root/data/aotinductor/net"
    path = archive(
        tmp_path / "model.pt2",
        {
            "root/archive_format": b"pt2",
            f"{folder}/a.wrapper.so": b"",
            f"{folder}/a.wrapper_metadata.json": b'{"AOTI_DEVICE_KEY": "cuda"}',
        },
    )
    found = identify(path)
    assert (found.format, found.model) == (Format.COMPILED, "net")
    assert found.built_for == {"AOTI_DEVICE_KEY": "cuda"}


def write_state_dict(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def write_module(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def write_old_pickle(path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def write_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"hello": "world"}))


@pytest.mark.parametrize(
    "write", [write_state_dict, write_module, write_old_pickle, write_plain_pickle]
)
def test_a_pickle_is_refused_with_the_way_to_export_instead(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(ModelLoadError, match=r"model\.pt is a pickle.*torch\.export\.save"):
        pytorch.load(path, EngineConfig())


@pytest.mark.parametrize(
    "save", [torch.save, lambda evil, path: path.write_bytes(pickle.dumps(evil))]
)
def test_the_code_in_a_pickle_does_not_run(
    # Any: either way to save.
    tmp_path: Path,
    save: Callable[[Any, Path], None],
) -> None:
    path, proof = tmp_path / "model.pt", tmp_path / "ran"
    save(Evil(proof), path)
    with pytest.raises(ModelLoadError):
        pytorch.load(path, EngineConfig())
    assert not proof.exists()
    pickle.loads(pickle.dumps(Evil(proof)))
    assert proof.exists()  # it would have


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"root/hello": b""}, "is an archive and none of"),
        ({}, "is an archive and none of"),
        ({"root/archive_format": b"pt2"}, "is an archive and none of"),
        (
            {"r/archive_format": b"pt2", "r/models/a.json": b"", "r/models/b.json": b""},
            r"more than one model: a\.json, b\.json",
        ),
        (
            {"r/archive_format": b"pt2", "r/models/a.json": b"", "r/data/aotinductor/a/x.so": b""},
            "more than one model",
        ),
        ({"r/archive_format": b"pt2", "version": b"1"}, "not in one folder"),
        ({"r/archive_format": b"pt2", "other/models/a.json": b""}, "not in one folder"),
    ],
)
def test_an_archive_of_another_kind_is_refused_by_what_is_wrong_with_it(
    tmp_path: Path, members: Mapping[str, bytes], why: str
) -> None:
    path = archive(tmp_path / "model.pt2", members)
    with pytest.raises(ModelLoadError, match=why) as refused:
        identify(path)
    assert "model.pt2" in str(refused.value)


def test_an_archive_with_two_files_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("r/models/model.json", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            opened.writestr("r/models/model.json", b"two")
    with pytest.raises(ModelLoadError, match=r"model\.pt2"):
        identify(path)


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"", "is empty"), (b"\x80", "is no zip"), (b"onnx", "is no zip"), (b"PK\3\4", "is no zip")],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(data)
    with pytest.raises(ModelLoadError, match=rf"model\.pt2 {why}"):
        identify(path)


def test_a_file_that_is_not_there_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pt2", tmp_path):
        with pytest.raises(ModelLoadError, match=rf"{path.name} cannot be read"):
            identify(path)
