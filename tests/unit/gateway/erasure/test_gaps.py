"""Sequence numbers that an erasure took."""

from __future__ import annotations

from itertools import pairwise

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from gateway.prediction_log.erasure import gaps
from gateway.prediction_log.erasure.tombstone import Found
from gateway.prediction_log.streams import StreamKind, erased_key
from tests.support.erasures import plain_redis

LIVE, LABELS = StreamKind.LIVE, StreamKind.LABELS


def found(seq: int, kind: StreamKind = LIVE, name: str = "digits") -> Found:
    return Found(name, kind, "gw-1@1", seq, b"r" * 16)


@given(st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)))
def test_ranges_hold_exactly_the_numbers_that_were_given(one: set[int], two: set[int]) -> None:
    ranges = gaps.merged(gaps.merged((n, n) for n in one) + [(n, n) for n in two])
    held = [n for first, last in ranges for n in range(first, last + 1)]
    assert held == sorted(one | two)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))


@pytest.mark.redis
def test_numbers_are_kept_per_name_and_worker_and_come_together() -> None:
    with plain_redis() as (_, client):
        gaps.note(client, [found(1), found(2), found(9), found(4, LABELS), found(3, LIVE, "b")])
        gaps.note(client, [found(3), found(2), Found("digits", LIVE, "", 0, b"")])
        assert gaps.read(client, "digits") == {
            gaps.field("gw-1@1", LIVE): [(1, 3), (9, 9)],
            gaps.field("gw-1@1", LABELS): [(4, 4)],
        }
        assert gaps.read(client, "b") == {"gw-1@1/live": [(3, 3)]}
        assert _ttl(client, "digits") > 86_400


def _ttl(client: redis.Redis, name: str) -> int:
    return int(str(client.ttl(erased_key(name))))
