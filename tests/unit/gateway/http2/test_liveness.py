"""What the clock does to a connection."""

from __future__ import annotations

import pytest

from gateway.http2.limits import Limits
from gateway.http2.liveness import sweep
from tests.support.http2 import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST,
    SECOND_NS,
    Client,
    Frame,
    frame,
    setting,
)

LAST = 0x7FFF_FFFF


def passed(client: Client, seconds: float) -> list[Frame]:
    """Let time pass in steps of a quarter of a second, and return what was sent."""
    found = []
    for _ in range(int(seconds * 4)):
        client.now_ns += SECOND_NS // 4
        sweep(client.connection, client.now_ns)
        found += client.read()
    return found


def kinds(frames: list[Frame]) -> list[int]:
    return [found.kind for found in frames]


@pytest.mark.parametrize("sent", [b"", b"PRI * HTT"])
def test_a_connection_without_a_preface_ends_after_the_handshakes_time(sent: bytes) -> None:
    client = Client(Limits(handshake_timeout_s=10), is_begun=False)
    client.send(sent)
    client.read()
    assert passed(client, 9.5) == []
    assert kinds(passed(client, 1)) == [GOAWAY]
    assert client.connection.is_ended


def test_a_silent_connection_is_pinged_and_goes_on_with_the_answer() -> None:
    client = Client(Limits(keepalive_s=100, keepalive_timeout_s=20, idle_timeout_s=0))
    assert passed(client, 99) == []
    (ping,) = passed(client, 2)
    assert (ping.kind, ping.flags) == (PING, 0)
    assert passed(client, 10) == [], "one ping at a time"
    client.send(frame(PING, ACK, 0, ping.payload))
    assert passed(client, 95) == []
    assert kinds(passed(client, 10)) == [PING]


def test_a_connection_that_does_not_answer_the_ping_ends() -> None:
    client = Client(Limits(keepalive_s=100, keepalive_timeout_s=20, idle_timeout_s=0))
    client.send(client.request(1, is_last=True))
    assert kinds(passed(client, 130)) == [PING, GOAWAY]
    assert client.heard[1].log == ["head, last", "lost"]


def test_no_pings_and_no_idle_end_if_they_are_switched_off() -> None:
    client = Client(Limits(keepalive_s=0, idle_timeout_s=0))
    assert passed(client, 2_000) == []


def test_an_idle_connection_is_drained() -> None:
    client = Client(Limits(keepalive_s=0, idle_timeout_s=60, drain_delay_s=1))
    found = passed(client, 70)
    assert kinds(found) == [GOAWAY, PING, GOAWAY]
    assert client.connection.is_ended
    assert client.connection.is_served


def test_a_connection_with_a_call_is_not_idle() -> None:
    client = Client(Limits(keepalive_s=0, idle_timeout_s=60))
    client.send(client.request(1))
    assert passed(client, 200) == []
    client.send(frame(DATA, END_STREAM, 1, b"a"))
    client.connection.send_end(client.heard[1], b"\x88")
    assert kinds(passed(client, 59)) == [HEADERS]


def test_a_frame_that_stops_in_the_middle_ends_the_connection() -> None:
    client = Client(Limits(slow_peer_timeout_s=30))
    client.send(client.request(1)[:-1])
    assert passed(client, 29) == []
    assert kinds(passed(client, 2)) == [GOAWAY]


def test_output_that_nobody_reads_costs_its_stream() -> None:
    client = Client(Limits(slow_peer_timeout_s=30))
    client.send(setting(4, 10), client.request(1, is_last=True), client.request(3, is_last=True))
    client.connection.send_data(client.heard[1], b"", b"x" * 25)
    client.read()
    assert passed(client, 29) == []
    (reset,) = passed(client, 2)
    assert (reset.kind, reset.stream_id, reset.code) == (RST, 1, 8)
    assert client.heard[1].log == ["head, last", "lost"]
    assert client.connection.held_bytes == 0
    assert not client.connection.is_ended


def test_a_drain_serves_what_comes_before_the_client_has_heard_of_it() -> None:
    client = Client()
    client.send(client.request(1, is_last=True))
    client.connection.drain(client.now_ns)
    first, ping = client.read()
    assert (first.kind, first.code, int.from_bytes(first.payload[:4], "big")) == (GOAWAY, 0, LAST)
    client.send(client.request(3, is_last=True), frame(PING, ACK, 0, ping.payload))
    (second,) = client.read()
    assert (second.kind, second.code, int.from_bytes(second.payload[:4], "big")) == (GOAWAY, 0, 3)
    client.send(client.request(5, is_last=True))
    assert [(f.kind, f.stream_id, f.code) for f in client.read()] == [(RST, 5, 7)]
    for stream_id in (1, 3):
        assert not client.connection.is_served
        client.connection.send_end(client.heard[stream_id], b"\x88")
    assert client.connection.is_served
    client.read()
    assert passed(client, 1) == []
    assert client.connection.is_ended


def test_a_drain_goes_on_without_the_pings_answer() -> None:
    client = Client(Limits(drain_delay_s=2))
    client.send(client.request(1, is_last=True))
    client.connection.drain(client.now_ns)
    client.connection.drain(client.now_ns)
    assert kinds(client.read()) == [GOAWAY, PING], "a second drain says nothing more"
    assert passed(client, 1.5) == []
    assert kinds(passed(client, 1)) == [GOAWAY]
    assert not client.connection.is_ended, "a call is under way"


def test_heads_are_forgotten_by_an_idle_connection() -> None:
    client = Client()
    client.send(client.request(1, is_last=True), client.request(3, is_last=True))
    assert client.connection.memo
    for stream_id in (1, 3):
        client.connection.send_end(client.heard[stream_id], b"\x88")
    passed(client, 10)
    assert not client.connection.memo


def test_no_timeout_strikes_while_the_socket_is_full_for_then_nothing_is_read() -> None:
    client = Client(Limits(slow_peer_timeout_s=30, keepalive_s=10, keepalive_timeout_s=5))
    client.send(client.request(1)[:-1])
    client.connection.socket_full()
    assert passed(client, 100) == []
    assert not client.connection.is_ended
