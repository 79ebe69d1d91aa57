"""HTTP/2 and gRPC framing: what holds for any traffic, however it is cut, broken or held back."""

from __future__ import annotations

import gzip
import struct
from collections import Counter
from dataclasses import dataclass, field

import hpack
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.grpc_transport import Call, Method, Raw
from gateway.grpc_transport.messages import SPENT
from gateway.http2.frames import MAX_WINDOW
from gateway.http2.limits import Limits
from gateway.http2.liveness import sweep
from tests.support.grpc_transport import ECHO, SERVICE, CallClient, message, messages
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
    RST,
    SETTINGS,
    WINDOW,
    Client,
    frame,
    rst,
    setting,
    window,
)

SECOND_NS = 1_000_000_000

# 1. However valid traffic is cut, the answers are the same.


@dataclass
class Planned:
    """One call of a client: its method, its messages, and how they are framed."""

    is_stream: bool
    sizes: list[int]
    is_gzip: bool
    frame_bytes: int
    padding: int
    is_continued: bool
    extra: str = ""

    def messages(self) -> list[bytes]:
        return [bytes((index + size) % 251 for index in range(size)) for size in self.sizes]

    def frames(self, client: CallClient, stream_id: int) -> list[bytes]:
        fields = [("grpc-encoding", "gzip")] if self.is_gzip else []
        fields += [("x-extra", self.extra)] if self.extra else []
        head = client.head(stream_id, "Stream" if self.is_stream else "Echo", *fields)
        block = head[9:]
        flags = head[4]
        if self.is_continued:
            half = len(block) // 2
            head = frame(HEADERS, flags & ~END_HEADERS, stream_id, block[:half])
            head += frame(CONTINUATION, END_HEADERS, stream_id, block[half:])
        if self.is_gzip:
            body = b"".join(message(gzip.compress(data, mtime=0), 1) for data in self.messages())
        else:
            body = b"".join(map(message, self.messages()))
        found = [head]
        for at in range(0, len(body), self.frame_bytes):
            part = body[at : at + self.frame_bytes]
            end = END_STREAM if at + self.frame_bytes >= len(body) else 0
            if self.padding:
                part = bytes((self.padding,)) + part + b"\0" * self.padding
                end |= PADDED
            found.append(frame(DATA, end, stream_id, part))
        return found


planned = st.builds(
    Planned,
    is_stream=st.booleans(),
    sizes=st.lists(st.sampled_from([0, 1, 5, 100, 4_200, 40_000]), min_size=1, max_size=3),
    is_gzip=st.booleans(),
    frame_bytes=st.sampled_from([1_000, 5_000, 16_384, 60_000]),
    padding=st.sampled_from([0, 0, 1, 200]),
    is_continued=st.booleans(),
    extra=st.sampled_from(["", "a", "b"]),
)


def answers(plans: list[Planned], order: list[int], cuts: list[int]) -> list[object]:
    """Send the calls' frames mixed in an order, cut anywhere; return what came back."""
    client = CallClient(max_message_bytes=1 << 20)
    client.send(setting(4, 1 << 24), window(0, 1 << 24))
    # Heads in the order of their numbers, as HTTP/2 wants them; bodies mixed.
    frames = [plan.frames(client, 2 * number + 1) for number, plan in enumerate(plans)]
    data = b"".join(found[0] for found in frames)
    queues = [found[1:] for found in frames]
    for choice in order:
        left = [queue for queue in queues if queue]
        if left:
            data += left[choice % len(left)].pop(0)
    data += b"".join(part for queue in queues for part in queue)
    at = 0
    for cut in sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)}):
        client.send(data[at:cut])
        at = cut
    found = [client.answer(2 * number + 1) for number in range(len(plans))]
    client.assert_nothing_is_held()
    assert not client.connection.is_ended
    return [(answer.head, answer.body, answer.trailers, answer.is_ended) for answer in found]


@settings(max_examples=150, deadline=None)
@given(
    plans=st.lists(planned, min_size=1, max_size=4),
    order=st.lists(st.integers(0, 3), max_size=12),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=30),
)
def test_valid_traffic_gives_the_same_answers_however_it_is_cut(
    plans: list[Planned], order: list[int], cuts: list[int]
) -> None:
    whole = answers(plans, order, [])
    assert answers(plans, order, cuts) == whole
    for plan, found in zip(plans, whole, strict=True):
        expected = plan.messages() if plan.is_stream else plan.messages()[:1]
        assert messages(found[1]) == expected  # type: ignore[index]  # a tuple, as made above


