"""Calls on a connection: messages in, answers out, and every way to end."""

from __future__ import annotations

import gzip
import logging
import zlib

import pytest

from gateway.grpc_transport import Call, Method, Raw, encode_metadata
from gateway.grpc_transport.call import DEADLINE_GRACE_NS
from gateway.http2.limits import Limits
from gateway.http2.liveness import sweep
from tests.support.grpc_transport import (
    ECHO,
    SERVICE,
    CallClient,
    message,
    messages,
    pieces,
    recording,
)
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADERS,
    RST,
    SECOND_NS,
    WINDOW,
    frame,
    rst,
    setting,
    window,
)

TEXT = b"all work and no play " * 20


class Kept:
    """A unary method that keeps its calls, and whether they were cancelled."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.data: list[Raw] = []
        self.cancelled: list[int] = []

    def start(self, call: Call, data: Raw) -> None:
        self.calls.append(call)
        self.data.append(data)
        call.on_cancel = lambda: self.cancelled.append(call.stream_id)

    @property
    def methods(self) -> dict[str, Method]:
        return {SERVICE + "Echo": Method(self.start, is_streaming=False)}


class KeptStream:
    """A streaming method that keeps its calls and messages."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.data: list[Raw | None] = []
        self.cancelled: list[int] = []

    def start(self, call: Call):  # type: ignore[no-untyped-def]  # a sink
        self.calls.append(call)
        call.on_cancel = lambda: self.cancelled.append(call.stream_id)
        return self.data.append

    @property
    def methods(self) -> dict[str, Method]:
        return {SERVICE + "Stream": Method(self.start, is_streaming=True)}


def passed(client: CallClient, seconds: float) -> None:
    client.now_ns += int(seconds * SECOND_NS)
    sweep(client.connection, client.now_ns)


# Unary calls.


@pytest.mark.parametrize("size", [0, 1, 5, 100, 70_000, 300_000])
def test_a_message_is_echoed(size: int) -> None:
    client = CallClient()
    client.send(setting(4, 1 << 20), window(0, 1 << 20))
    data = bytes(index % 251 for index in range(size))
    answer = client.call(*pieces(message(data), 16_384))
    assert messages(answer.body) == [data]
    assert (answer.status, answer.text) == (0, "")
    assert answer.head == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity, deflate, gzip"),
    ]
    assert answer.reset is None
    client.assert_nothing_is_held()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_message_may_be_cut_anywhere(cut: int) -> None:
    client = CallClient()
    data = message(b"abcdefg")
    answer = client.call(data[:cut], data[cut:], b"")
    assert messages(answer.body) == [b"abcdefg"]
    client.assert_nothing_is_held()


def test_a_large_message_is_collected_in_one_buffer_and_a_small_one_is_bytes() -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    client.call(*pieces(message(b"x" * 300_000), 16_384))
    client.call(*pieces(message(b"x" * 3_000), 1_000))
    assert [(type(data), len(data)) for data in kept.data] == [
        (bytearray, 300_000),
        (bytes, 3_000),
    ]


def test_a_unary_call_starts_with_its_message_and_ignores_a_second_one() -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    client.send(client.head(1), frame(DATA, 0, 1, message(b"a")))
    assert kept.data == [b"a"]
    client.send(frame(DATA, 0, 1, message(b"b") + b"\0\0"), frame(DATA, END_STREAM, 1, b"rest"))
    assert kept.data == [b"a"]
    kept.calls[0].reply(b"A")
    assert messages(client.answer(1).body) == [b"A"]
    client.assert_nothing_is_held()


def test_an_answer_before_the_end_of_the_request_tells_the_client_to_stop() -> None:
    client = CallClient()
    client.send(client.head(1), frame(DATA, 0, 1, message(b"a")))
    answer = client.answer(1)
    assert (messages(answer.body), answer.status, answer.reset) == ([b"a"], 0, 0)


