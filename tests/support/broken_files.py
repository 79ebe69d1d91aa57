"""Files that are no models, whatever their name says; some run code if they are unpickled."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final


def no_file(path: Path) -> None:
    """Leave the place empty."""


def folder(path: Path) -> None:
    path.mkdir()


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def other_json(path: Path) -> None:
    path.write_text(json.dumps({"hello": "world"}))


def an_empty_archive(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def another_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/readme.txt", "no model")


class Harmful:
    """Shows that somebody has unpickled it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("unpickled"),)  # type: ignore[return-value]


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Harmful()))


def a_pickle_in_an_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Harmful()))
        archive.writestr("model/version", "3\n")


FILES: Final = (
    no_file,
    folder,
    empty_file,
    garbage,
    other_json,
    an_empty_archive,
    another_archive,
    a_pickle,
    a_pickle_in_an_archive,
)
