"""The golden vectors from JavaScript: another language finds the same slots as the router.

That Python's router agrees with the file is shown in test_slots.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[2] / "golden"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node on PATH")


def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    script = str(GOLDEN / "verify_slots.mjs")
    return subprocess.run(
        [NODE, script, *arguments], capture_output=True, text=True, timeout=15, check=False
    )


def test_javascript_finds_every_golden_vector() -> None:
    vectors = json.loads((GOLDEN / "slots.json").read_text(encoding="utf-8"))["vectors"]
    done = verify()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(vectors)} vectors checked\n"
    assert len(vectors) >= 1_000


@pytest.mark.parametrize("index", [0, 417, -1])
def test_javascript_stops_at_a_vector_that_is_wrong_by_one(tmp_path: Path, index: int) -> None:
    document = json.loads((GOLDEN / "slots.json").read_text(encoding="utf-8"))
    vectors = document["vectors"]
    vectors[index][2] += 1
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(document), encoding="utf-8")
    done = verify(str(changed))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"vector {index % len(vectors)}, salt ")


def test_javascript_does_not_pass_a_file_that_lost_its_vectors(tmp_path: Path) -> None:
    emptied = tmp_path / "emptied.json"
    emptied.write_text('{"vectors": []}', encoding="utf-8")
    done = verify(str(emptied))
    assert (done.returncode, done.stderr) == (1, "only 0 vectors, expected at least 1000\n")