@pytest.mark.parametrize("is_direct", [False, True])
@pytest.mark.parametrize("size", [5_000, 200_000])
def test_an_answer_to_a_large_frame_that_ends_the_request_needs_no_reset(
    size: int, is_direct: bool
) -> None:
    client = CallClient()
    client.send(setting(4, 1 << 20), window(0, 1 << 20))
    whole = frame(DATA, END_STREAM, 1, message(b"x" * size))
    client.send(client.head(1), whole[:3_000])
    rest = whole[3_000:]
    while is_direct and (view := client.connection.body_view()) is not None:
        taken = min(len(view), 50_000)
        view[:taken] = rest[:taken]
        view.release()
        rest = rest[taken:]
        client.connection.body_received(taken, client.now_ns)
    client.send(rest)
    answer = client.answer(1)
    assert (messages(answer.body), answer.status, answer.reset) == ([b"x" * size], 0, None)
    assert not rest or not is_direct
    client.assert_nothing_is_held()


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ([], 12, "the call came without a message"),
        ([b""], 12, "the call came without a message"),
        ([b"\0\0\0"], 13, "the request ended in the middle of a message"),
        ([message(b"hello")[:-1]], 13, "the request ended in the middle of a message"),
        ([message(b"x" * 1001)], 8, "SERVER: Received message larger than max (1001 vs. 1000)"),
        ([message(b"hi", 1)], 13, "Compression bit set but no encoding configured"),
        ([message(b"hi", 2)], 13, "Invalid flags of a message: 2"),
    ],
)
def test_a_message_that_cannot_be_taken_ends_its_call(
    body: list[bytes], code: int, text: str
) -> None:
    client = CallClient(max_message_bytes=1_000)
    answer = client.call(*body)
    assert (answer.status, answer.text) == (code, text)
    assert answer.head[0] == (":status", "200")
    client.assert_nothing_is_held()
    assert messages(client.call(message(b"next")).body) == [b"next"]


def test_a_message_over_the_limit_is_refused_by_its_prefix() -> None:
    client = CallClient(max_message_bytes=1_000)
    client.send(client.head(1), frame(DATA, 0, 1, message(b"x" * 2_000)[:10]))
    answer = client.answer(1)
    assert (answer.status, answer.reset) == (8, 0)
    client.send(frame(DATA, END_STREAM, 1, b"x" * 1_995))
    assert client.read() == [], "what was under way is ignored"


def test_a_refused_head_answers_with_nothing_but_trailers() -> None:
    client = CallClient()
    answer = client.call(message(b"a"), method="Nope")
    assert answer.head == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "12"),
        ("grpc-message", "Method not found!"),
    ]


@pytest.mark.parametrize(
    ("changed", "status"), [({"method": "GET"}, "405"), ({"content_type": "text/html"}, "415")]
)
def test_what_is_no_grpc_gets_an_http_status(changed: dict[str, str], status: str) -> None:
    client = CallClient()
    client.send(client.head(1, "Echo", is_last=True, **changed))
    assert client.answer(1).trailers[0] == (":status", status)


def test_a_header_list_over_the_limit_is_refused_with_a_status() -> None:
    client = CallClient(limits=Limits(header_bytes=4_096))
    answer = client.call(message(b"a"), x_long="v" * 5_000)
    assert answer.status == 8
    assert answer.text.startswith("received metadata size exceeds hard limit")
    assert client.call(message(b"a")).status == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_messages_are_taken_also_beside_plain_ones(encoding: str) -> None:
    data = gzip.compress(TEXT) if encoding == "gzip" else zlib.compress(TEXT)
    client = CallClient()
    answer = client.call(
        message(data, 1) + message(b"plain") + message(b"", 1),
        method="Stream",
        grpc_encoding=encoding,
    )
    assert messages(answer.body) == [TEXT, b"plain", b""]
    client.assert_nothing_is_held()


