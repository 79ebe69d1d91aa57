"""Messages between fronts and the engine process: nothing is lost or mixed up, wherever the bytes
are cut, and no bytes do more to a process than to end their link."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from engines.tensors import DATATYPES, Tensor
from gateway.request import InferRequest, InferResponse, ServedBy
from gateway.workers import frames
from gateway.workers.answer_frames import AnswerReader, AnswerWriter, read_error, serving_of
from gateway.workers.frames import Kind, Part
from gateway.workers.headers import HeaderBlock, HeaderBlocks, block_of
from gateway.workers.link import Link, Take
from gateway.workers.request_frames import RequestReader, RequestWriter
from gateway.workers.tensors_shared import Arena, SharedReader

THRESHOLD_BYTES: Final = 64
PAGE_BYTES: Final = 4_096
NAMES: Final = st.text(max_size=8)
INT64: Final = st.integers(-(1 << 63), (1 << 63) - 1)
PARAMETERS: Final = st.dictionaries(
    NAMES,
    st.one_of(
        st.booleans(),
        st.integers(-(1 << 80), 1 << 80),
        st.floats(allow_nan=False),
        st.text(max_size=20),
    ),
    max_size=3,
)
TENSORS: Final = st.builds(
    Tensor,
    NAMES,
    st.sampled_from(sorted(DATATYPES)),
    st.lists(st.integers(0, 1 << 47), max_size=4).map(tuple),
    st.binary(max_size=3 * THRESHOLD_BYTES),
)


class Shown:
    """Headers as a transport shows them."""

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self.headers = pairs

    def header(self, name: str) -> str | None:
        """Return the first value of a name."""
        sought = name.encode("latin-1")
        return next((v.decode("latin-1") for k, v in self.headers if k == sought), None)


HEADERS: Final = st.lists(
    st.tuples(
        st.sampled_from([b"x-user-id", b"authorization", b"x", b"x-id", b"traceparent"]),
        st.binary(max_size=12),
    ),
    max_size=4,
)


@st.composite
def requests(draw: st.DrawFn) -> InferRequest:
    """Return a request; what its tensors say of their bytes need not be true here."""
    return InferRequest(
        name=draw(NAMES),
        version=draw(NAMES),
        id=draw(NAMES),
        parameters=draw(PARAMETERS),
        inputs=tuple(draw(st.lists(TENSORS, max_size=3))),
        outputs=tuple(draw(st.lists(NAMES, max_size=2))),
        protocol=draw(st.sampled_from(["http", "grpc"])),
        header=Shown(draw(HEADERS)).header,
        deadline_ns=draw(st.one_of(st.none(), st.integers(1, (1 << 63) - 1))),
    )


class Ends:
    """A link's receiving end without a socket: bytes are given to it."""

    def __init__(self, take: Mapping[Kind, Take]) -> None:
        self.link = Link(take, lambda: None, lambda: None, arena=None, reads_when_full=True)

    def receive(self, data: bytes, cuts: list[int]) -> None:
        """Receive bytes in pieces."""
        bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for start, end in pairwise(bounds):
            if end > start:
                self.link.data_received(data[start:end])


def _joined(out: list[Part]) -> bytes:
    return b"".join(out)


