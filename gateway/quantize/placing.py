"""Puts a finished file in place, all of it or none, and never over another one by accident."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gateway.quantize.faults import CannotQuantize, WrongInput


def check_free(path: Path, *, parent: Path, force: bool) -> None:
    """Refuse a place that is taken, before anything is computed.

    Raises:
        WrongInput: it is a folder, the parent's own file, or another file without `force`.
    """
    if path.is_dir():
        raise WrongInput(f"--out: {path} is a folder; name the file: {path / 'model.onnx'}")
    if path.exists() and parent.exists() and path.samefile(parent):
        raise WrongInput("--out is the model itself, which is its own version")
    if path.exists() and not force:
        raise WrongInput(f"--out: {path} is there already; --force replaces it")


def put(path: Path, content: bytes, *, force: bool) -> None:
    """Write a file at once, on the disk when this returns; its folders are made.

    A gateway that polls the repository never sees a part: hidden files do not count.

    Raises:
        CannotQuantize: it cannot be written, or somebody else has written it meanwhile.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists() and not force:
            raise CannotQuantize(f"{path} was written by somebody else meanwhile")
        os.replace(part, path)
    except OSError as exc:
        raise CannotQuantize(f"cannot write {path}: {exc.strerror or exc}") from exc
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