def test_answers_are_compressed_if_that_helps_and_the_client_takes_it() -> None:
    client = CallClient(compression="gzip")
    answer = client.call(message(TEXT), grpc_accept_encoding="identity,gzip")
    assert ("grpc-encoding", "gzip") in answer.head
    assert answer.body[0] == 1
    assert gzip.decompress(answer.body[5:]) == TEXT
    answer = client.call(message(b"tiny"), grpc_accept_encoding="identity,gzip")
    assert messages(answer.body) == [b"tiny"]
    answer = client.call(message(TEXT), grpc_accept_encoding="identity")
    assert messages(answer.body) == [TEXT]
    assert "grpc-encoding" not in dict(answer.head)


def test_an_inflated_message_counts_until_its_call_is_answered() -> None:
    kept = Kept()
    client = CallClient(kept.methods, limits=Limits(connection_bytes=150_000))
    bomb = message(gzip.compress(b"\0" * 100_000), 1)
    client.call(bomb, grpc_encoding="gzip")
    assert client.connection.held_bytes == 100_000
    second = client.call(bomb, grpc_encoding="gzip")
    assert (second.status, len(kept.data)) == (8, 1)
    kept.calls[0].reply(b"")
    client.assert_nothing_is_held()
    assert client.answer(1).status == 0


# Answers.


def test_a_status_goes_out_with_its_text_and_metadata() -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    client.call(message(b"a"))
    kept.calls[0].fail(5, "käse, 100 %\n", encode_metadata([("k-bin", b"\0\1"), ("a", "b")]))
    answer = client.answer(1)
    assert (answer.status, answer.text) == (5, "käse, 100 %\n")
    assert answer.binary("k-bin") == b"\0\1"
    assert ("a", "b") in answer.trailers
    assert kept.cancelled == []


def test_metadata_may_go_ahead_of_the_answer_and_behind_it() -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    client.call(message(b"a"))
    call = kept.calls[0]
    call.send_metadata(encode_metadata([("early", "1")]))
    assert ("early", "1") in client.answer(1).head
    call.send_metadata(encode_metadata([("early", "2")]))
    call.reply(b"A", encode_metadata([("late", "2")]))
    answer = client.answer(1)
    assert messages(answer.body) == [b"A"]
    assert answer.trailers == [("grpc-status", "0"), ("late", "2")]


def test_trailers_over_the_peers_frame_are_continued() -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    client.call(message(b"a"))
    kept.calls[0].reply(b"A", encode_metadata([("long", "v" * 20_000)]))
    found = client.read()
    assert [f.kind for f in found] == [HEADERS, DATA, HEADERS, CONTINUATION]
    assert max(len(f.payload) for f in found) <= 16_384


def test_only_the_first_answer_counts() -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    client.call(message(b"a"))
    call = kept.calls[0]
    assert not call.is_done
    call.reply(b"A")
    assert call.is_done
    client.answer(1)
    for again in (
        lambda: call.reply(b"B"),
        lambda: call.send(b"B"),
        lambda: call.fail(13, "no"),
        call.finish,
        lambda: call.send_metadata(b""),
        call.resume_reading,
    ):
        again()
    assert client.read() == []
    assert not client.connection.is_dirty


def test_an_answer_over_the_windows_waits_for_them() -> None:
    client = CallClient()
    client.send(setting(4, 100))
    answer = client.call(message(b"x" * 1_000))
    assert (len(answer.body), answer.is_ended) == (100, False)
    client.send(window(1, 2_000))
    answer = client.answer(1)
    assert messages(answer.body) == [b"x" * 1_000]
    assert answer.status == 0
    client.assert_nothing_is_held()


def test_an_answer_that_nobody_reads_is_refused_over_the_connections_bound() -> None:
    kept = Kept()
    client = CallClient(kept.methods, limits=Limits(connection_bytes=1_500))
    client.send(setting(4, 0))
    for _ in range(2):
        client.call(message(b"a"))
    for call in kept.calls:
        call.reply(b"x" * 1_000)
    assert client.answer(3).status == 8
    assert kept.cancelled == [3]
    client.send(window(1, 2_000))
    assert client.answer(1).status == 0
    client.assert_nothing_is_held()


