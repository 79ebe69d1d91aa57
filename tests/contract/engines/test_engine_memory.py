"""Loading, running and closing a thousand times takes no more memory than doing it a few times.

Each engine in a process of its own (tests/support/load_loop.py). The first fifth is warm-up:
allocators and caches fill. What may be left over the other four fifths is less than one small model
in a hundred loads would leave.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support.engine_cases import ON_CPU, ON_GPU
from tests.support.load_loop import PARTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT: Final = Path(__file__).parents[3]
LIMIT_BYTES: Final = 8 << 20
"""Over the last four fifths: of 1,000 loads, 10 KiB each."""
LIMIT_S: Final = 380.0
WARM_UP: Final = PARTS // 5


class Loop(NamedTuple):
    """What is done again and again."""

    name: str
    loads: int
    why_not_here: str = ""


CASES: Final = (
    *(Loop(case.name, 1_000) for case in ON_CPU),
    Loop("parse", 1_000),
    Loop("build", 200),  # a build takes some 30 ms, and a minute is enough
)
GPU_CASES: Final = tuple(Loop(case.name, 1_000, case.why_not_here()) for case in ON_GPU)


def taken(loop: Loop, folder: Path) -> list[list[int]]:
    """Run the loop in a process of its own; return bytes resident and on the device, as it went."""
    command = [sys.executable, "-m", "tests.support.load_loop", loop.name, str(loop.loads)]
    ran = subprocess.run(
        [*command, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert ran.returncode == 0, ran.stderr
    found: list[list[int]] = json.loads(ran.stdout.splitlines()[-1])
    assert len(found) == PARTS + 1
    return found


def assert_flat(loop: Loop, folder: Path) -> None:
    found = taken(loop, folder)
    for where, first, last in zip(("memory", "the GPU"), found[WARM_UP], found[-1], strict=True):
        grown = last - first
        assert grown < LIMIT_BYTES, f"{loop.name}: {grown / 1024:.0f} KiB more of {where}: {found}"


@pytest.mark.parametrize("loop", CASES, ids=lambda loop: f"{loop.name} x {loop.loads}")
def test_memory_stays_flat_over_many_loads(loop: Loop, tmp_path: Path) -> None:
    assert_flat(loop, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("loop", GPU_CASES, ids=lambda loop: f"{loop.name} x {loop.loads}")
def test_memory_stays_flat_over_many_loads_onto_a_gpu(loop: Loop, tmp_path: Path) -> None:
    if loop.why_not_here:
        pytest.skip(f"{loop.name}: {loop.why_not_here}")
    assert_flat(loop, tmp_path)


def test_a_loop_that_keeps_what_it_loads_would_be_noticed(tmp_path: Path) -> None:
    """The same measure on a leak of 16 KiB a load, in the same process as the loop."""
    code = (
        "import sys\n"
        "from tests.support import load_loop\n"
        "kept = []\n"
        "honest = load_loop.loader\n"
        "def leaking(case, folder):\n"
        "    once = honest(case, folder)\n"
        "    return lambda: (once(), kept.append(bytes(16 << 10)))\n"
        "load_loop.loader = leaking\n"
        "sys.exit(load_loop.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "fake", "1000", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert ran.returncode == 0, ran.stderr
    found: list[list[int]] = json.loads(ran.stdout)
    assert found[-1][0] - found[WARM_UP][0] > LIMIT_BYTES