# 2. Nothing that comes raises, leaks, or breaks an invariant.

ids = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 2, 99, 0x7FFF_FFFF, 0x8000_0001])
kinds = st.integers(0, 11)
flags = st.sampled_from([0, 1, 4, 5, 5, 8, 9, 0x20, 0x2D, 0xFF])
heads = st.sampled_from(
    [
        hpack.Encoder().encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                ("content-type", "application/grpc"),
                *extra,
            ]
        )
        for path in ("/t.S/Echo", "/t.S/Stream", "/nope")
        for extra in ([], [("grpc-encoding", "gzip")], [("content-length", "9")], [("te", "x")])
    ]
)
payloads = st.one_of(
    st.binary(max_size=40),
    heads,
    st.sampled_from([b"\0" * 4, b"\0\0\0\1", b"\x7f\xff\xff\xff", b"\0" * 5, b"\0" * 8]),
    st.builds(message, st.binary(max_size=30), st.sampled_from([0, 0, 0, 1, 2])),
    st.just(message(gzip.compress(b"abc" * 100), 1)),
    st.just(message(b"x" * 70_000)[:9_000]),
    st.builds(struct.Struct(">HI").pack, st.integers(0, 7), st.integers(0, 1 << 17)),
)
random_frames = st.builds(frame, kinds, flags, ids, payloads)
good_frames = st.one_of(
    st.builds(lambda head, number: frame(HEADERS, END_HEADERS, number, head), heads, ids),
    st.builds(frame, st.just(DATA), st.sampled_from([0, 1]), ids, payloads),
    st.builds(window, ids, st.integers(1, 1 << 20)),
    st.builds(rst, ids),
)


def check(client: CallClient) -> None:
    """What holds of a connection at any time."""
    connection = client.connection
    held = 0
    for stream_id, stream in connection.streams.items():
        assert stream.stream_id == stream_id
        assert connection.initial_window + stream.window_bytes <= MAX_WINDOW
        queue = stream.queue
        if queue is not None:
            assert queue.size_bytes == sum(map(len, queue.pieces)) > 0
            held += queue.size_bytes
            has_window = connection.initial_window + stream.window_bytes > 0
            assert (stream_id in connection.ready) is has_window
        assert isinstance(stream, Call)
        if stream._reader is not None and stream._reader is not SPENT:
            held += stream._reader._held_bytes
        held += stream._inflated_bytes
    assert connection.held_bytes == held
    assert set(connection.ready) <= set(connection.streams)
    assert 0 <= connection.send_window <= MAX_WINDOW
    assert (connection.direct_bytes < 0) is bool(connection.ready or connection.is_full)
    if connection.is_ended:
        assert not connection.streams


@settings(max_examples=400, deadline=None)
@given(
    parts=st.lists(st.one_of(good_frames, random_frames, st.binary(max_size=20)), max_size=25),
    cuts=st.integers(1, 3_000),
    has_preface=st.sampled_from([True, True, True, False]),
)
def test_whatever_comes_nothing_is_raised_and_nothing_leaks(
    parts: list[bytes], cuts: int, has_preface: bool
) -> None:
    client = CallClient(limits=Limits(connection_bytes=1 << 20, header_bytes=4_096))
    if not has_preface:
        client = CallClient(limits=Limits(connection_bytes=1 << 20))
    data = b"".join(parts) if has_preface else PREFACE[:10] + b"".join(parts)
    found = []
    for at in range(0, len(data), cuts):
        client.send(data[at : at + cuts])
        check(client)
        found += client.read()
        client.now_ns += SECOND_NS // 10
        sweep(client.connection, client.now_ns)
        check(client)
    found += client.read()
    if client.connection.is_ended:
        assert found[-1].kind == GOAWAY, "the last word, whatever ended it"
    client.connection.lost()
    client.assert_nothing_is_held()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_valid_traffic_with_a_changed_byte_never_raises(data: st.DataObject) -> None:
    client = CallClient(max_message_bytes=100_000)
    plans = data.draw(st.lists(planned, min_size=1, max_size=3))
    traffic = bytearray()
    for number, plan in enumerate(plans):
        traffic += b"".join(plan.frames(client, 2 * number + 1))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(traffic) - 1))
        traffic[at] = data.draw(st.integers(0, 255))
    client.send(bytes(traffic))
    check(client)
    client.read()
    client.connection.lost()
    client.assert_nothing_is_held()


