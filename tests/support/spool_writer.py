"""Run as a program, to be killed: appends numbered records and prints each that is acknowledged.

python -m tests.support.spool_writer FOLDER loop|thread process|disk
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path

from gateway.prediction_log.spool.block import BlockKind
from gateway.prediction_log.spool.store import DropReason, Group
from gateway.prediction_log_config import PredictionLogConfig
from tests.support.spools import Opened, blob_of, config_of

AT_ONCE = 50


async def write(folder: Path, config: PredictionLogConfig) -> None:
    """Append until killed, some at a time, each acknowledged by a line."""
    opened = Opened(folder, config)
    told = asyncio.Event()
    first = 0

    def acknowledge(number: int, reason: DropReason | None) -> None:
        if reason is not None:
            os._exit(3)
        os.write(1, b"%d\n" % number)
        if number == first + AT_ONCE - 1:
            told.set()

    while True:
        told.clear()
        for number in range(first, first + AT_ONCE):
            group = Group(BlockKind.RECORDS, opened.live, [blob_of(number, 400)])
            opened.spool.append([group], opened.now_ms, partial(acknowledge, number))
        await told.wait()
        first += AT_ONCE


def main() -> None:
    """Write as the arguments say."""
    folder, append, durability = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    asyncio.run(write(folder, config_of(append=append, durability=durability)))


if __name__ == "__main__":
    main()
