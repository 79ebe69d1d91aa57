"""Emergency aborts: the file that keeps them, what is served meanwhile, and when they are over."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from gateway.route_control.emergency import Emergencies, Emergency, EmergencyJournal
from gateway.route_control.in_force import Held, InForce
from router import changes
from router.table import RouteTable
from tests.support.batching import until
from tests.support.replicas import NAME, T0_MS, held, origin, revisions, route

SINCE_MS: Final = T0_MS + 1_000
EMERGENCY: Final = Emergency(
    route=NAME, generation=1, revision=2, actor="ann", reason="it burns", since_ms=SINCE_MS
)


def journal(folder: Path, replica: str = "a") -> EmergencyJournal:
    return EmergencyJournal(folder, replica)


def test_what_was_saved_is_loaded_again(tmp_path: Path) -> None:
    kept = [EMERGENCY, replace(EMERGENCY, route="other", reason='"é"')]
    journal(tmp_path / "state").save(kept)
    assert journal(tmp_path / "state").load() == kept


def test_a_journal_that_was_never_written_is_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert journal(tmp_path).load() == []
    assert not caplog.records


@pytest.mark.parametrize(
    "text", ["", "{", "7", '["a"]', '[{"route": "digits"}]', '[{"a": 1}]', "\ud800"]
)
def test_a_journal_that_cannot_be_read_is_empty_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    journal(tmp_path).save([EMERGENCY])
    (path,) = tmp_path.glob("emergency-*.json")
    path.write_text(text, errors="surrogatepass")
    assert journal(tmp_path).load() == []
    assert [record.getMessage() for record in caplog.records] == ["emergency aborts cannot be read"]


def test_gateways_that_share_a_folder_keep_their_own(tmp_path: Path) -> None:
    names = ("host-8000", "host-8001", "host/8000", "host:8000", "host_8000", "../up", "é")
    for name in names:
        journal(tmp_path, name).save([replace(EMERGENCY, actor=name)])
    found = {name: journal(tmp_path, name).load()[0].actor for name in names}
    assert found == {name: name for name in names}
    assert not list(tmp_path.parent.glob("*.json"))


def test_saving_nothing_forgets_what_was_kept(tmp_path: Path) -> None:
    journal(tmp_path).save([EMERGENCY])
    journal(tmp_path).save([])
    assert journal(tmp_path).load() == []


def test_the_file_is_always_whole_however_many_threads_save(tmp_path: Path) -> None:
    kept = journal(tmp_path)

    def save_often(number: int) -> None:
        for _ in range(10):
            kept.save([replace(EMERGENCY, revision=number)] * number)

    threads = [threading.Thread(target=save_often, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = kept.load()
    assert found == [replace(EMERGENCY, revision=len(found))] * len(found)
    assert found
    assert [path.name for path in tmp_path.iterdir()] == ["emergency-a.json"]


AT_TWO: Final = held(route(10), route(20))


@pytest.mark.parametrize(
    ("current", "applies"),
    [
        (AT_TWO, True),
        (held(route(10), route(20), created_ms=SINCE_MS + 9), True),
        (held(route(10), route(20), route(30), created_ms=SINCE_MS - 1), True),
        (held(route(10), route(20), route(30), created_ms=SINCE_MS + 1), False),
        (held(route(10), generation=2, created_ms=SINCE_MS + 1), False),
        (Held.of(changes.deleted(AT_TWO.revision, origin("delete"))), False),
    ],
    ids=["same", "same but by its clock later", "earlier", "later", "restored later", "deleted"],
)
def test_a_later_decision_of_somebody_else_wins(current: Held, applies: bool) -> None:
    assert EMERGENCY.applies_to(current) is applies


@pytest.mark.parametrize(
    ("in_force", "is_over"),
    [
        (AT_TWO, False),
        (held(route(10)), False),
        (held(route(10), route(0)), True),
        (held(route(10), route(20), route(30)), True),
        (Held.of(changes.deleted(AT_TWO.revision, origin("delete"))), True),
        (None, True),
    ],
    ids=["same", "older", "all on stable", "newer", "deleted", "nothing"],
)
def test_an_abort_is_over_when_something_newer_or_like_it_is_in_force(
    in_force: Held | None, is_over: bool
) -> None:
    assert EMERGENCY.is_over(in_force) is is_over


class Stage:
    """A route at revision 2 in force, and the emergencies over it."""

    def __init__(self, kept: EmergencyJournal) -> None:
        self.table = RouteTable()
        self.in_force = InForce(self.table)
        self.in_force.put(AT_TWO, T0_MS)
        self.emergencies = Emergencies(in_force=self.in_force, journal=kept)

    def canary(self) -> float:
        return float(self.table.snapshot[NAME].route.variant("canary").weight)


def test_an_abort_is_served_before_it_is_written_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(journal(tmp_path))
        declaring = asyncio.ensure_future(stage.emergencies.declare(EMERGENCY))
        await asyncio.sleep(0)
        assert stage.canary() == 0
        await declaring
        assert journal(tmp_path).load() == [EMERGENCY]

    asyncio.run(scenario())


def test_an_abort_goes_on_after_a_restart_until_it_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal(tmp_path).save([EMERGENCY])
        stage = Stage(journal(tmp_path))
        await stage.emergencies.load()
        assert stage.canary() == 0
        await stage.emergencies.settle(NAME)
        assert stage.canary() == 0
        *_, third = revisions(route(10), route(20), route(40))
        stage.in_force.put(Held.of(third), T0_MS)
        assert stage.canary() == 0
        await stage.emergencies.settle(NAME)
        assert stage.canary() == 40
        assert not stage.emergencies.by_route
        assert journal(tmp_path).load() == []

    asyncio.run(scenario())


def test_an_abort_of_a_route_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal(tmp_path).save([replace(EMERGENCY, route="gone")])
        stage = Stage(journal(tmp_path))
        await stage.emergencies.load()
        await stage.emergencies.settle("gone")
        assert not stage.emergencies.by_route
        assert journal(tmp_path).load() == []

    asyncio.run(scenario())


def test_a_disk_that_cannot_be_written_does_not_hold_up_an_abort(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")

    async def scenario() -> None:
        stage = Stage(journal(tmp_path / "state"))
        await stage.emergencies.declare(EMERGENCY)
        assert stage.canary() == 0

    asyncio.run(scenario())
    assert "emergencies not written down" in [record.getMessage() for record in caplog.records]


class SlowJournal(EmergencyJournal):
    """A journal whose first save waits for the test."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "a")
        self.is_saving = threading.Event()
        self.may_save = threading.Event()

    def save(self, emergencies: Iterable[Emergency]) -> None:
        """See EmergencyJournal."""
        self.is_saving.set()
        assert self.may_save.wait(10)
        super().save(emergencies)


def test_the_newest_state_is_written_last_when_aborts_come_while_one_is_written(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        kept = SlowJournal(tmp_path)
        stage = Stage(kept)
        others = [replace(EMERGENCY, route=f"r{n}") for n in range(4)]
        declared = [asyncio.ensure_future(stage.emergencies.declare(e)) for e in others[:1]]
        await until(kept.is_saving.is_set)
        declared += [asyncio.ensure_future(stage.emergencies.declare(e)) for e in others[1:]]
        await asyncio.sleep(0)
        kept.may_save.set()
        await asyncio.gather(*declared)
        assert journal(tmp_path).load() == others

    asyncio.run(scenario())


def test_the_file_is_one_json_list(tmp_path: Path) -> None:
    journal(tmp_path).save([EMERGENCY])
    assert json.loads((tmp_path / "emergency-a.json").read_text()) == [
        {
            "route": NAME,
            "generation": 1,
            "revision": 2,
            "actor": "ann",
            "reason": "it burns",
            "since_ms": SINCE_MS,
        }
    ]
