"""Makes a Redis write its files anew, and waits until what it wrote before is gone from them.

Knows a server's persistence and nothing of what is stored. First the append-only file, if there is
one, then the snapshot, also where none is configured: an old one may lie there. Replicas of the
server, backups and copies of its files are out of reach; docs/privacy.md says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.exceptions import ResponseError

PAUSE_S: Final = 0.1
_IN_PROGRESS: Final = ("in progress", "can't BGSAVE", "another child process")
"""Of the error when the server already writes one of its files."""


class NotRewritten(Exception):
    """The server's files may still hold what was deleted; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """What a server wrote anew, in seconds; None: it keeps no append-only file."""

    append_only_s: float | None
    snapshot_s: float
    replicas: int
    """Servers that follow this one; they keep files of their own."""


def rewrite(
    client: redis.Redis, *, timeout_s: float, each_pause: Callable[[], None] = lambda: None
) -> Rewritten:
    """Rewrite both files and return when it is done. Blocking.

    Args:
        client: of the server.
        timeout_s: longest wait for one of them.
        each_pause: called while waiting; what it raises ends the wait.

    Raises:
        NotRewritten: not allowed, failed, or not in time.
    """
    server = _Server(client, timeout_s, each_pause)
    try:
        append_only_s = server.append_only() if server.state("aof_enabled") else None
        snapshot_s = server.snapshot()
        replicas = int(server.section("replication").get("connected_slaves", 0))
    except ResponseError as exc:
        raise NotRewritten(f"Redis did not rewrite its files: {exc}") from exc
    return Rewritten(append_only_s=append_only_s, snapshot_s=snapshot_s, replicas=replicas)


class _Server:
    def __init__(
        self, client: redis.Redis, timeout_s: float, each_pause: Callable[[], None]
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._each_pause = each_pause

    def section(self, name: str) -> dict[str, Any]:  # Any: numbers and texts
        found: Any = self._client.info(name)  # Any: as redis-py types it for both its clients
        return dict(found)

    def state(self, field: str) -> int:
        return int(self.section("persistence").get(field, 0))

    def append_only(self) -> float:
        """Rewrite the append-only file; return the seconds that it took."""
        began_s = time.monotonic()
        self._start(self._client.bgrewriteaof)
        self._await(lambda s: not s["aof_rewrite_in_progress"] and not s["aof_rewrite_scheduled"])
        status = self.section("persistence").get("aof_last_bgrewrite_status")
        if status != "ok":
            raise NotRewritten(f"Redis failed to rewrite its append-only file: {status}")
        return time.monotonic() - began_s

    def snapshot(self) -> float:
        """Write a snapshot; return the seconds that it took."""
        began_s = time.monotonic()
        self._start(lambda: self._client.bgsave(schedule=False))
        self._await(lambda s: not s["rdb_bgsave_in_progress"])
        status = self.section("persistence").get("rdb_last_bgsave_status")
        if status != "ok":
            raise NotRewritten(f"Redis failed to write its snapshot: {status}")
        return time.monotonic() - began_s

    def _start(self, command: Callable[[], object]) -> None:
        """Start a child of the server's, after the one that runs: that one began too early."""
        limit_s = time.monotonic() + self._timeout_s
        while True:
            self._await(
                lambda s: not s["rdb_bgsave_in_progress"] and not s["aof_rewrite_in_progress"]
            )
            try:
                command()
            except ResponseError as exc:
                is_busy = any(words in str(exc) for words in _IN_PROGRESS)
                if not is_busy or time.monotonic() > limit_s:
                    raise
                self._pause()  # one began since we looked
            else:
                return

    def _await(self, is_done: Callable[[dict[str, Any]], bool]) -> None:
        limit_s = time.monotonic() + self._timeout_s
        while not is_done(self.section("persistence")):
            if time.monotonic() > limit_s:
                raise NotRewritten(f"Redis did not write its files within {self._timeout_s:g} s")
            self._pause()

    def _pause(self) -> None:
        self._each_pause()
        time.sleep(PAUSE_S)