# 3. Every call ends exactly once, whatever both sides do.


@dataclass
class Script:
    """A handler whose calls are ended by a script."""

    calls: list[Call] = field(default_factory=list)
    answered: Counter[int] = field(default_factory=Counter)
    cancelled: Counter[int] = field(default_factory=Counter)

    def unary(self, call: Call, data: Raw) -> None:
        self._keep(call)

    def stream(self, call: Call):  # type: ignore[no-untyped-def]  # a sink
        self._keep(call)
        return lambda data: None

    def _keep(self, call: Call) -> None:
        self.calls.append(call)
        call.on_cancel = lambda: self.cancelled.update([call.stream_id])

    def do(self, number: int, what: str, size: int) -> None:
        if not self.calls:
            return
        call = self.calls[number % len(self.calls)]
        if what in ("reply", "fail", "finish") and not call.is_done:
            self.answered[call.stream_id] += 1
        {
            "reply": lambda: call.reply(b"r" * size),
            "fail": lambda: call.fail(5, "no"),
            "finish": call.finish,
            "send": lambda: call.send(b"s" * size),
            "pause": call.pause_reading,
            "resume": call.resume_reading,
        }[what]()

    @property
    def methods(self) -> dict[str, Method]:
        return {
            SERVICE + "Echo": Method(self.unary, is_streaming=False),
            SERVICE + "Stream": Method(self.stream, is_streaming=True),
        }


