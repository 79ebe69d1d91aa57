"""The demo's drift: learns what pictures usually look like from the log, then turns them.

Three groups of held-out pictures are sent through the gateway; what is compared is what stands in
the prediction log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import redis

from gateway.demo import ask, digits
from gateway.demo.ask import Address, Pixels
from gateway.demo.picture import SIDE
from gateway.demo.screen import DemoFailed, shown
from gateway.drift import decide, monitor, page, reference, report, rows
from gateway.drift.decide import Thresholds
from gateway.drift.reference import Reference
from gateway.drift.report import Report
from gateway.drift.rows import Columns
from gateway.prediction_log import reader
from gateway.prediction_log.reader.columns import to_columns
from gateway.prediction_log.record import LoggedPrediction

PAGE: Final = "drift.html"
LEARNED: Final = 250
"""Pictures that the reference is made of."""
JUDGED: Final = 100
"""Pictures in each of the two windows."""
TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.02


def run(directory: Path, address: Address, redis_url: str, user: str) -> Iterator[str]:
    """Send the pictures, judge what the log says of them; yield what a person is told.

    Raises:
        DemoFailed: the gateway or Redis does not answer.
    """
    pictures = digits.held_out(directory)
    usual = pictures[LEARNED : LEARNED + JUDGED]
    windows = (
        (f"{len(usual)} other pictures", usual),
        ("the same pictures, turned by 90 degrees", turned(usual)),
    )
    try:
        learned = reference.make(
            _logged(address, redis_url, pictures[:LEARNED], user),
            source=f"{LEARNED} held-out pictures, as the log has them",
        )
        yield f"reference: {learned.source}"
        for number, (what, sent) in enumerate(windows, 1):
            made = _judged(learned, _logged(address, redis_url, sent, user), number)
            yield f"{what}: {report.headline(made)}"
    except rows.DriftError as exc:
        raise DemoFailed(f"drift cannot be judged: {exc}") from exc
    (directory / PAGE).write_text(page.page(made), encoding="utf-8")
    yield f"{shown(directory / PAGE)} shows the last verdict, with a picture of every column"


def _judged(learned: Reference, window: Columns, number: int) -> Report:
    thresholds = Thresholds()
    began, ended = monitor.times(window)
    return Report(
        model=digits.NAME,
        reference=learned,
        thresholds=thresholds,
        verdict=decide.judge(learned, window, thresholds, number=number),
        records=len(set(window["rid"].tolist())),
        began=began,
        ended=ended,
        completeness="every request of this window was waited for",
    )


def turned(pictures: Pixels) -> Pixels:
    """Return pictures turned by 90 degrees."""
    squares = pictures.reshape(-1, SIDE, SIDE)
    return np.ascontiguousarray(np.rot90(squares, axes=(1, 2))).reshape(len(pictures), -1)


def _logged(address: Address, redis_url: str, pictures: Pixels, user: str) -> Columns:
    """Send pictures; return their rows as the prediction log has them."""
    rids = ask.many(address, pictures, user)
    try:
        return _read_back(redis_url, rids)
    except redis.RedisError as exc:
        raise DemoFailed(f"the records cannot be read from Redis: {exc}") from exc


def _read_back(redis_url: str, rids: Sequence[bytes]) -> Columns:
    client = reader.connect(redis_url)
    until_s = time.monotonic() + TIMEOUT_S
    records: list[LoggedPrediction] = []
    try:
        while len(records) < len(rids):
            found = reader.find(client, digits.NAME, rids[len(records)])
            if found is not None:
                records.append(found)
            elif time.monotonic() > until_s:
                many = len(rids) - len(records)
                raise DemoFailed(f"the records of {many} requests are not in Redis in time")
            else:
                time.sleep(_POLL_S)
    finally:
        client.close()
    return to_columns(records)
