"""Opens a store: takes the folder's lock, recovers what is in it, begins this life's first segment.

Knows the order in which the parts come to life; blocks, so it is called in a thread.
"""

from __future__ import annotations

import logging
from pathlib import Path

from gateway.prediction_log.spool.books import Books
from gateway.prediction_log.spool.entry_ids import EntryIds
from gateway.prediction_log.spool.lock import FolderLock, token_of
from gateway.prediction_log.spool.memory import MemoryStore
from gateway.prediction_log.spool.offsets import Offsets, StreamTable, load
from gateway.prediction_log.spool.recovery import Recovery, Scan
from gateway.prediction_log.spool.segment import found_in, remove_spares
from gateway.prediction_log.spool.spool import FileSpool
from gateway.prediction_log.spool.store import Store
from gateway.prediction_log_config import PredictionLogConfig

_log = logging.getLogger(__name__)


def open_store(
    config: PredictionLogConfig, directory: Path, *, worker: str, now_ms: int
) -> tuple[Store, Recovery]:
    """Open the store of the durability that is configured.

    Raises:
        SpoolInUse: another process has the folder.
        OSError: the folder cannot be made, read or written.
    """
    if config.durability == "memory":
        return open_memory(config, directory, worker=worker, now_ms=now_ms), Recovery()
    return open_spool(config, directory, worker=worker, now_ms=now_ms)


def open_memory(
    config: PredictionLogConfig, directory: Path, *, worker: str, now_ms: int
) -> MemoryStore:
    """Open a store in memory; only its lock and its identity are in the folder.

    Raises:
        SpoolInUse: another process has the folder.
    """
    lock = FolderLock(directory)
    left = sum(segment.size_bytes for segment in found_in(directory))
    if left:
        text = "records that an earlier process spooled are not shipped with durability memory"
        _log.warning(text, extra={"directory": str(directory), "bytes": left})
    return MemoryStore(config, token=token_of(directory), on_close=lock.release)


def open_spool(
    config: PredictionLogConfig, directory: Path, *, worker: str, now_ms: int
) -> tuple[FileSpool, Recovery]:
    """Open the spool of a folder and say what an earlier process left in it.

    `worker` must be new each time: it tells the lives apart.

    Raises:
        SpoolInUse: another process has the folder.
        OSError: the folder cannot be made, read or written.
    """
    lock = FolderLock(directory)
    try:
        return _open(config, lock, worker, now_ms)
    except BaseException:
        lock.release()
        raise


def _open(
    config: PredictionLogConfig, lock: FolderLock, worker: str, now_ms: int
) -> tuple[FileSpool, Recovery]:
    directory = lock.directory
    remove_spares(directory)
    offsets = load(directory) or Offsets()
    streams = StreamTable()
    streams.restore(offsets)
    scan = Scan(directory, offsets, streams)
    scan.run()
    books = Books(streams, offsets)
    for segment in scan.segments:
        books.add(segment)
    recovery = scan.recovery
    books.spooled.update(recovery.records)
    spool = FileSpool(config, lock, books, EntryIds(scan.last_id), worker=worker)
    _complete_intents(spool, scan, now_ms)
    if recovery.corrupt or recovery.nameless or recovery.torn_bytes:
        lost = sum(recovery.corrupt.values()) + recovery.nameless
        fields = {"records": lost, "torn_bytes": recovery.torn_bytes, "directory": str(directory)}
        _log.warning("the spool is damaged", extra=fields)
    return spool, recovery


def _complete_intents(spool: FileSpool, scan: Scan, now_ms: int) -> None:
    """Begin, and write the intents of earlier lives as records: at once, so never twice."""
    intents = scan.intents()
    reason = spool.begin(intents, now_ms)
    recovery = scan.recovery
    if reason is not None:
        recovery.intents = intents
        return
    for _, stream, blobs, _ in intents:
        recovery.records[stream] = recovery.records.get(stream, 0) + len(blobs)
