"""A process that is killed while it appends: what it said was written is there afterwards."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.spools import Opened

ROOT = Path(__file__).parents[4]
LINES = 2_000


def acknowledged_until_killed(folder: Path, append: str, durability: str) -> int:
    """Kill a writer in the middle of its work; return how many records it acknowledged."""
    command = [sys.executable, "-m", "tests.support.spool_writer", str(folder), append, durability]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(LINES)]
        writer.kill()
        lines += writer.stdout.read().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    assert [int(line) for line in whole] == list(range(len(whole)))
    return len(whole)


@pytest.mark.parametrize(
    ("append", "durability"), [("loop", "process"), ("thread", "process"), ("loop", "disk")]
)
def test_every_acknowledged_record_survives_kill_9(
    tmp_path: Path, append: str, durability: str
) -> None:
    acknowledged = acknowledged_until_killed(tmp_path / "r", append, durability)
    assert acknowledged >= LINES

    async def scenario() -> None:
        opened = Opened(tmp_path / "r", worker="w@2")
        numbers = opened.numbers()
        assert len(numbers) >= acknowledged
        assert numbers == list(range(len(numbers)))
        assert opened.recovery.corrupt == {}
        await opened.spool.close()

    asyncio.run(scenario())
