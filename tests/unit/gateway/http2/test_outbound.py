"""Sending: windows, turns, bounds."""

from __future__ import annotations

from gateway.http2.limits import Limits
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST,
    Client,
    Frame,
    rst,
    setting,
    window,
)

WIDE = (setting(4, 1 << 24), window(0, 1 << 24))


def data_of(frames: list[Frame], stream_id: int) -> bytes:
    return b"".join(f.payload for f in frames if f.kind == DATA and f.stream_id == stream_id)


def answer(client: Client, stream_id: int, payload: bytes) -> None:
    stream = client.heard[stream_id]
    client.connection.send_head(stream, b"\x88")
    client.connection.send_data(stream, b"", payload)
    client.connection.send_end(stream, b"\x88")


def test_an_answer_within_the_windows_goes_out_at_once() -> None:
    client = Client()
    client.send(client.request(1, is_last=True))
    answer(client, 1, b"hello")
    head, data, end = client.read()
    assert (head.kind, head.flags) == (HEADERS, END_HEADERS)
    assert (data.kind, data.payload) == (DATA, b"hello")
    assert (end.kind, end.flags) == (HEADERS, END_HEADERS | END_STREAM)
    client.assert_nothing_is_held()


def test_a_peer_that_still_sends_is_told_that_the_answer_is_complete() -> None:
    client = Client()
    client.send(client.request(1))
    answer(client, 1, b"")
    last = client.read()[-1]
    assert (last.kind, last.code) == (RST, 0)


def test_an_answer_leaves_as_far_as_both_windows_let_it() -> None:
    client = Client()
    client.send(setting(4, 10), client.request(1, is_last=True))
    answer(client, 1, b"x" * 25)
    assert data_of(client.read(), 1) == b"x" * 10
    client.send(window(1, 10))
    assert data_of(client.read(), 1) == b"x" * 10
    client.send(window(0, 100))
    assert client.read() == [], "the stream's own window is the narrow one"
    client.send(window(1, 100))
    found = client.read()
    assert data_of(found, 1) == b"x" * 5
    assert found[-1].flags == END_HEADERS | END_STREAM
    client.assert_nothing_is_held()


def test_a_smaller_initial_window_makes_a_streams_window_negative_until_it_is_granted() -> None:
    client = Client()
    client.send(setting(4, 10), client.request(1, is_last=True))
    answer(client, 1, b"x" * 25)
    client.read()
    client.send(setting(4, 2))
    client.send(window(1, 7))
    assert data_of(client.read(), 1) == b""
    client.send(window(1, 2))
    assert data_of(client.read(), 1) == b"x"
    client.send(setting(4, 100))
    assert data_of(client.read(), 1) == b"x" * 14


def test_streams_take_turns_of_a_frame() -> None:
    client = Client()
    client.send(setting(4, 1 << 20), client.request(1, is_last=True))
    client.send(client.request(3, is_last=True))
    client.read()
    answer(client, 1, b"a" * 200_000)
    answer(client, 3, b"b" * 100_000)
    client.read()
    client.send(window(0, 1 << 20))
    order = [found.stream_id for found in client.read() if found.kind == DATA]
    assert order[:6] in ([1, 3, 1, 3, 1, 3], [3, 1, 3, 1, 3, 1])
    client.assert_nothing_is_held()


def test_a_stream_with_window_passes_one_without() -> None:
    client = Client()
    client.send(setting(4, 10), client.request(1, is_last=True), client.request(3, is_last=True))
    answer(client, 1, b"x" * 25)
    client.read()
    answer(client, 3, b"y" * 10)
    assert data_of(client.read(), 3) == b"y" * 10


def test_frames_are_no_larger_than_the_peer_takes() -> None:
    client = Client()
    client.send(*WIDE, client.request(1, is_last=True))
    answer(client, 1, b"x" * 100_000)
    sizes = [len(found.payload) for found in client.read() if found.kind == DATA]
    assert max(sizes) == 16_384
    assert sum(sizes) == 100_000
    client.send(setting(5, 1 << 17), client.request(3, is_last=True))
    answer(client, 3, b"x" * 100_000)
    assert [len(found.payload) for found in client.read() if found.kind == DATA] == [100_000]


