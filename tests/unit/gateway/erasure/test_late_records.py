"""Records of the subject that come while an erasure runs: they stay whole, or are known of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.ids import new_id
from gateway.prediction_log.erasure.eraser import Eraser
from gateway.prediction_log.erasure.request import Request
from gateway.prediction_log.erasure.sought import Sought
from gateway.prediction_log.erasure.spools import Spools
from gateway.prediction_log.erasure.tombstone import Found, Tombstone, digest
from gateway.prediction_log.streams import StreamKind
from tests.support.erasing_gateway import fill_spool
from tests.support.erasures import blobs_in, label, plain_redis, prediction, put
from tests.support.prediction_log import log_settings

pytestmark = pytest.mark.redis

TAG, OTHER = bytes(range(100, 116)), bytes(range(101, 117))


def sought() -> Sought:
    return Sought(Tombstone(id="e", begun_ms=1, tags=[TAG], digests=[digest(TAG)]))


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    with plain_redis() as (_, client):
        yield client


def test_what_comes_while_a_stream_is_rebuilt_stays_for_the_next_erasure_with_its_labels(
    client: redis.Redis, tmp_path: Path
) -> None:
    early, late = new_id(), new_id()
    key = put(client, [prediction(1, rid=early, subject=TAG), prediction(2, subject=OTHER)])
    labels = put(client, [label(1, rid=early)], kind=StreamKind.LABELS)
    request = Request(tags=[TAG], timeout_s=5.0)
    spools = Spools(log_settings(), tmp_path)

    def say(sentence: str) -> None:
        if sentence == f"rebuilding {key}":
            put(client, [prediction(3, rid=late, subject=TAG)])
            put(client, [label(2, rid=late)], kind=StreamKind.LABELS)

    outcome = Eraser(client, request, keys=client, spools=spools, say=say).run()
    assert (outcome.left, outcome.requests) == ([], 1)
    assert [late in blob for blob in blobs_in(client, key)] == [False, True]
    assert [late in blob for blob in blobs_in(client, labels)] == [True]
    again = Eraser(client, request, keys=client, spools=spools).run()
    assert (again.left, again.requests) == ([], 1)
    assert [late in blob for blob in blobs_in(client, key)] == [False]
    assert blobs_in(client, labels) == []


def test_what_an_idle_spool_holds_is_told_before_it_is_destroyed(tmp_path: Path) -> None:
    rid = new_id()
    fill_spool(tmp_path, "gw-2", [(StreamKind.LIVE, [prediction(1, rid=rid, subject=TAG)])])
    spools = Spools(log_settings(), tmp_path)

    class Killed(Exception):
        pass

    def die(found: object) -> None:
        raise Killed

    told: list[Found] = []
    with pytest.raises(Killed):
        spools.go_through("gw-2", sought(), die)
    assert spools.go_through("gw-2", sought(), told.extend).destroyed == 1
    assert {one.rid for one in told} == {rid}
