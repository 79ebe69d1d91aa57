"""The README's section for operators, run as written against the demo.

The addresses are those of the demo that runs here; nothing else of the commands is changed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.test_demo import ROOT, staying

pytestmark = [pytest.mark.slow, pytest.mark.redis]

SECTION: Final = "### Change the split"
_BLOCK: Final = re.compile(r"```sh\n(.*?)```", re.DOTALL)
_ADMIN: Final = re.compile(r"admin +(http://[0-9.]+:[0-9]+)")


def blocks() -> list[str]:
    """Return the shell blocks of the section, in order."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index(SECTION) :]
    return _BLOCK.findall(section[: section.index("\n## ")])


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the admin address of a demo."""
    with staying(tmp_path_factory.mktemp("readme") / "demo") as (_, text):
        found = _ADMIN.search(text)
        assert found, text
        yield found[1]


def run(script: str, admin: str, folder: Path) -> str:
    """Run a block in a shell that stops at the first command that fails; return what it said."""
    here = script.replace("http://localhost:8003", admin).replace(
        "localhost:8003", admin.removeprefix("http://")
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here],
        cwd=folder,
        env=os.environ | {"PATH": path, "SLUICE_ADMIN": admin, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, f"{here}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_example_for_operators_runs_as_written(admin: str, tmp_path: Path) -> None:
    verbs, document, http = blocks()
    said = run(verbs, admin, tmp_path)
    assert "revision 1 -> 2, moved 10 %" in said
    assert "dry run" in said.lower()
    assert said.count("promote") >= 1
    applied = run(document, admin, tmp_path)
    assert '"sample":10' in applied.replace(" ", "")
    answers = run(http, admin, tmp_path)
    assert '"converged":true' in answers
    assert answers.count('"verb":"abort"') == 1
    assert '"openapi":"3.1' in answers.replace(" ", "")
