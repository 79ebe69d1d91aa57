"""The right to be forgotten: after `sluice log erase` nothing of the subject stands anywhere.

Real gateways, a real Redis with an append-only file and a snapshot, neither compressed, so that its
files can be searched. The subject's text stands in plain records, sealed ones, large tensors cut
and whole, files, shadows' answers and labels; shipped, spooled by a gateway that runs, left behind
by one that was killed, and on a disk that comes back after the erasure.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.demo.redis_server import RedisBinary
from gateway.prediction_log.erasure import receipt, tombstone
from gateway.prediction_log.privacy.key_store import KEYS_KEY, key_field
from gateway.prediction_log.privacy.keyring import Keyring
from gateway.prediction_log.record import LoggedPrediction, Reduced
from gateway.prediction_log.streams import StreamKind
from tests.support.erasure_site import (
    MARK,
    MINE,
    NAMES,
    OTHER_MARK,
    THEIRS,
    Site,
    Texts,
    ask_all,
    wait_shipped,
    warm_up,
)
from tests.support.erasures import files_with, plain_redis
from tests.support.gateway import GatewayProcess, metric, wait_until
from tests.support.redis import redis_binaries

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(120)]


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source.split()[0])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    binary: RedisBinary = request.param
    with plain_redis(binary) as (server, client):
        found: Any = client.config_get("dir")  # Any: as redis-py types it
        made = Site(tmp_path, server, Path(found["dir"]))
        made.prepare()
        yield made


def client_of(site: Site) -> redis.Redis:
    return redis.Redis.from_url(site.server.url, protocol=2)


def start_redis_again(site: Site) -> None:
    site.server.start()
    with client_of(site) as client:
        client.config_set("rdbcompression", "no")


def fill(site: Site, running: GatewayProcess) -> tuple[Texts, list[Texts]]:
    """Leave traces everywhere; return who asked what that is shipped, and not, by gateway.

    The three are one that runs, one that was killed, and one whose disk is taken away.
    """
    warm_up(running)
    shipped = ask_all(running, times=5)
    with site.serve("gw-2") as killed, site.serve("gw-3") as away:
        wait_shipped(running)
        wait_until(lambda: stand_where_they_should(site, shipped[MINE]), "all is there")
        with client_of(site) as client:
            client.bgsave(schedule=False)
            wait_until(lambda: not bgsave_runs(client), "a snapshot")
        site.server.kill()
        unshipped = [ask_all(gateway, times=2) for gateway in (running, killed, away)]
        killed.kill()
        away.kill()
    shutil.move(site.folder / "spool" / "gw-3", site.folder / "gw-3-disk")
    assert {"rdb", "aof", "segment", "bin"} <= kinds_of_files_with_the_text(site)
    start_redis_again(site)
    with client_of(site) as client:
        client.delete(tombstone.alive_key("gw-3"))  # as its expiry would, within 15 s
    return shipped, unshipped


def test_nothing_of_the_subject_is_left_anywhere_and_all_of_the_others_is(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with site.serve("gw-1") as running:
        shipped, unshipped = fill(site, running)
        # The running gateway may have shipped its part by now, or not: both have to be right.
        code = site.erase("--receipt", str(tmp_path / "receipt.json"), "--gone", "gw-3")
        assert code == 0, capsys.readouterr().err
        assert site.traces() == []
        check_receipt(site, tmp_path / "receipt.json")

        wait_shipped(running)
        mine = shipped[MINE] + unshipped[0][MINE] + unshipped[1][MINE]
        theirs = shipped[THEIRS] + unshipped[0][THEIRS]
        assert set(site.counts(mine).values()) == {0}
        check_whole(site, theirs)
        assert metric(running.at.metrics, "sluice_log_records_total", result="dropped") == 0

        # A disk that comes back is judged before anything of it is shipped.
        shutil.move(tmp_path / "gw-3-disk", tmp_path / "spool" / "gw-3")
        assert files_with(tmp_path / "spool", [MARK.encode()]) != []
        with site.serve("gw-2") as second, site.serve("gw-3") as third:
            wait_shipped(second)
            wait_shipped(third)
            assert site.traces() == []
            check_whole(site, theirs + unshipped[1][THEIRS] + unshipped[2][THEIRS])
            check_keys(site)

            # Who comes back is served and logged as anybody.
            again = ask_all(third)
            wait_shipped(third)
            assert site.counts(again[MINE])["sealed", StreamKind.LIVE] == 1
            assert site.counts(again[MINE])["plain", StreamKind.LABELS] == 1
            assert third.stop() == second.stop() == 0
        assert "Traceback" not in running.log


def test_a_gateway_that_hangs_makes_the_erasure_incomplete_and_the_next_run_finishes_it(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with site.serve("gw-1") as gateway:
        warm_up(gateway)
        asked = ask_all(gateway)
        wait_shipped(gateway)
        with client_of(site) as client:
            client.acl_setuser("default", enabled=True, commands=["-hgetall"])
            assert site.erase("--timeout", "0.5") == 1
            said = capsys.readouterr().err
            client.acl_setuser("default", enabled=True, commands=["+hgetall"])
        assert "run it again" in said
        assert site.erase("--json") == 0
        document: Any = json.loads(capsys.readouterr().out)
        assert document["body"]["replicas"]["acknowledged"] == 1
        assert site.traces() == []
        wait_shipped(gateway)
        check_whole(site, asked[THEIRS])


def bgsave_runs(client: redis.Redis) -> bool:
    found: Any = client.info("persistence")  # Any: as redis-py types it
    return bool(found["rdb_bgsave_in_progress"])


def kinds_of_files_with_the_text(site: Site) -> set[str]:
    """Return the endings of the files in which the text of the subject stands."""
    found = site.files_with([MARK.encode()])
    return {name.partition(":")[0].rpartition(".")[2] for name in found}


def check_receipt(site: Site, path: Path) -> None:
    """It is genuine, and says nothing of whose it is."""
    written = receipt.load(path)
    keys = Keyring.load(site.folder / "keys")
    assert receipt.is_genuine(written, keys)
    assert written.body.is_complete
    assert written.body.counts.records[StreamKind.LIVE] >= 15
    assert written.body.counts.sealing_keys >= 1
    assert written.body.replicas.declared_gone == 1
    text = path.read_bytes()
    tags = keys.tags(MINE)
    assert not any(
        n in text for n in [MINE.encode(), MARK.encode(), *(t.hex().encode() for t in tags)]
    )


def stand_where_they_should(site: Site, rids: list[str]) -> bool:
    """Whether each of these requests has its record, its label and its whole one; and shadows.

    Not every copy need be answered: shadows give way on a busy machine.
    """
    counts = site.counts(rids)
    per_name = len(rids) // len(NAMES)
    for (name, kind), count in counts.items():
        has_none = kind is StreamKind.BIG and name != "large"
        least = 0 if has_none else 1 if kind is StreamKind.SHADOW else per_name
        if count < least:
            return False
    return True


def check_whole(site: Site, rids: list[str]) -> None:
    """Everything of another subject stands where it stood, with its text."""
    wait_until(lambda: stand_where_they_should(site, rids), "what is of the other")
    per_name = len(rids) // len(NAMES)
    texts = [one.inputs["x"].data for one in predictions(site, "plain")]
    assert sum(OTHER_MARK.encode() in text for text in texts) == per_name
    payloads = [one.inputs["x"].payload for one in predictions(site, "large")]
    uris = [payload.uri for payload in payloads if isinstance(payload, Reduced)]
    assert len(uris) == per_name
    for uri in uris:
        data = (site.folder / "spool" / "references" / uri).read_bytes()
        assert OTHER_MARK.encode() in data


def predictions(site: Site, name: str) -> list[LoggedPrediction]:
    """Return the live records of a name."""
    found = site.documents(name, StreamKind.LIVE)
    return [one for one in found if isinstance(one, LoggedPrediction)]


def check_keys(site: Site) -> None:
    """The other subject's sealing keys are kept."""
    (tag,) = Keyring.load(site.folder / "keys").tags(THEIRS)
    prefix = key_field(tag, b"").encode()
    with client_of(site) as client:
        fields: Any = client.hkeys(KEYS_KEY)  # Any: as redis-py types it
        assert any(field.startswith(prefix) for field in fields)
