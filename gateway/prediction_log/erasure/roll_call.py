"""One round of an erasure: running gateways are waited for, the spools of the others done here.

Knows who is there: every gateway that looks for erasures is in a set, and has a key that expires
soon after it has stopped looking. Blocking.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import redis

from gateway.prediction_log.erasure import tombstone
from gateway.prediction_log.erasure.request import Request
from gateway.prediction_log.erasure.sought import Sought
from gateway.prediction_log.erasure.spools import SpoolInUse, Spools, Tell
from gateway.prediction_log.erasure.tombstone import Tombstone

_PAUSE_S: Final = 0.1
_OUT_OF_REACH: Final = (
    "it does not run, and its spool is not at hand: name the folder (--spool), or say that its "
    "disk does not exist any more (--gone). Should it start, it erases before it ships anything"
)


class RollCall:
    """Who has taken part; `call` once per round."""

    def __init__(
        self,
        client: redis.Redis,
        spools: Spools | None,
        request: Request,
        each_pause: Callable[[], None],
        say: Callable[[str], None],
        tell: Tell,
    ) -> None:
        self._client = client
        self._spools = spools
        self._request = request
        self._each_pause = each_pause
        self._say = say
        self._tell = tell
        self._missing: dict[str, str] = {}
        """Gateways that have not taken part in the last round, and why."""
        self._tried: set[str] = set()
        """Gateways whose spools were opened here in this round."""
        self.uris_of_others: set[str] = set()
        self.destroyed = 0
        self.acknowledged: set[str] = set()
        self.done_here: set[str] = set()
        self.gone: set[str] = set()

    def left(self) -> list[str]:
        """Return what the last round lacks, in sentences."""
        return [f"{replica}: {why}" for replica, why in sorted(self._missing.items())]

    def call(self, one: Tombstone, sought: Sought) -> None:
        """Have every spool gone through that can be reached within the time allowed."""
        self._missing = {}
        self._strike_gone()
        limit_s = time.monotonic() + self._request.timeout_s
        acknowledged: set[str] = set()
        told: set[str] = set()
        self._tried = set()
        while True:
            self._each_pause()
            self._do_idle(acknowledged, sought)
            acknowledged = self._members(tombstone.acks_key(one.id, one.round))
            members = self._members(tombstone.REPLICAS_KEY)
            alive = {replica for replica in members if self._runs(replica)}
            waited_for = (alive | self._running_here()) - acknowledged
            if not waited_for or time.monotonic() > limit_s:
                break
            if waited_for != told:
                self._say(f"waiting for {', '.join(sorted(waited_for))}")
                told = waited_for
            time.sleep(_PAUSE_S)
        self.acknowledged |= acknowledged
        self.done_here |= self._tried - self._missing.keys()
        for replica in waited_for:
            self._missing.setdefault(replica, "it runs and has not acknowledged in time")
        for replica in members - alive - acknowledged - self._tried:
            self._missing.setdefault(replica, _OUT_OF_REACH)

    def _do_idle(self, acknowledged: set[str], sought: Sought) -> None:
        """Go through the spools at hand that no gateway has, each once."""
        spools = self._spools
        for replica in spools.replicas() if spools is not None else ():
            if spools is None or replica in self._tried or replica in acknowledged:
                continue
            try:
                done = spools.go_through(replica, sought, self._tell)
            except SpoolInUse:
                continue  # a gateway that runs, starts, or has no connection: it is waited for
            except OSError as exc:
                self._missing[replica] = f"its spool could not be overwritten: {exc}"
            else:
                self.uris_of_others |= done.uris_of_others
                self.destroyed += done.destroyed
            self._tried.add(replica)

    def _running_here(self) -> set[str]:
        return self._spools.in_use() if self._spools is not None else set()

    def _strike_gone(self) -> None:
        for replica in self._request.gone:
            if self._is_alive(replica):
                self._missing[replica] = "it runs, so its disk is not gone"
            elif self._client.srem(tombstone.REPLICAS_KEY, replica):
                self.gone.add(replica)

    def _is_alive(self, replica: str) -> bool:
        return bool(self._client.exists(tombstone.alive_key(replica)))

    def _runs(self, replica: str) -> bool:
        """Whether a gateway looks for erasures, and it is not one whose spool we just had open."""
        found: Any = self._client.get(tombstone.alive_key(replica))  # Any: as redis-py types it
        if found is None or replica not in self._tried or self._spools is None:
            return found is not None
        return bool(found.decode() != self._spools.token(replica))

    def _members(self, key: str) -> set[str]:
        found: Any = self._client.smembers(key)  # Any: as redis-py types it for both its clients
        return {member.decode() for member in found}