# Streams.


def test_a_stream_answers_message_by_message() -> None:
    client = CallClient()
    client.send(client.head(1, "Stream"), frame(DATA, 0, 1, message(b"a")))
    assert messages(client.answer(1).body) == [b"a"]
    client.send(frame(DATA, 0, 1, message(b"b") + message(b"c")[:3]))
    client.send(frame(DATA, END_STREAM, 1, message(b"c")[3:]))
    answer = client.answer(1)
    assert messages(answer.body) == [b"a", b"b", b"c"]
    assert answer.status == 0
    client.assert_nothing_is_held()


def test_a_stream_without_messages_ends_with_nothing_but_trailers() -> None:
    client = CallClient()
    answer = client.call(method="Stream")
    assert answer.head[0] == (":status", "200")
    assert answer.head == answer.trailers
    assert answer.status == 0


def test_a_broken_message_ends_a_stream_behind_the_answers_before_it() -> None:
    kept = KeptStream()
    client = CallClient(kept.methods)
    client.send(client.head(1, "Stream"), frame(DATA, 0, 1, message(b"a")))
    kept.calls[0].send(b"A")
    client.send(frame(DATA, 0, 1, message(b"b", 1)))
    answer = client.answer(1)
    assert (messages(answer.body), answer.status, answer.reset) == ([b"A"], 13, 0)
    assert kept.cancelled == [1]
    assert kept.data == [b"a"]


@pytest.mark.parametrize("size", [7, 70_000])
def test_a_paused_stream_hands_over_nothing_until_it_goes_on(size: int) -> None:
    kept = KeptStream()
    client = CallClient(kept.methods)
    client.send(client.head(1, "Stream"))
    (call,) = kept.calls
    call.pause_reading()
    body = b"".join(message(bytes((number,)) * size) for number in range(3))
    client.send(*(frame(DATA, 0, 1, part) for part in pieces(body, 16_384)))
    client.send(frame(DATA, END_STREAM, 1, b""))
    assert kept.data == []
    assert client.connection.held_bytes == len(body)
    call.resume_reading()
    assert [data if data is None else bytes(data) for data in kept.data] == [
        *(bytes((number,)) * size for number in range(3)),
        None,
    ]
    assert client.connection.held_bytes == 0


def test_a_stream_may_pause_itself_at_every_message() -> None:
    seen: list[bytes | None] = []
    calls: list[Call] = []

    def start(call: Call):  # type: ignore[no-untyped-def]  # a sink
        calls.append(call)

        def sink(data: Raw | None) -> None:
            seen.append(None if data is None else bytes(data))
            call.pause_reading()

        return sink

    client = CallClient({SERVICE + "Stream": Method(start, is_streaming=True)})
    body = b"".join(message(bytes((number,)) * 10) for number in range(4))
    client.send(client.head(1, "Stream"), frame(DATA, END_STREAM, 1, body))
    for expected in range(1, 5):
        assert len(seen) == expected
        calls[0].resume_reading()
    assert seen[-1] is None
    assert client.connection.held_bytes == 0


def test_a_paused_stream_that_is_answered_lets_go_of_what_it_kept() -> None:
    kept = KeptStream()
    client = CallClient(kept.methods)
    client.send(client.head(1, "Stream"))
    kept.calls[0].pause_reading()
    client.send(frame(DATA, END_STREAM, 1, message(b"a")))
    kept.calls[0].reply(b"A")
    assert messages(client.answer(1).body) == [b"A"]
    client.assert_nothing_is_held()


