"""Run as a program: fills a spool on a disk that is full, and prints what became of the records.

    python -m tests.support.full_disk FOLDER APPEND tmpfs|limit

`tmpfs`: FOLDER is on a small file system of its own. `limit`: the system refuses to let a file grow
beyond a size (RLIMIT_FSIZE), once for new segments and once for one that is allocated already, so
that a write is cut short in its middle.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path
from typing import Any, Literal, cast

from gateway.prediction_log.spool.store import DropReason
from tests.support.spools import Opened, config_of, copy_of

RECORDS = 400
SIZE_BYTES = 30_000
LIMIT_BYTES = 40_000
AT_ONCE_FROM = 35
"""With a thread the appends from here on are planned before the first of them fails."""
Append = Literal["loop", "thread"]


async def on_tmpfs(folder: Path, append: Append) -> dict[str, Any]:
    """Write more than fits, free some, write again."""
    config = config_of(append=append, spool={"segment_bytes": 1 << 20, "max_bytes": 1 << 40})
    opened = Opened(folder / "r", config)
    for first in range(0, RECORDS, 10):
        opened.fill(10, SIZE_BYTES, first=first)
        await opened.have_outcomes(first + 10)
    accepted = opened.outcomes.count(None)
    reasons = sorted({str(reason) for reason in opened.outcomes if reason is not None})
    while_full = opened.numbers()
    shipped = sum(opened.ship().values())
    opened.fill(10, SIZE_BYTES, first=RECORDS)
    await opened.have_outcomes(RECORDS + 10)
    after = opened.outcomes[RECORDS:].count(None)
    left = opened.numbers()
    await opened.spool.close()
    again = Opened(folder / "r", config, worker="w@2")
    recovered = again.numbers()
    await again.spool.close()
    return {
        "accepted": accepted,
        "reasons": reasons,
        "is_whole_while_full": while_full == list(range(accepted)),
        "after": after,
        "is_whole_after": left == [*range(shipped, accepted), *range(RECORDS, RECORDS + after)],
        "is_recovered": recovered == left,
        "corrupt": again.recovery.corrupt,
        "torn_bytes": again.recovery.torn_bytes,
    }


async def at_a_limit(folder: Path, append: Append) -> dict[str, Any]:
    """Let a write be cut short in its middle; then let there be no new segment; then lift it."""
    opened = Opened(folder / "r", config_of(append=append))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    for number in range(50):
        opened.fill(1, 1_000, first=number)
        if number < AT_ONCE_FROM:
            await opened.have_outcomes(number + 1)
    await opened.have_outcomes(50)
    accepted = opened.outcomes.count(None)
    limited = opened.numbers()
    crashed = copy_of(folder / "r", folder / "crashed")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await opened.spool.housekeeping(opened.now_ms)
    opened.fill(5, 1_000, first=50)
    outcomes = await opened.have_outcomes(55)
    left = opened.numbers()
    spooled = opened.spool.spooled(opened.live)
    await opened.spool.close()
    lives = [Opened(folder / name, worker="w@2") for name in ("r", crashed.name)]
    recovered = [life.numbers() for life in lives]
    for life in lives:
        await life.spool.close()
    return {
        "accepted": accepted,
        "reasons": sorted({str(reason) for reason in outcomes if reason is not None}),
        "is_in_order": outcomes[:50]
        == [None] * accepted + [DropReason.DISK_FULL] * (50 - accepted),
        "is_whole_while_full": limited == list(range(accepted)),
        "is_whole_after": left == [*range(accepted), *range(50, 55)],
        "spooled": spooled,
        "is_recovered": recovered == [left, limited],
        "corrupt": [life.recovery.corrupt for life in lives],
        "torn_bytes": [life.recovery.torn_bytes for life in lives],
    }


def main() -> None:
    """Print what happened as JSON."""
    folder, append, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    how = cast("Append", append)
    run = on_tmpfs if kind == "tmpfs" else at_a_limit
    print(json.dumps(asyncio.run(run(folder, how))))  # noqa: T201


if __name__ == "__main__":
    main()