steps = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(["Echo", "Stream"]), st.sampled_from([0, 1, 2])),
    st.tuples(st.just("data"), st.integers(0, 9), st.sampled_from([0, 3, 90, 9_000, 70_000])),
    st.tuples(st.just("end"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("rst"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("window"), st.integers(0, 9), st.integers(1, 50_000)),
    st.tuples(st.just("initial"), st.just(0), st.sampled_from([0, 10, 1_000, 100_000])),
    st.tuples(st.just("socket"), st.just(0), st.sampled_from([0, 1])),
    st.tuples(st.just("time"), st.just(0), st.integers(0, 3)),
    st.tuples(st.just("read"), st.just(0), st.just(0)),
    st.tuples(
        st.sampled_from(["reply", "fail", "finish", "send", "send", "pause", "resume"]),
        st.integers(0, 9),
        st.sampled_from([0, 10, 5_000, 200_000]),
    ),
)


def step(client: CallClient, script: Script, what: str, which: object, size: int) -> None:
    connection = client.connection
    number = which if isinstance(which, int) else 0
    stream_id = 2 * number + 1
    if what == "open":
        extra = [("grpc-timeout", "1S")] if size == 2 else []
        next_id = connection.last_id + (2 if connection.last_id else 1)
        client.send(client.head(next_id, str(which), *extra))
        if size:
            client.send(frame(DATA, 0, next_id, message(b"hello")))
    elif what in ("data", "end", "rst") and stream_id <= connection.last_id:
        end = END_STREAM if what == "end" else 0
        body = message(b"d" * size)[: 3 * size // 4] if what == "data" else b""
        client.send(rst(stream_id) if what == "rst" else frame(DATA, end, stream_id, body))
    elif what == "window" and stream_id <= connection.last_id:
        client.send(window(stream_id, size), window(0, size))
    elif what == "initial":
        client.send(setting(4, size))
    elif what == "socket":
        connection.socket_full() if size else connection.socket_drained()
    elif what == "time":
        client.now_ns += size * SECOND_NS
        sweep(connection, client.now_ns)
    elif what == "read":
        client.read()
    elif what not in ("data", "end", "rst", "window"):
        script.do(number, what, size)


@settings(max_examples=300, deadline=None)
@given(script_steps=st.lists(steps, max_size=40))
def test_every_call_ends_exactly_once(
    script_steps: list[tuple[str, object, int]],
) -> None:
    script = Script()
    limits = Limits(connection_bytes=400_000, stream_output_bytes=20_000, slow_peer_timeout_s=5)
    client = CallClient(script.methods, limits=limits)
    for what, which, size in script_steps:
        step(client, script, what, which, size)
        check(client)
    client.connection.lost()
    client.assert_nothing_is_held()
    for call in script.calls:
        ended = (script.answered[call.stream_id], script.cancelled[call.stream_id])
        # The answer that was refused for its size was an answer, and the handler was told.
        assert ended in ((1, 0), (0, 1), (1, 1)), ended
        assert call.is_done


# 4. Flow control, both ways.


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 120_000), min_size=1, max_size=5),
    grants=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60_000)), max_size=40),
    initial=st.integers(0, 70_000),
)
def test_no_more_is_sent_than_granted_and_all_of_it_in_the_end(
    sizes: list[int], grants: list[tuple[int, int]], initial: int
) -> None:
    client = Client()
    client.send(setting(4, initial))
    payloads = [bytes((number + 1,)) * size for number, size in enumerate(sizes)]
    granted = Counter({0: 65_535})
    for number, payload in enumerate(payloads):
        stream_id = 2 * number + 1
        granted[stream_id] = initial
        client.send(client.request(stream_id, is_last=True))
        client.connection.send_data(client.heard[stream_id], b"", payload)
        client.connection.send_end(client.heard[stream_id], b"\x88")
    sent: Counter[int] = Counter()
    got: dict[int, bytes] = {}

    def take() -> None:
        for found in client.read():
            if found.kind == DATA:
                sent.update({0: len(found.payload), found.stream_id: len(found.payload)})
                got[found.stream_id] = got.get(found.stream_id, b"") + found.payload
        assert all(sent[stream_id] <= granted[stream_id] for stream_id in granted)

    take()
    for number, size in grants:
        stream_id = 2 * number - 1 if number else 0
        if number <= len(sizes):
            granted[stream_id] += size
            client.send(window(stream_id, size))
            take()
    for stream_id in sorted(granted):
        granted[stream_id] += 1_000_000
        client.send(window(stream_id, 1_000_000))
        take()
    assert got == {2 * number + 1: payload for number, payload in enumerate(payloads)}
    client.assert_nothing_is_held()


@settings(max_examples=100, deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 30_000), st.integers(0, 255)), max_size=80
    )
)
def test_a_client_that_keeps_to_its_windows_never_starves_and_never_faults(
    turns: list[tuple[int, int, int]],
) -> None:
    limits = Limits(stream_window_bytes=70_000, connection_window_bytes=100_000)
    client = Client(limits, is_begun=False)
    client.send(PREFACE + frame(SETTINGS, 0, 0))
    credit: Counter[int] = Counter({0: 65_535})

    def take() -> None:
        for found in client.read():
            assert found.kind in (WINDOW, SETTINGS)
            if found.kind == WINDOW:
                credit[found.stream_id] += found.number

    take()
    assert credit[0] == 100_000
    sent = 0
    for number in range(4):
        credit[2 * number + 1] = 70_000
        client.send(client.request(2 * number + 1))
    for number, size, padding in turns:
        stream_id = 2 * number + 1
        payload = bytes((padding,)) + b"x" * size + b"\0" * padding
        assert min(credit[0], credit[stream_id]) >= len(payload), "starved"
        credit.subtract({0: len(payload), stream_id: len(payload)})
        client.send(frame(DATA, PADDED, stream_id, payload))
        sent += size
        take()
    assert sum(len(heard.body) for heard in client.heard.values()) == sent
    assert not client.connection.is_ended


def test_the_strategies_reach_the_interesting_states() -> None:
    """A guard for the tests above: their traffic is really taken, not refused at its first byte."""
    client = CallClient(ECHO)
    plan = Planned(True, [100, 40_000], True, 5_000, 1, True, "a")
    client.send(window(0, 1 << 20), setting(4, 1 << 20), *plan.frames(client, 1))
    assert messages(client.answer(1).body) == plan.messages()
    assert {RST, PING, PRIORITISED} <= set(range(0x21))