def test_a_paused_stream_gives_no_window_and_gives_it_when_it_goes_on() -> None:
    kept = KeptStream()
    client = CallClient(kept.methods, limits=Limits(stream_window_bytes=50_000))
    client.send(client.head(1, "Stream"))
    kept.calls[0].pause_reading()
    for _ in range(3):
        client.send(frame(DATA, 0, 1, message(b"x" * 15_000)))
    assert [f for f in client.read() if f.kind == WINDOW and f.stream_id] == []
    kept.calls[0].resume_reading()
    assert [f.number for f in client.read() if f.kind == WINDOW and f.stream_id] == [45_015]


def test_a_stream_that_is_full_hears_when_there_is_room() -> None:
    kept = KeptStream()
    client = CallClient(kept.methods, limits=Limits(stream_output_bytes=1_000))
    client.send(setting(4, 100), client.head(1, "Stream"))
    (call,) = kept.calls
    drained: list[bool] = []
    call.on_drained = lambda: drained.append(call.is_full)
    sent = 0
    while not call.is_full:
        call.send(b"x" * 95)
        sent += 1
    assert 10 <= sent <= 12
    client.send(window(1, 200))
    assert drained == []
    client.send(window(1, 800))
    assert drained == [False]
    call.finish()
    client.send(window(1, 10_000))
    assert client.answer(1).status == 0
    client.assert_nothing_is_held()


# Every other way to end.


def test_a_cancelled_call_tells_its_handler_once() -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    client.call(message(b"a"))
    client.send(rst(1), rst(1))
    assert kept.cancelled == [1]
    kept.calls[0].reply(b"too late")
    assert client.read() == []
    client.assert_nothing_is_held()


def test_a_lost_connection_cancels_its_calls() -> None:
    kept, streams = Kept(), KeptStream()
    client = CallClient({**kept.methods, **streams.methods})
    client.call(message(b"a"))
    client.send(client.head(3, "Stream"), frame(DATA, 0, 3, message(b"x" * 50_000)[:1_000]))
    client.connection.lost()
    assert (kept.cancelled, streams.cancelled) == ([1], [3])
    client.assert_nothing_is_held()
    kept.calls[0].reply(b"too late")
    streams.calls[0].send(b"too late")
    streams.calls[0].finish()


def test_an_answered_call_is_not_cancelled() -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    client.call(message(b"a"))
    kept.calls[0].reply(b"A")
    client.send(rst(1))
    client.connection.lost()
    assert kept.cancelled == []


def test_a_late_call_is_answered_by_the_transport_and_its_handler_told() -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    client.call(message(b"a"), grpc_timeout="500m")
    assert kept.calls[0].deadline_ns == client.now_ns + SECOND_NS // 2
    passed(client, 0.5)
    assert kept.cancelled == []
    passed(client, DEADLINE_GRACE_NS / SECOND_NS + 0.001)
    answer = client.answer(1)
    assert (answer.status, answer.text) == (4, "Deadline Exceeded")
    assert kept.cancelled == [1]
    client.assert_nothing_is_held()


def test_a_deadline_also_ends_a_call_that_has_not_sent_its_message() -> None:
    client = CallClient()
    client.send(client.head(1, "Echo", ("grpc-timeout", "1S")))
    passed(client, 2)
    answer = client.answer(1)
    assert (answer.status, answer.reset) == (4, 0)


def test_a_request_that_stops_in_the_middle_of_a_message_is_refused() -> None:
    client = CallClient(limits=Limits(slow_peer_timeout_s=30))
    client.send(client.head(1), frame(DATA, 0, 1, message(b"x" * 50_000)[:10_000]))
    client.send(client.head(3))
    held = client.connection.held_bytes
    assert held >= 49_000
    for _ in range(20):
        client.now_ns += SECOND_NS
        sweep(client.connection, client.now_ns)
    client.send(frame(DATA, 0, 1, b"x"))
    for _ in range(20):
        client.now_ns += SECOND_NS
        sweep(client.connection, client.now_ns)
    assert client.answer(3).text == "the request has stopped arriving", "not even its prefix came"
    assert client.answers.get(1) is None, "it has moved meanwhile"
    for _ in range(20):
        client.now_ns += SECOND_NS
        sweep(client.connection, client.now_ns)
    assert client.answer(1).status == 14
    client.assert_nothing_is_held()


