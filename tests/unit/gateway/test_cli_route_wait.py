"""Waiting until every replica has a revision, on a clock that only sleeps move."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.cli.admin_client import AdminError, GatewayFailed, NotAllowed, NotThere, Unreachable
from gateway.cli.route_documents import Convergence, RouteDocument
from gateway.cli.route_wait import POLL_S, Clock, Waited, laggards, wait
from tests.support.admin_script import convergence, document

Json = Any  # Any: JSON
WANTED = msgspec.convert(document(43), RouteDocument)


def seen(value: Json) -> Convergence:
    return msgspec.convert(value, Convergence)


class Time:
    """A clock that only sleeps move."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def sleep(self, span_s: float) -> None:
        self.slept.append(span_s)
        self.now_s += span_s

    @property
    def clock(self) -> Clock:
        return Clock(now_s=lambda: self.now_s, sleep=self.sleep)


def waited(time: Time, limit_s: float, *looks: Json | AdminError) -> Waited:
    """Wait while the looks show one thing after the other, the last one for ever."""
    left = list(looks)

    def look(_: float) -> Convergence:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, AdminError):
            raise found
        return seen(found)

    return wait(look, WANTED, limit_s, time.clock)


def test_a_revision_that_is_everywhere_needs_no_sleep() -> None:
    time = Time()
    assert waited(time, 10, convergence(43, 43)) == Waited(replicas=2, took_s=0.0)
    assert time.slept == []


def test_it_looks_again_until_the_last_replica_has_it() -> None:
    time = Time()
    found = waited(time, 10, convergence(43, 42), convergence(43, 42), convergence(43, 43))
    assert found.laggards == ()
    assert found.took_s == pytest.approx(2 * POLL_S)


def test_the_wait_ends_in_time_and_says_who_lags() -> None:
    time = Time()
    found = waited(time, 0.5, convergence(43, 42))
    assert found.took_s == pytest.approx(0.5)
    assert found.laggards == ("b: at revision 42, loading digits/2, last heard of 0.4 s ago",)
    assert sum(time.slept) == pytest.approx(0.5)


def test_no_time_is_one_look() -> None:
    time = Time()
    assert waited(time, 0, convergence(43)).laggards == ()
    assert waited(time, 0, convergence(42)).laggards != ()
    assert time.slept == []


def test_a_replica_with_a_later_revision_or_generation_has_it_too() -> None:
    assert laggards(seen(convergence(44, 43, wanted=44)), WANTED) == ()
    restored = convergence(3, wanted=3)
    restored["replicas"][0]["generation"] = 2
    assert laggards(seen(restored), WANTED) == ()


def test_the_same_number_with_another_digest_is_not_the_same_revision() -> None:
    split = convergence(43, 43)
    split["replicas"][1]["digest"] = "f" * 64
    assert len(laggards(seen(split), WANTED)) == 1


def test_a_board_without_replicas_proves_nothing() -> None:
    assert laggards(seen(convergence()), WANTED) == ("no replica has said what it serves",)


@pytest.mark.parametrize("trouble", [Unreachable("nobody listens"), GatewayFailed("store down")])
def test_a_look_that_fails_is_repeated(trouble: AdminError) -> None:
    time = Time()
    assert waited(time, 10, trouble, convergence(43)).laggards == ()
    assert waited(time, 1, trouble).laggards == (str(trouble),)


@pytest.mark.parametrize("trouble", [NotThere("gone"), NotAllowed("no")])
def test_what_waiting_cannot_change_ends_it(trouble: AdminError) -> None:
    time = Time()
    with pytest.raises(type(trouble)):
        waited(time, 10, trouble)
    assert time.slept == []


def test_a_look_knows_how_much_time_is_left() -> None:
    time, left = Time(), list[float]()

    def look(left_s: float) -> Convergence:
        left.append(left_s)
        return seen(convergence(42))

    wait(look, WANTED, 0.5, time.clock)
    assert left == pytest.approx([0.5, 0.3, 0.1, 0.0])
