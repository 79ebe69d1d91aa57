"""A disk that is really full: a small tmpfs where one can be mounted, a limit on file size always.

In a process of its own, because both hold for all of a process.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
# A mount that only this process and its children see, and that goes with them.
MOUNT = "mount -t tmpfs -o size=4m tmpfs"
NAMESPACE = ("unshare", "--mount", "--map-root-user")


def can_mount(folder: Path) -> bool:
    try:
        mounted = subprocess.run(
            [*NAMESPACE, "sh", "-c", f"{MOUNT} {shlex.quote(str(folder))}"],
            capture_output=True,
            timeout=10,
            check=False,
        )
    except FileNotFoundError:
        return False
    return mounted.returncode == 0


def run(folder: Path, append: str, kind: str) -> dict[str, Any]:  # Any: see full_disk.py
    command = [sys.executable, "-m", "tests.support.full_disk", str(folder), append, kind]
    if kind == "tmpfs":
        script = f"{MOUNT} {shlex.quote(str(folder))} && exec {shlex.join(command)}"
        command = [*NAMESPACE, "sh", "-c", script]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


@pytest.mark.parametrize("append", ["loop", "thread"])
def test_on_a_small_file_system_all_that_was_accepted_is_kept(tmp_path: Path, append: str) -> None:
    if not can_mount(tmp_path):
        pytest.skip("no tmpfs can be mounted here; the test of the size limit runs everywhere")
    report = run(tmp_path, append, "tmpfs")
    assert 80 < report.pop("accepted") < 140  # of 4 MiB
    assert report.pop("after") >= 10
    assert report == {
        "reasons": ["disk_full"],
        "is_whole_while_full": True,
        "is_whole_after": True,
        "is_recovered": True,
        "corrupt": {},
        "torn_bytes": 0,
    }


@pytest.mark.parametrize("append", ["loop", "thread"])
def test_a_write_cut_short_leaves_no_half_block_and_is_counted(tmp_path: Path, append: str) -> None:
    report = run(tmp_path, append, "limit")
    accepted = report.pop("accepted")
    assert 30 < accepted < 40
    assert report == {
        "reasons": ["disk_full"],
        "is_in_order": True,
        "is_whole_while_full": True,
        "is_whole_after": True,
        "spooled": accepted + 5,
        "is_recovered": True,
        "corrupt": [{}, {}],
        "torn_bytes": [0, 0],
    }
