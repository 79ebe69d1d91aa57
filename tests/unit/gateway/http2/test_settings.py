"""SETTINGS, both ways."""

from __future__ import annotations

import struct

import pytest

from gateway.http2.limits import Limits
from tests.support.http2 import ACK, SETTINGS, WINDOW, Client, frame, setting


def test_the_limits_are_announced_with_the_connections_window() -> None:
    limits = Limits(
        streams_per_connection=7,
        stream_window_bytes=1 << 17,
        frame_bytes=1 << 15,
        header_bytes=5_000,
        connection_window_bytes=1 << 18,
    )
    first, second = Client(limits, is_begun=False).read()
    assert first.kind == SETTINGS
    assert dict(struct.iter_unpack(">HI", first.payload)) == {
        3: 7,
        4: 1 << 17,
        5: 1 << 15,
        6: 5_000,
    }
    assert (second.kind, second.stream_id, second.number) == (WINDOW, 0, (1 << 18) - 65_535)


def test_settings_are_acknowledged_and_an_acknowledgement_is_not() -> None:
    client = Client()
    client.send(setting(1, 0), setting(99, 5))
    assert [(found.kind, found.flags) for found in client.read()] == [(SETTINGS, ACK)] * 2
    client.send(frame(SETTINGS, ACK, 0))
    assert client.read() == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(setting(2, 2), 1, id="push"),
        pytest.param(setting(4, 1 << 31), 3, id="window"),
        pytest.param(setting(5, 16_383), 1, id="frame too small"),
        pytest.param(setting(5, 1 << 24), 1, id="frame too large"),
        pytest.param(frame(SETTINGS, 0, 0, b"12345"), 6, id="cut off"),
        pytest.param(frame(SETTINGS, ACK, 0, b"123456"), 6, id="acknowledgement with settings"),
        pytest.param(frame(SETTINGS, 0, 1), 1, id="on a stream"),
        pytest.param(frame(SETTINGS, 0, 0, b"\0" * 6 * 65), 6, id="endless"),
    ],
)
def test_wrong_settings_end_the_connection(data: bytes, code: int) -> None:
    client = Client()
    client.send(data)
    assert client.goaway().code == code


def test_a_window_that_overflows_an_open_stream_ends_the_connection() -> None:
    client = Client()
    client.send(client.request(1), frame(8, 0, 1, struct.pack(">I", 0x7FFF_0000)))
    client.send(setting(4, 0x7FFF_FFFF))
    assert client.goaway().code == 3
