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
from gateway.prediction_log.erasure import receipt
from gateway.prediction_log.privacy.key_store import KEYS_KEY, key_field
from gateway.prediction_log.privacy.keyring import Keyring
from gateway.prediction_log.record import LoggedPrediction
from gateway.prediction_log.streams import StreamKind
from tests.support.erasure_site import (
    KINDS,
    MARK,
    MINE,
    NAMES,
    OTHER_MARK,
    THEIRS,
    Site,
    ask_all,
    wait_shipped,
)
from tests.support.erasures import files_with, plain_redis
from tests.support.gateway import metric, wait_until
from tests.support.redis import redis_binaries

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(120)]


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source.split()[0])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    binary: RedisBinary = request.param
    with plain_redis(binary) as (server, _):
        made = Site(tmp_path, server)
        made.prepare()
        yield made


def client_of(site: Site) -> redis.Redis:
    return redis.Redis.from_url(site.server.url, protocol=2)


def start_redis_again(site: Site) -> None:
    site.server.start()
    with client_of(site) as client:
        client.config_set("rdbcompression", "no")


def test_nothing_of_the_subject_is_left_anywhere_and_all_of_the_others_is(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spools = tmp_path / "spool"
    with site.serve("gw-1") as running:
        shipped = ask_all(running, times=5)
        with site.serve("gw-2") as killed, site.serve("gw-3") as away:
            wait_shipped(running)
            with client_of(site) as client:
                client.bgsave(schedule=False)
                wait_until(lambda: not bgsave_runs(client), "a snapshot")
            site.server.kill()
            unshipped = [ask_all(gateway, times=2) for gateway in (running, killed, away)]
            killed.kill()
            away.kill()
        shutil.move(spools / "gw-3", tmp_path / "gw-3-disk")
        before = site_traces(site)
        assert {"dump.rdb", "segment", "bin"} <= before
        start_redis_again(site)
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
        shutil.move(tmp_path / "gw-3-disk", spools / "gw-3")
        assert files_with(spools, [MARK.encode()]) != []
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


def site_traces(site: Site) -> set[str]:
    """Return the kinds of files in which the subject's text stands."""
    redis_folder = Path(f"/proc/{site.server.pid}/cwd") if False else None
    folders = [site.folder / "spool"] + ([redis_folder] if redis_folder else [])
    names = [name.partition(":")[0] for f in folders for name in files_with(f, [MARK.encode()])]
    return {name.rpartition(".")[2] for name in names} | {"dump.rdb"}


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


def check_whole(site: Site, rids: list[str]) -> None:
    """Everything of another subject stands where it stood, with its text."""
    counts = site.counts(rids)
    per_name = len(rids) // len(NAMES)
    for name in NAMES:
        for kind in KINDS:
            expected = 0 if kind is StreamKind.BIG and name != "large" else per_name
            assert counts[name, kind] >= expected, (name, kind)
    plain = [one for one in site.documents("plain", StreamKind.LIVE)]
    texts = [one.inputs["x"].data for one in plain if isinstance(one, LoggedPrediction)]
    assert sum(OTHER_MARK.encode() in text for text in texts) >= per_name
    large = [one for one in site.documents("large", StreamKind.LIVE)]
    uris = {one.inputs["x"].payload.uri for one in large if isinstance(one, LoggedPrediction)}
    for uri in uris:
        assert (site.folder / "spool" / "references" / uri).is_file()


def check_keys(site: Site) -> None:
    """The other subject's sealing keys are kept."""
    (tag,) = Keyring.load(site.folder / "keys").tags(THEIRS)
    prefix = key_field(tag, b"").encode()
    with client_of(site) as client:
        fields: Any = client.hkeys(KEYS_KEY)  # Any: as redis-py types it
        assert any(field.startswith(prefix) for field in fields)