def _plain(tensors: tuple[Tensor, ...]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [(t.name, t.datatype, tuple(t.shape), bytes(t.data)) for t in tensors]


FORMS: Final = st.tuples(
    st.sampled_from([0, frames.JSON, frames.BINARY, frames.JSON | frames.RAW]),
    st.dictionaries(NAMES, st.booleans(), max_size=2),
)


@given(
    st.lists(st.tuples(requests(), FORMS), min_size=1, max_size=4),
    st.lists(st.integers(0, 3_000), max_size=6),
)
def test_requests_arrive_as_they_were_sent(
    sent: list[tuple[InferRequest, frames.Form]], cuts: list[int]
) -> None:
    asyncio.run(_requests_arrive(sent, cuts))


async def _requests_arrive(sent: list[tuple[InferRequest, frames.Form]], cuts: list[int]) -> None:
    arena = Arena(256 * PAGE_BYTES)
    shared = SharedReader(arena.fd, arena.size_bytes, lambda: None)
    writer, blocks, out = RequestWriter(arena.put, THRESHOLD_BYTES), HeaderBlocks(), list[Part]()
    for number, (request, form) in enumerate([*sent, *sent]):
        writer.write(out, number, request, blocks.of(request.header), form)
    reader = RequestReader(shared.fetch)
    got: list[tuple[int, int, InferRequest, Any]] = []

    def take(flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        got.append((number, flags, *reader.read(flags, index, data, start, end)))

    def define(flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        reader.define(number, data, start, end)

    Ends({Kind.INFER: take, Kind.DEFINE: define}).receive(_joined(out), cuts)
    assert [number for number, *_ in got] == list(range(2 * len(sent)))
    for (number, flags, found, by_output), (request, form) in zip(got, [*sent, *sent], strict=True):
        assert number < 2 * len(sent)
        assert flags & ~frames.TABLE == form[0]
        assert dict(by_output) == dict(form[1])
        assert _plain(found.inputs) == _plain(request.inputs)
        assert dict(found.parameters) == dict(request.parameters)
        assert [type(v) for v in found.parameters.values()] == [
            type(v) for v in request.parameters.values()
        ]
        for field in ("name", "version", "id", "outputs", "protocol", "deadline_ns"):
            assert getattr(found, field) == getattr(request, field)
        for name in ("x-user-id", "authorization", "x", "x-id", "traceparent", "absent"):
            assert found.header(name) == request.header(name)
    assert shared.held_slots == arena.taken_slots
    got.clear()
    del found
    for offset in shared.freed:
        arena.free(offset)
    assert arena.taken_slots == shared.held_slots == 0
    arena.close()


@given(
    st.lists(
        st.tuples(
            NAMES,
            NAMES,
            st.lists(TENSORS, max_size=3).map(tuple),
            st.tuples(NAMES, NAMES, INT64, NAMES),
            st.binary(min_size=16, max_size=16),
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.integers(0, 3_000), max_size=6),
)
def test_answers_arrive_as_they_were_sent(
    sent: list[tuple[str, str, tuple[Tensor, ...], tuple[str, str, int, str], bytes]],
    cuts: list[int],
) -> None:
    asyncio.run(_answers_arrive(sent, cuts))


async def _answers_arrive(
    sent: list[tuple[str, str, tuple[Tensor, ...], tuple[str, str, int, str], bytes]],
    cuts: list[int],
) -> None:
    writer, out = AnswerWriter(frames.nowhere, THRESHOLD_BYTES), list[Part]()
    for number, (model, version, tensors, serving, rid) in enumerate([*sent, *sent]):
        served_by = ServedBy(rid, serving_of(*serving))
        writer.write(out, number, InferResponse(model, version, "", tensors), served_by)
    reader = AnswerReader(frames.nothing_shared)
    got: list[tuple[InferResponse, ServedBy]] = []

    def take(flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        got.append(reader.read(flags, index, f"id {number}", data, start, end))

    def define(flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        reader.define(number, data, start, end)

    Ends({Kind.ANSWER: take, Kind.DEFINE: define}).receive(_joined(out), cuts)
    assert len(got) == 2 * len(sent)
    for number, ((answer, served_by), told) in enumerate(zip(got, [*sent, *sent], strict=True)):
        model, version, tensors, serving, rid = told
        assert (answer.model, answer.version, answer.id) == (model, version, f"id {number}")
        assert _plain(answer.outputs) == _plain(tensors)
        s = served_by.serving
        assert (s.variant, s.assigned, s.revision, s.reason) == serving
        assert served_by.rid == rid


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Return good messages with some bytes changed, cut out or put in; or any bytes at all."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    writer, out = RequestWriter(frames.nowhere, THRESHOLD_BYTES), list[Part]()
    for number, request in enumerate(draw(st.lists(requests(), min_size=1, max_size=3))):
        block = HeaderBlocks().of(request.header)
        writer.write(out, number, request, block, draw(FORMS))
    data = bytearray(_joined(out))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["change", "cut", "put"])):
            case "change":
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at : at + draw(st.integers(1, 9))]
            case _:
                data[at:at] = draw(st.binary(max_size=9))
        if not data:
            break
    return bytes(data)


@given(broken(), st.lists(st.integers(0, 3_000), max_size=4))
def test_bytes_that_are_no_messages_raise_nothing_and_give_requests_of_known_types_only(
    data: bytes, cuts: list[int]
) -> None:
    asyncio.run(_taken(data, cuts))


async def _taken(data: bytes, cuts: list[int]) -> None:
    reader = RequestReader(frames.nothing_shared)

    def take(flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        request, by_output = reader.read(flags, index, data, start, end)
        assert all(isinstance(v, (bool, int, float, str)) for v in request.parameters.values())
        assert all(isinstance(v, bool) for v in by_output.values())
        assert all(isinstance(t.data, bytes) for t in request.inputs)
        request.header("x-user-id")

    def define(flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        reader.define(number, data, start, end)

    def error(flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        read_error(data, start, end)

    take_all = {Kind.INFER: take, Kind.DEFINE: define, Kind.ERROR: error}
    Ends(take_all).receive(data, cuts)


@given(HEADERS, st.sampled_from(["x-user-id", "x", "user-id", "x-id", ""]))
def test_a_header_is_found_in_a_block_as_in_the_headers(
    pairs: list[tuple[bytes, bytes]], name: str
) -> None:
    shown = Shown(pairs)
    for block in (block_of(pairs), HeaderBlocks().of(shown.header)):
        assert HeaderBlock(block).find(name) == shown.header(name)


@given(st.data())
def test_slots_never_overlap_and_all_of_an_arena_is_free_in_the_end(data: st.DataObject) -> None:
    arena = Arena(16 * PAGE_BYTES)
    slots: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 20))):
        wanted = data.draw(st.integers(-20, 20))
        if wanted < len(slots) and wanted >= 0:
            offset = sorted(slots)[wanted]
            del slots[offset]
            arena.free(offset)
            continue
        size = data.draw(st.integers(1, 5 * PAGE_BYTES))
        offset = arena.put(bytes(size))
        pages = math.ceil(size / PAGE_BYTES) * PAGE_BYTES
        if offset == frames.INLINE:
            room = _largest_gap(slots, arena.size_bytes)
            assert room < pages
            continue
        assert all(offset + pages <= o or o + s <= offset for o, s in slots.items())
        assert 0 <= offset <= arena.size_bytes - pages
        slots[offset] = pages
    for offset in slots:
        arena.free(offset)
    assert arena.put(bytes(arena.size_bytes)) == 0
    arena.close()


def _largest_gap(slots: dict[int, int], end: int) -> int:
    starts = [*sorted(slots), end]
    ends = [0, *(offset + slots[offset] for offset in sorted(slots))]
    return max(start - before for start, before in zip(starts, ends, strict=True))