def test_queued_output_leaves_in_bursts_between_which_the_socket_can_say_stop() -> None:
    client = Client(Limits(burst_bytes=50_000))
    client.send(*WIDE, client.request(1, is_last=True))
    answer(client, 1, b"x" * 500_000)
    client.connection.out.clear()
    client.connection.flushed()
    assert 0 < sum(len(piece) for piece in client.connection.out) < 70_000
    client.connection.socket_full()
    client.connection.out.clear()
    client.connection.flushed()
    assert client.connection.out == []
    client.connection.socket_drained()
    assert client.connection.out != []


def test_nothing_is_sent_directly_while_the_socket_is_full() -> None:
    client = Client()
    client.send(client.request(1, is_last=True), client.request(3, is_last=True))
    client.connection.socket_full()
    answer(client, 1, b"a")
    answer(client, 3, b"b")
    assert data_of(client.read(), 1) == b""
    assert client.connection.held_bytes == 2
    client.connection.socket_drained()
    found = client.read()
    assert data_of(found, 1) + data_of(found, 3) == b"ab"
    client.assert_nothing_is_held()


def test_output_over_the_connections_bound_is_refused_and_the_stream_told() -> None:
    client = Client(Limits(connection_bytes=1_000))
    client.send(setting(4, 0), client.request(1), client.request(3))
    for stream_id in (1, 3):
        stream = client.heard[stream_id]
        client.connection.send_head(stream, b"\x88")
        client.connection.send_data(stream, b"", b"x" * 600)
    assert client.heard[1].log == []
    assert client.heard[3].log == ["overflowed"]
    assert client.connection.held_bytes == 600


def test_a_full_stream_hears_once_that_there_is_room_again() -> None:
    client = Client(Limits(stream_output_bytes=1_000))
    client.send(setting(4, 0), client.request(1))
    stream = client.heard[1]
    for _ in range(12):
        client.connection.send_data(stream, b"", b"x" * 100)
    assert stream.queue is not None
    assert stream.queue.was_full
    client.send(window(1, 600))
    assert stream.log == []
    client.send(window(1, 100))
    assert stream.log == ["drained"]
    client.send(window(1, 500))
    assert stream.log == ["drained"]


def test_a_reset_forgets_what_is_queued() -> None:
    client = Client()
    client.send(setting(4, 0), client.request(1))
    client.connection.send_data(client.heard[1], b"", b"x" * 600)
    client.send(rst(1))
    client.assert_nothing_is_held()
    assert client.heard[1].log == ["lost"]


def test_a_block_over_the_peers_frame_is_continued() -> None:
    client = Client()
    client.send(client.request(1, is_last=True))
    block = b"\x00\x01a\x7f" + b"\xb9\x9b\x02" + b"v" * 40_000
    assert len(block) > 2 * 16_384
    client.connection.send_end(client.heard[1], block)
    first, *rest = client.read()
    assert (first.kind, first.flags) == (HEADERS, END_STREAM)
    assert [(found.kind, found.flags) for found in rest] == [
        (CONTINUATION, 0),
        (CONTINUATION, END_HEADERS),
    ]
    assert b"".join([first.payload, *(found.payload for found in rest)]) == block


def test_queued_output_is_never_copied() -> None:
    client = Client(Limits(burst_bytes=1 << 30))
    client.send(setting(4, 1 << 30), window(0, 1 << 30), client.request(1, is_last=True))
    payload = b"x" * (1 << 20)
    answer(client, 1, payload)
    views = [piece for piece in client.connection.out if isinstance(piece, memoryview)]
    assert sum(len(view) for view in views) == len(payload)
    assert all(view.obj is payload for view in views)
    client.read()
    client.assert_nothing_is_held()
