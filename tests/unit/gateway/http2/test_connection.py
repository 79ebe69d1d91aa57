"""Frames in the input: how they are found, cut off, refused; how the connection begins and ends."""

from __future__ import annotations

import pytest

from gateway.http2.fields import Fields, RequestHead
from gateway.http2.frames import ErrorCode
from gateway.http2.limits import Limits
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    PUSH,
    REQUEST,
    RST,
    SETTINGS,
    WINDOW,
    Application,
    Client,
    frame,
    rst,
    window,
)

CALM = 11


def test_a_request_is_heard_from_its_head_to_its_end() -> None:
    client = Client()
    client.send(client.request(1), frame(DATA, 0, 1, b"ab"), frame(DATA, END_STREAM, 1, b"c"))
    assert client.heard[1].body == b"abc"
    assert client.heard[1].log == ["end"]


def test_a_request_without_a_body_ends_with_its_head() -> None:
    client = Client()
    client.send(client.request(1, is_last=True))
    assert client.heard[1].log == ["head, last"]


def test_trailers_end_a_request() -> None:
    client = Client()
    trailers = client.encoder.encode([("x", "1")])
    client.send(client.request(1), frame(HEADERS, END_HEADERS | END_STREAM, 1, trailers))
    assert client.heard[1].log == ["end"]


def test_a_repeated_block_is_decoded_once_until_the_table_changes() -> None:
    client = Client()
    client.send(client.request(1), client.request(3), client.request(5), client.request(7))
    assert client.application.heads == 2, "the first block has filled the table, the second is kept"
    changed = client.block(("x", "1"))
    client.send(frame(HEADERS, END_HEADERS, 9, changed), client.request(11), client.request(13))
    assert client.application.heads == 4
    client.connection.forget_heads()
    client.send(client.request(15))
    assert client.application.heads == 5


PLAIN_HEAD = b"\x83\x86\x04\x02/a"
NEWEST = b"\xbe"
"""A reference to whatever was last inserted into the table."""


