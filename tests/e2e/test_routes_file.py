"""Routes without Redis: one gateway keeps them in its state folder, through restarts and kills."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from loadtests import propagation
from loadtests.paced import Seen
from tests.support.gateway import wait_until
from tests.support.gateways import Gateways, ask_for, patch, verb

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
def test_changes_outlive_the_gateway(tmp_path: Path, is_killed: bool) -> None:
    with Gateways(tmp_path, propagation.route(), None) as replicas:
        replicas.change_to(4)
        before = replicas.history()
        if not is_killed:
            assert replicas.live[0].stop() == 0
        replicas.restart(0)
        assert replicas.seen(0) == {Seen(4, "even", "1")}
        assert replicas.history() == before
        assert [row["reason"] for row in before] == ["configured", "to 2", "to 3", "to 4"]
        # The route goes on where it was, and what it was is still known.
        replicas.change_to(5, first=5)
        back = {"to_revision": 4, "reason": "back"}
        verb(replicas.route_url(), "undo", back, if_match='"g1-5"').raise_for_status()
        assert replicas.seen(0) == {Seen(6, "even", "1")}
        entries = httpx.get(f"http://{replicas.live[0].at.admin}/v1/audit").json()["entries"]
        assert [entry["to_revision"] for entry in entries] == [1, 2, 3, 4, 5, 6]
        assert "Traceback" not in replicas.live[0].log


class Changes:
    """Changes the route without a pause until the gateway does not answer any more."""

    def __init__(self, url: str, revision: int) -> None:
        self.confirmed = revision
        """The last revision that was answered with 200."""
        self._url = url
        self._thread = threading.Thread(target=self._change, name="changes")
        self._thread.start()

    def _change(self) -> None:
        while True:
            try:
                answer = ask_for(self._url, self.confirmed + 1, f"to {self.confirmed + 1}")
            except httpx.HTTPError:
                return
            assert answer.status_code == 200, answer.text
            self.confirmed += 1

    def wait(self, revision: int) -> None:
        """Return when a revision is confirmed."""
        wait_until(lambda: self.confirmed >= revision, f"revision {revision} is confirmed")

    def join(self) -> int:
        """Return the last revision that was confirmed."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.confirmed


def test_a_gateway_killed_in_the_middle_of_changes_has_all_that_it_confirmed(
    tmp_path: Path,
) -> None:
    with Gateways(tmp_path, propagation.route(), None) as replicas:
        revision = 1
        for _ in range(3):
            changes = Changes(replicas.route_url(), revision)
            changes.wait(revision + 10)
            replicas.live[0].kill()
            confirmed = changes.join()
            replicas.restart(0)
            history = replicas.history()
            revision = history[-1]["revision"]
            # The one that was under way when it died may have been made: nobody was told.
            assert revision in (confirmed, confirmed + 1)
            assert [row["revision"] for row in history] == [*range(1, revision + 1)]
            assert [row["reason"] for row in history[1:]] == [
                f"to {n}" for n in range(2, revision + 1)
            ]
            assert {seen.revision for seen in replicas.seen(0)} == {revision}


def test_a_second_gateway_on_the_same_state_folder_does_not_start_and_says_why(
    tmp_path: Path,
) -> None:
    with Gateways(tmp_path, propagation.route(), None) as replicas:
        state = replicas.folder(0) / ".sluice"
        second = replicas.spawn(1, state=str(state))
        assert second.wait() == 1
        (entry,) = second.events("cannot start")
        assert str(state) in entry["reason"]
        assert "in use by another gateway (process " in entry["reason"]
        assert "Traceback" not in second.log
        # The first one noticed nothing; when it has gone, its routes are there for the next.
        patch(replicas.route_url(), 2, "still at work")
        assert replicas.live[0].stop() == 0
        replicas.live[0] = replicas.spawn(1, state=str(state)).wait_ready()
        assert replicas.seen(0) == {Seen(2, "even", "1")}
