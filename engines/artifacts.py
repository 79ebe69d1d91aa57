"""What is made of model files and kept: optimised graphs, plans, timing caches.

Knows files and digests; knows no runtime. What is kept is found again by everything that it depends
on (the model's digest, versions, hardware, options), so nothing stale is ever read; what cannot be
kept is made again. A folder of ours alone (mode 0700): plans are code to who loads them, so nothing
is taken from a folder into which everybody may write.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal digest of a file, or of all files below a folder with their names."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def keep(
    folder: Path | None, key: Mapping[str, object], suffix: str, make: Callable[[Path], None]
) -> Path | None:
    """Return the file that was made for this key, making it if there is none.

    Args:
        folder: where such files are kept; None: nowhere.
        key: everything that what is made depends on; written beside it as JSON.
        suffix: of the file's name, such as ``.plan``.
        make: writes the file, and no other, at the path that it is given. Its exceptions are the
            caller's, but for an OSError: then the file cannot be kept.

    Returns:
        The file, or None where it cannot be kept; that is logged.
    """
    if folder is None:
        return None
    text = json.dumps(key, sort_keys=True, default=str)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{suffix}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_mode & stat.S_IWOTH:
            raise PermissionError(errno.EPERM, "everybody may write there")
        if path.is_file():
            return path
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    except OSError as exc:
        extra = {"folder": str(folder), "reason": exc.strerror}
        logger.warning("nothing can be kept of model files", extra=extra)
        return None
    made, about = scratch / path.name, scratch / f"{path.name}.json"
    try:
        make(made)
        about.write_text(text)
        os.replace(made, path)
        os.replace(about, path.with_name(about.name))
    except OSError as exc:
        extra = {"folder": str(folder), "reason": exc.strerror or str(exc)}
        logger.warning("nothing can be kept of model files", extra=extra)
        return None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path