class Noting(Application):
    """Writes down what each decoded head says of x."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []

    def read_head(self, fields: Fields) -> RequestHead:
        self.seen.append(dict(fields)[b"x"])
        return super().read_head(fields)


def inserted(value: bytes) -> bytes:
    return b"\x40\x01x\x01" + value


@pytest.mark.parametrize("way", ["trailers", "late trailers", "too large", "refused", "continued"])
def test_a_kept_block_is_decoded_anew_after_any_block_that_changed_the_table(way: str) -> None:
    application = Noting()
    seen = application.seen
    client = Client(Limits(header_bytes=4_096, streams_per_connection=3), application)
    client.send(frame(HEADERS, END_HEADERS, 1, PLAIN_HEAD + inserted(b"0")))
    client.send(frame(HEADERS, END_HEADERS, 3, PLAIN_HEAD + NEWEST))
    assert seen == [b"0", b"0"]
    end = END_HEADERS | END_STREAM
    if way == "trailers":
        client.send(frame(HEADERS, end, 3, inserted(b"1")))
    elif way == "late trailers":
        client.connection.fault(client.heard[3], ErrorCode.CANCEL)
        client.send(frame(HEADERS, end, 3, inserted(b"1")))
    elif way == "too large":
        large = b"\x00\x01y\x7f\x89\x26" + b"v" * 5_000
        client.send(frame(HEADERS, end, 5, PLAIN_HEAD + large + inserted(b"1")))
    elif way == "refused":
        client.send(frame(HEADERS, END_HEADERS, 5, PLAIN_HEAD + NEWEST))
        client.send(frame(HEADERS, END_HEADERS, 7, PLAIN_HEAD + inserted(b"1")), rst(5))
    else:
        block = PLAIN_HEAD + inserted(b"1")
        client.send(frame(HEADERS, 0, 5, block[:4]), frame(CONTINUATION, END_HEADERS, 5, block[4:]))
    client.send(rst(1), frame(HEADERS, END_HEADERS, 9, PLAIN_HEAD + NEWEST))
    assert not client.connection.is_ended
    assert 9 in client.heard
    assert seen[-1] == b"1"


def test_kept_heads_are_bounded() -> None:
    client = Client(Limits(memoised_heads=4))
    for number in range(20):
        block = b"\x83\x86\x04\x02/" + bytes((97 + number,))
        client.send(frame(HEADERS, END_HEADERS, 2 * number + 1, block))
    assert len(client.heard) == 20
    assert len(client.connection.memo) <= 4


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 100, 5_000])
def test_input_may_be_cut_anywhere(size: int) -> None:
    client = Client(is_begun=False)
    long = bytes(range(256)) * 40
    data = b"".join(
        (
            PREFACE,
            frame(SETTINGS, 0, 0),
            client.request(1),
            frame(DATA, 0, 1, long),
            frame(DATA, PADDED, 1, b"\x07" + b"x" * 5_000 + b"\0" * 7),
            frame(77, 0, 0, b"?" * 300),
            frame(DATA, END_STREAM, 1, b"z"),
            client.request(3, is_last=True),
        )
    )
    for at in range(0, len(data), size):
        client.send(data[at : at + size])
    assert client.heard[1].body == long + b"x" * 5_000 + b"z"
    assert client.heard[1].log == ["end"]
    assert client.heard[3].log == ["head, last"]
    assert not client.connection.is_mid_frame


def test_a_large_frame_goes_to_its_stream_as_it_arrives() -> None:
    client = Client()
    whole = frame(DATA, END_STREAM, 1, b"x" * 100_000)
    client.send(client.request(1), whole[:50_000])
    assert len(client.heard[1].body) == 50_000 - 9
    assert client.connection.is_mid_frame
    client.send(whole[50_000:-1])
    assert client.heard[1].log == []
    client.send(whole[-1:])
    assert client.heard[1].log == ["end"]


def test_a_large_frame_of_a_stream_that_ends_meanwhile_is_skipped() -> None:
    client = Client()
    whole = frame(DATA, 0, 1, b"x" * 100_000)
    client.send(client.request(1), whole[:50_000])
    client.connection.reset(client.heard[1], 8)
    client.send(whole[50_000:], client.request(3, is_last=True))
    assert client.heard[3].log == ["head, last"]
    assert len(client.heard[1].body) == 50_000 - 9


def test_padding_and_priority_are_taken_off() -> None:
    client = Client()
    payload = b"\x03" + b"\0\0\0\0\x10" + client.block() + b"\0\0\0"
    flags = END_HEADERS | PADDED | PRIORITISED
    client.send(frame(HEADERS, flags, 1, payload), frame(DATA, PADDED, 1, b"\x02ab\0\0"))
    assert client.heard[1].body == b"ab"


def test_a_head_may_come_in_continuations_and_in_the_memo() -> None:
    client = Client()
    client.send(client.request(1))
    for stream_id in (3, 5):
        block = client.block()
        client.send(
            frame(HEADERS, END_STREAM, stream_id, block[:3]),
            frame(CONTINUATION, 0, stream_id, b""),
            frame(CONTINUATION, END_HEADERS, stream_id, block[3:]),
        )
        assert client.heard[stream_id].log == ["head, last"]
    assert client.application.heads == 2


def test_the_reserved_bit_of_a_stream_number_is_ignored() -> None:
    client = Client()
    high = 1 << 31
    client.send(
        frame(HEADERS, END_HEADERS, high | 1, client.block()),
        frame(DATA, END_STREAM, high | 1, b"a"),
    )
    assert client.heard[1].body == b"a"


def test_more_streams_than_allowed_are_refused_and_the_table_stays_right() -> None:
    client = Client(Limits(streams_per_connection=2))
    client.send(client.request(1), client.request(3))
    extra = frame(HEADERS, END_HEADERS, 5, client.block(("x-new", "value")))
    client.send(extra)
    assert [(f.stream_id, f.code) for f in client.read() if f.kind == RST] == [(5, 7)]
    client.send(rst(1), frame(HEADERS, END_HEADERS, 7, client.block(("x-new", "value"))))
    assert 7 in client.heard
    assert not client.connection.is_ended


@pytest.mark.parametrize("announced", [2, 4])
@pytest.mark.parametrize("is_padded", [False, True])
def test_a_body_unlike_its_announced_length_is_a_fault(announced: int, is_padded: bool) -> None:
    client = Client()
    block = client.block(("content-length", str(announced)))
    client.send(frame(HEADERS, END_HEADERS, 1, block))
    data = frame(DATA, PADDED, 1, b"\x01abc\0") if is_padded else frame(DATA, 0, 1, b"abc")
    client.send(data, frame(DATA, END_STREAM, 1, b""))
    assert [(f.kind, f.code) for f in client.read()] == [(RST, 1)]
    assert client.heard[1].log == ["head", "lost"]
    client.assert_nothing_is_held()


def test_a_body_of_its_announced_length_is_right() -> None:
    client = Client()
    client.send(frame(HEADERS, END_HEADERS, 1, client.block(("content-length", "3"))))
    client.send(frame(DATA, 0, 1, b"ab"), frame(DATA, END_STREAM, 1, b"c"))
    assert client.heard[1].log == ["head", "end"]
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, client.block(("content-length", "3"))))
    assert [(f.kind, f.stream_id, f.code) for f in client.read()] == [(RST, 3, 1)]


def test_window_is_given_back_as_data_arrive() -> None:
    client = Client(Limits(stream_window_bytes=100_000, connection_window_bytes=150_000))
    client.send(client.request(1), client.request(3))
    for stream_id in (1, 3, 1, 3, 1, 3):
        client.send(frame(DATA, 0, stream_id, b"x" * 40_000))
    grants = [(f.stream_id, f.number) for f in client.read() if f.kind == WINDOW]
    assert sum(size for stream_id, size in grants if stream_id == 0) >= 80_000
    assert (1, 80_000) in grants
    assert (3, 80_000) in grants


def test_nothing_is_taken_of_what_is_over_the_streams_window() -> None:
    client = Client(Limits(stream_window_bytes=20_000))
    client.send(client.request(1))
    client.heard[1].is_paused = True
    client.send(frame(DATA, 0, 1, b"x" * 15_000), frame(DATA, 0, 1, b"x" * 15_000))
    assert len(client.heard[1].body) == 15_000
    assert client.heard[1].log == ["lost"]


def test_a_paused_stream_gets_no_window_and_more_than_that_is_a_fault() -> None:
    client = Client(Limits(stream_window_bytes=100_000))
    client.send(client.request(1))
    client.heard[1].is_paused = True
    client.send(frame(DATA, 0, 1, b"x" * 60_000))
    assert [f for f in client.read() if f.kind == WINDOW and f.stream_id] == []
    client.heard[1].is_paused = False
    client.connection.return_window(client.heard[1])
    assert [(f.kind, f.number) for f in client.read()] == [(WINDOW, 60_000)]
    client.heard[1].is_paused = True
    client.send(frame(DATA, 0, 1, b"x" * 60_000), frame(DATA, 0, 1, b"x" * 60_000))
    assert [(f.kind, f.code) for f in client.read()] == [(RST, 3)]


FAULTS = [
    pytest.param(frame(DATA, 0, 0, b"a"), 1, id="DATA on the connection"),
    pytest.param(frame(HEADERS, END_HEADERS, 0, b"\x82"), 1, id="HEADERS on the connection"),
    pytest.param(frame(HEADERS, END_HEADERS, 2, b"\x82"), 1, id="even stream number"),
    pytest.param(frame(PING, 0, 1, b"12345678"), 1, id="PING on a stream"),
    pytest.param(frame(PING, 0, 0, b"1234567"), 6, id="short PING"),
    pytest.param(frame(RST, 0, 1, b"123"), 6, id="short RST_STREAM"),
    pytest.param(frame(WINDOW, 0, 0, b"123"), 6, id="short WINDOW_UPDATE"),
    pytest.param(window(0, 0), 1, id="window of nothing"),
    pytest.param(window(0, 0x7FFF_FFFF), 3, id="window too large"),
    pytest.param(frame(GOAWAY, 0, 0, b"1234567"), 6, id="short GOAWAY"),
    pytest.param(frame(GOAWAY, 0, 3, b"12345678"), 1, id="GOAWAY on a stream"),
    pytest.param(frame(CONTINUATION, END_HEADERS, 1, b"\x82"), 1, id="CONTINUATION of nothing"),
    pytest.param(frame(PUSH, END_HEADERS, 1, b"\0\0\0\2"), 1, id="PUSH_PROMISE"),
    pytest.param(frame(DATA, 0, 99, b"a"), 1, id="DATA on an idle stream"),
    pytest.param(frame(DATA, PADDED, 1, b"\x05ab"), 1, id="more padding than DATA"),
    pytest.param(frame(DATA, PADDED, 1, b""), 1, id="padding without a length"),
    pytest.param(frame(HEADERS, PADDED | 4, 3, b"\x05ab"), 1, id="more padding than HEADERS"),
    pytest.param(frame(PRIORITY, 0, 7, b"\0\0"), 6, id="short PRIORITY of an idle stream"),
    pytest.param(frame(HEADERS, PRIORITISED | 4, 3, b"\0\0"), 6, id="no room for the priority"),
    pytest.param(
        frame(HEADERS, PRIORITISED | 4, 3, b"\0\0\0\x03\0\x82"), 1, id="depends on itself"
    ),
    pytest.param(frame(HEADERS, END_HEADERS, 3, b"\xff\xff\xff\xff\xff\xff"), 9, id="no HPACK"),
    pytest.param(frame(HEADERS, 0, 3) + frame(DATA, 0, 1, b"a"), 1, id="interrupted head"),
    pytest.param(frame(HEADERS, 0, 3) + frame(CONTINUATION, 4, 5), 1, id="another's CONTINUATION"),
    pytest.param(frame(DATA, 0, 1, b"x" * 1_048_577)[:9], 6, id="frame too large, by its head"),
    pytest.param(frame(HEADERS, 0, 3, b"x" * 100_000)[:9], CALM, id="head too large, by its head"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n" * 40, 6, id="another protocol"),
]


@pytest.mark.parametrize(("data", "code"), FAULTS)
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "cut"])
def test_a_fault_ends_the_connection_with_its_code(data: bytes, code: int, is_cut: bool) -> None:
    client = Client()
    client.send(client.request(1))
    client.read()
    for at in range(len(data)) if is_cut else [None]:
        client.send(data if at is None else data[at : at + 1])
    last = client.goaway()
    assert last.code == code
    assert client.heard[1].log == ["lost"]
    client.assert_nothing_is_held()
    client.send(client.request(5))
    assert client.read() == [], "nothing is read after the end"


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/1.1\r\n\r\n", b"\x16\x03"]
)
def test_what_is_no_preface_ends_the_connection(data: bytes) -> None:
    client = Client(is_begun=False)
    client.send(data)
    assert client.goaway().code == 1


STREAM_FAULTS = [
    pytest.param(window(1, 0), 1, id="window of nothing"),
    pytest.param(window(1, 0x7FFF_FFFF), 3, id="window too large"),
    pytest.param(frame(PRIORITY, 0, 1, b"\0\0\0\1\0"), 1, id="depends on itself"),
    pytest.param(frame(PRIORITY, 0, 1, b"\0\0"), 6, id="short PRIORITY"),
    pytest.param(frame(HEADERS, END_HEADERS, 1, b"\x00\x01a\x01b"), 1, id="trailers that go on"),
    pytest.param(frame(HEADERS, END_HEADERS | 1, 1, b"\x82"), 1, id="pseudo-header in trailers"),
]


@pytest.mark.parametrize(("data", "code"), STREAM_FAULTS)
def test_a_streams_fault_costs_the_stream(data: bytes, code: int) -> None:
    client = Client()
    client.send(client.request(1), client.request(3))
    client.read()
    client.send(data)
    assert [(f.kind, f.stream_id, f.code) for f in client.read()] == [(RST, 1, code)]
    assert client.heard[1].log == ["lost"]
    client.send(frame(DATA, END_STREAM, 3, b"a"))
    assert client.heard[3].log == ["end"]


def test_a_malformed_request_is_reset_without_a_word_to_the_application() -> None:
    client = Client()
    client.send(frame(HEADERS, END_HEADERS, 1, client.block(fields=REQUEST[1:])))
    assert [(f.kind, f.code) for f in client.read()] == [(RST, 1)]
    assert client.heard[1].log == []
    client.assert_nothing_is_held()


def test_a_header_list_over_the_limit_costs_the_stream_only() -> None:
    client = Client(Limits(header_bytes=4_096))
    client.send(frame(HEADERS, END_HEADERS, 1, client.block(("x", "v" * 5_000))))
    assert [(f.kind, f.stream_id) for f in client.read()] == [(RST, 1)]
    client.send(client.request(3, is_last=True))
    assert client.heard[3].log == ["head, last"]


def test_a_block_that_never_ends_is_refused_before_it_fills_the_memory() -> None:
    client = Client()
    client.send(frame(HEADERS, 0, 1, b"\x00\x01a"))
    for _ in range(100):
        client.send(frame(CONTINUATION, 0, 1, b"x" * 1_000))
        if client.connection.is_ended:
            break
    assert client.goaway().code == CALM


def test_a_lost_connection_loses_its_calls_once() -> None:
    client = Client()
    client.send(client.request(1), client.request(3))
    client.connection.lost()
    client.connection.lost()
    assert client.heard[1].log == client.heard[3].log == ["lost"]
    client.assert_nothing_is_held()


def test_unknown_frames_and_flags_are_skipped() -> None:
    client = Client()
    client.send(frame(200, 0xFF, 5, b"?" * 20_000), frame(PING, 0xFE, 0, b"12345678"))
    assert [(f.kind, f.payload) for f in client.read()] == [(PING, b"12345678")]


FLOODS = [
    pytest.param(frame(PING, 0, 0, b"12345678"), id="PING"),
    pytest.param(frame(SETTINGS, 0, 0), id="SETTINGS"),
    pytest.param(frame(PRIORITY, 0, 1, b"\0\0\0\x05\0"), id="PRIORITY"),
    pytest.param(window(0, 1), id="WINDOW_UPDATE"),
    pytest.param(window(1, 1), id="WINDOW_UPDATE of a stream"),
    pytest.param(frame(DATA, 0, 1, b""), id="empty DATA"),
    pytest.param(frame(DATA, PADDED, 1, b"\x03\0\0\0"), id="padded empty DATA"),
    pytest.param(frame(200, 0, 0), id="unknown frame"),
    pytest.param(frame(GOAWAY, 0, 0, b"\0" * 8), id="GOAWAY"),
    pytest.param(rst(3), id="RST_STREAM of a closed stream"),
]


@pytest.mark.parametrize("data", FLOODS)
def test_a_flood_of_frames_that_do_no_work_ends_the_connection(data: bytes) -> None:
    client = Client()
    client.send(client.request(1), client.request(3), rst(3))
    for _ in range(11_000):
        client.send(data)
        client.read()
        if client.connection.is_ended:
            break
        assert client.connection.held_bytes == 0
    assert client.connection.is_ended


def test_a_flood_is_answered_with_enhance_your_calm() -> None:
    client = Client()
    client.send(frame(PING, 0, 0, b"12345678") * 6_000)
    assert client.goaway().code == CALM


@pytest.mark.parametrize("cut", [0, 5], ids=["empty", "cut off"])
def test_empty_continuations_are_a_flood_too(cut: int) -> None:
    client = Client()
    client.send(frame(HEADERS, 0, 1))
    flood = frame(CONTINUATION, 0, 1) * 600
    client.send(flood[:cut])
    client.send(flood[cut:])
    assert client.goaway().code == CALM


def test_rapid_resets_end_the_connection() -> None:
    client = Client()
    opened = 0
    while not client.connection.is_ended and opened < 5_000:
        client.send(client.request(2 * opened + 1, is_last=True), rst(2 * opened + 1))
        opened += 1
    assert client.goaway().code == CALM
    assert opened < 2_000


@pytest.mark.parametrize("size", [10, 40_000], ids=["direct", "queued"])
def test_a_client_that_grants_window_for_every_message_of_a_stream_is_no_flood(size: int) -> None:
    client = Client()
    client.send(client.request(1))
    for _ in range(12_000 if size == 10 else 3_000):
        client.connection.send_data(client.heard[1], b"", b"x" * size)
        for found in client.read():
            client.send(window(0, len(found.payload)), window(1, len(found.payload)))
        client.read()
    assert not client.connection.is_ended
    client.connection.reset(client.heard[1], ErrorCode.CANCEL)
    client.assert_nothing_is_held()


def test_a_stream_that_ends_early_leaves_no_account_of_its_length() -> None:
    client = Client()
    for number in range(4):
        stream_id = 2 * number + 1
        block = client.block(("content-length", "9"))
        client.send(frame(HEADERS, END_HEADERS, stream_id, block), frame(DATA, 0, stream_id, b"a"))
    client.send(rst(1), window(3, 0))
    client.connection.reset(client.heard[5], ErrorCode.CANCEL)
    client.connection.send_end(client.heard[7], b"\x88")
    assert client.connection.lengths == {}


def test_slow_pings_and_resets_of_a_busy_client_are_no_flood() -> None:
    client = Client()
    for number in range(20_000):
        stream_id = 2 * number + 1
        client.send(client.request(stream_id, is_last=True), frame(PING, 0, 0, b"12345678"))
        if number % 4:
            client.connection.send_end(client.heard.pop(stream_id), b"\x88")
        else:
            client.send(rst(stream_id))
        client.send(window(0, 10), window(stream_id, 10))
        client.connection.out.clear()
    assert not client.connection.is_ended
    for _ in range(5_000):
        client.now_ns += 10_000_000
        client.send(frame(PING, 0, 0, b"12345678") * 4)
        client.connection.out.clear()
    assert not client.connection.is_ended