def test_a_stream_between_messages_may_wait_as_long_as_it_likes() -> None:
    client = CallClient(limits=Limits(slow_peer_timeout_s=1, keepalive_s=0))
    client.send(client.head(1, "Stream"), frame(DATA, 0, 1, message(b"a")))
    for _ in range(100):
        passed(client, 1)
    client.send(frame(DATA, END_STREAM, 1, message(b"b")))
    assert messages(client.answer(1).body) == [b"a", b"b"]


def test_incomplete_messages_over_the_connections_bound_are_refused() -> None:
    client = CallClient(limits=Limits(connection_bytes=100_000))
    begun = message(b"x" * 60_000)[:10_000]
    client.send(client.head(1), frame(DATA, 0, 1, begun))
    client.send(client.head(3), frame(DATA, 0, 3, begun))
    assert client.answer(3).status == 8
    client.send(*(frame(DATA, 0, 1, part) for part in pieces(b"x" * 50_005, 16_000)))
    assert client.answer(1).status == 0
    client.assert_nothing_is_held()


def test_a_length_alone_takes_no_memory() -> None:
    client = CallClient(max_message_bytes=1 << 30)
    for number in range(100):
        client.send(
            client.head(2 * number + 1), frame(DATA, 0, 2 * number + 1, b"\0\x3f\xff\xff\xff")
        )
    assert client.connection.held_bytes < 100 * 20_000


def test_a_handlers_exception_costs_its_own_call(caplog: pytest.LogCaptureFixture) -> None:
    def broken(call: Call, data: Raw) -> None:
        raise RuntimeError("secret")

    def broken_stream(call: Call):  # type: ignore[no-untyped-def]  # never returns
        raise RuntimeError("secret")

    def broken_sink(call: Call):  # type: ignore[no-untyped-def]  # a sink
        def sink(data: Raw | None) -> None:
            raise RuntimeError("secret")

        return sink

    client = CallClient(
        {
            **ECHO,
            SERVICE + "A": Method(broken, is_streaming=False),
            SERVICE + "B": Method(broken_stream, is_streaming=True),
            SERVICE + "C": Method(broken_sink, is_streaming=True),
        }
    )
    client.send(client.head(1, "Stream"))
    with caplog.at_level(logging.ERROR):
        for method, body in (("A", [b"a"]), ("B", [b"a"]), ("C", [b"a"]), ("C", [])):
            answer = client.call(*map(message, body), method=method)
            text = "internal error: the server's log has the details"
            assert (answer.status, answer.text) == (13, text)
    assert len(caplog.records) == 4
    client.send(frame(DATA, END_STREAM, 1, message(b"still here")))
    assert messages(client.answer(1).body) == [b"still here"]
    client.assert_nothing_is_held()


def test_an_exception_of_a_callback_does_not_reach_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = Kept()
    client = CallClient(kept.methods)
    for _ in range(2):
        client.call(message(b"a"))

    def broken() -> None:
        raise RuntimeError("secret")

    kept.calls[0].on_cancel = broken
    with caplog.at_level(logging.ERROR):
        client.send(rst(1))
    assert len(caplog.records) == 1
    kept.calls[1].reply(b"A")
    assert client.answer(3).status == 0


def test_a_client_may_reset_a_stream_in_the_middle_of_its_messages() -> None:
    seen: list[bytes | None] = []
    methods = {SERVICE + "Stream": Method(recording(seen), is_streaming=True)}
    client = CallClient(methods)
    client.send(client.head(1, "Stream"), frame(DATA, 0, 1, message(b"a") + b"\0\0"), rst(1))
    assert seen == [b"a"]
    assert [f for f in client.read() if f.kind == RST] == []
    client.assert_nothing_is_held()
