"""How connections of the predict listener end: clients that go away, that are slow, that are many.

On both event loops, over a real pipeline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from gateway.config import LimitsConfig
from gateway.http_api.fast.connection import Connection
from gateway.http_api.fast.shared import READ_BYTES
from tests.support.batching import until
from tests.support.http_wire import (
    LOOPS,
    Port,
    Wire,
    chunked,
    head,
    image,
    infer,
    open_port,
    row,
    run,
)

pytestmark = pytest.mark.parametrize("loop", LOOPS)
NOW: Final = b"GET /now HTTP/1.1\r\nhost: x\r\n\r\n"
HELD: Final = b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n"
WAYS: Final[dict[str, Callable[[Wire], None]]] = {"closes": Wire.close, "resets": Wire.reset}


# Clients that go away.


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_goes_away_takes_its_requests_out_of_the_queue(
    loop: str, way: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            stays, goes = await port.connect(), await port.connect()
            stays.send(infer(1.0, model="held"))
            await port.in_flight(1)
            goes.send(infer(2.0, model="held"), infer(3.0, model="held"), infer(4.0))
            await port.queued("held", 2)
            stays.send(infer(5.0, model="held"))
            await port.queued("held", 3)
            WAYS[way](goes)
            await port.queued("held", 1)
            port.desk.shelf.gate.open()
            assert (await stays.answer()).values == [1.0]
            assert (await stays.answer()).values == [5.0]
            assert port.statistics("held").cancelled == 2

    run(loop, work)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /v2",
        head(content_length="100"),
        head(content_length="100") + b"{",
        head(transfer_encoding="chunked") + b"3\r\nab",
        head(expect="100-continue", content_length="10"),
        b"POST /echo HTTP/1.1\r\ncontent-length: 10\r\n\r\n12",
        HELD,
        HELD + infer(1.0),
        NOW + b"GET",
        image(90_000, "gzip"),
        image(90_000),
        infer(1.0) * 50,
    ],
)
def test_a_client_may_go_away_at_every_stage(
    loop: str, way: str, begun: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            for delay_s in (0, 0.002, 0.02):
                wire = await port.connect()
                wire.send(begun)
                await asyncio.sleep(delay_s)
                WAYS[way](wire)
            port.application.may_answer.set()
            await port.connections(0)
            await port.in_flight(0)
            other = await port.connect()
            other.send(infer(1.0))
            assert (await other.answer()).values == [1.0]
        assert caplog.records == []

    run(loop, work)


def test_an_answer_never_reaches_another_connection(loop: str, tmp_path: Path) -> None:
    """File descriptors and objects are used again at once: a late answer must find nobody."""

    async def work() -> None:
        async with open_port(tmp_path) as port:
            for number in range(50):
                goes = await port.connect()
                goes.send(infer(-1.0, model="held"), infer(-2.0))
                await until(lambda: port.desk.pipeline.in_flight > 0)
                goes.reset()
                stays = await port.connect()
                stays.send(infer(float(number)))
                port.desk.shelf.gate.let_go(1)
                assert (await stays.answer()).values == [float(number)]
                stays.close()
                await port.connections(0)
                await port.in_flight(0)

    run(loop, work)


def test_a_client_that_has_gone_while_its_body_is_inflated_is_not_served(
    loop: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(image(200_000, "gzip"))
            await wire.writer.drain()
            wire.reset()
            await port.connections(0)
            await asyncio.sleep(0.1)
            assert port.desk.pipeline.in_flight == 0

    run(loop, work)


# Clients that are slow.

QUICK: Final = LimitsConfig(handshake_timeout_s=0.2, slow_peer_timeout_s=0.2)


@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (b"", None),
        (b"POST /v2/models/echo/in", 408),
        (infer(1.0) + b"POST /v2/models/echo/in", 408),
        (head(content_length="100") + b"{", 408),
        (head(content_length="100"), 408),
        (head(transfer_encoding="chunked") + b"5\r\nab", 408),
        (b"POST /echo HTTP/1.1\r\ncontent-length: 10\r\n\r\n12", 408),
    ],
)
def test_a_request_that_stalls_is_given_up(
    loop: str, begun: bytes, status: int | None, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path, limits=QUICK) as port:
            wire = await port.connect()
            wire.send(begun)
            if begun.startswith(infer(1.0)):
                assert (await wire.answer()).values == [1.0]
            if status is not None:
                late = await wire.answer()
                assert late.status == status
                assert late.error == "the request did not arrive in time"
                assert late.header("connection") == "close"
            assert await wire.rest() == b""
            assert port.listener.statistics().timeouts == 1
            wire.close()
            await port.connections(0)

    run(loop, work)


def test_a_head_that_drips_is_given_up_however_it_drips(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path, limits=QUICK) as port:
            wire = await port.connect()
            begun_s = time.monotonic()
            while time.monotonic() - begun_s < 1.5 and port.listener.statistics().timeouts == 0:
                wire.send(b"x")
                await asyncio.sleep(0.02)
            assert port.listener.statistics().timeouts == 1

    run(loop, work)


def test_a_body_that_keeps_coming_may_take_longer_than_the_limit(loop: str, tmp_path: Path) -> None:
    content = row(1.0)

    async def work() -> None:
        async with open_port(tmp_path, limits=QUICK) as port:
            for framed in (
                infer(body=content),
                head(transfer_encoding="chunked") + chunked(content),
            ):
                wire = await port.connect()
                step = len(framed) // 8
                wire.send(framed[: len(framed) - 8 * 8])
                for start in range(len(framed) - 8 * 8, len(framed), 8):
                    await asyncio.sleep(0.08)
                    wire.send(framed[start : start + 8])
                assert step
                assert (await wire.answer()).values == [1.0]

    run(loop, work)


def test_a_connection_without_requests_is_closed_in_time_and_not_before(
    loop: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path, keep_alive_s=0.4) as port:
            wire = await port.connect()
            for request in (infer(1.0), NOW):
                wire.send(request)
                await wire.answer()
                await asyncio.sleep(0.2)
            wire.send(infer(2.0))
            assert (await wire.answer()).values == [2.0]
            assert await wire.rest() == b""
            assert port.listener.statistics().timeouts == 0

    run(loop, work)


@pytest.mark.parametrize("request_", [infer(1.0, model="held"), HELD])
def test_an_answer_may_take_longer_than_every_limit_of_the_peer(
    loop: str, request_: bytes, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path, limits=QUICK, keep_alive_s=0.2) as port:
            wire = await port.connect()
            wire.send(request_)
            await asyncio.sleep(0.8)
            port.desk.shelf.gate.open()
            port.application.may_answer.set()
            assert (await wire.answer()).status == 200

    run(loop, work)


def test_a_client_that_does_not_read_is_let_go(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path, limits=QUICK, limit_bytes=32 << 20) as port:
            wire = await port.connect(buffer_bytes=4_096)
            wire.send(image(4 << 20))
            await until(lambda: port.listener.statistics().timeouts == 1)
            await port.connections(0)

    run(loop, work)


def test_a_client_that_does_not_read_is_read_no_further(loop: str, tmp_path: Path) -> None:
    count, times = 20_000, 600

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect(buffer_bytes=4_096)
            sending = asyncio.create_task(flood(wire, image(count), times))
            await asyncio.sleep(0.5)
            served = len(port.desk.log.records)
            assert 0 < served < times
            await asyncio.sleep(0.3)
            assert len(port.desk.log.records) == served
            for _ in range(times):
                assert len((await wire.answer()).body) > 4 * count
            await sending

    run(loop, work)


async def flood(wire: Wire, request: bytes, times: int) -> None:
    """Send a request again and again, as fast as it is taken."""
    for _ in range(times):
        wire.send(request)
        await wire.writer.drain()


def test_a_client_that_makes_us_hold_too_much_is_let_go(loop: str, tmp_path: Path) -> None:
    limits = LimitsConfig(connection_bytes=1 << 20)

    async def work() -> None:
        async with open_port(tmp_path, limits=limits, limit_bytes=32 << 20) as port:
            wire = await port.connect(buffer_bytes=4_096)
            other = await port.connect()
            wire.send(image(4 << 20))  # an answer of 16 MB
            await until(lambda: port.listener.statistics().overflows == 1)
            await port.connections(1)
            other.send(infer(1.0))
            assert (await other.answer()).values == [1.0]

    run(loop, work)


FLOODS: Final = {
    "requests": infer(body=b"{" + b" " * 900) * 4_000,
    "a body in chunks": head(transfer_encoding="chunked")
    + (b"800\r\n" + b" " * 2_048 + b"\r\n") * 500,
    "a body for the application": b"POST /now HTTP/1.1\r\ncontent-length: 4000000\r\n\r\n"
    + b" " * 4_000_000,
}


@pytest.mark.parametrize("case", FLOODS)
def test_one_who_floods_gives_way_to_others_after_every_read(
    loop: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel holds much more than one read: in how many turns of the loop is it taken?"""
    turn, reads = 0, [0]
    updated = Connection.buffer_updated

    def watched(connection: Connection, nbytes: int) -> None:
        reads[turn] += nbytes
        updated(connection, nbytes)

    def turns() -> None:
        nonlocal turn
        turn += 1
        reads.append(0)
        asyncio.get_running_loop().call_soon(turns)

    monkeypatch.setattr(Connection, "buffer_updated", watched)

    async def work() -> None:
        turns()
        async with open_port(tmp_path, limit_bytes=2 << 20) as port:
            wire = await port.connect()
            wire.send(FLOODS[case])
            await until(lambda: sum(reads) > 20 * READ_BYTES)
            assert max(reads) <= READ_BYTES + 1_000  # the rest of a body that a read begins

    run(loop, work)


# Too many, and too much.


def test_connections_over_the_limit_are_closed_at_once(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path, limits=LimitsConfig(connections=3)) as port:
            wires = [await port.connect() for _ in range(3)]
            await port.connections(3)
            refused = await port.connect()
            assert await refused.rest() == b""
            assert port.listener.statistics().refused_connections == 1
            for wire in wires:
                wire.send(infer(1.0))
                assert (await wire.answer()).values == [1.0]
            wires[0].close()
            await port.connections(2)
            again = await port.connect()
            again.send(infer(2.0))
            assert (await again.answer()).values == [2.0]

    run(loop, work)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_head_over_the_limit_is_refused(loop: str, is_whole: bool, tmp_path: Path) -> None:
    limits = LimitsConfig(header_bytes=4_096)
    fits = head(a="x" * (4_096 - len(head(a="", content_length="0"))), content_length="0")
    assert len(fits) == 4_096
    over = fits.replace(b"a: ", b"a: x")

    async def work() -> None:
        async with open_port(tmp_path, limits=limits) as port:
            wire = await port.connect()
            wire.send(infer(1.0), fits, over if is_whole else over[:-4] + b"x" * 4)
            assert (await wire.answer()).values == [1.0]
            assert (await wire.answer()).status == 400  # read, and without a body
            refused = await wire.answer()
            assert refused.status == 431
            assert refused.error == "the head of the request is larger than the limit of 4096 bytes"
            assert await wire.rest() == b""

    run(loop, work)


def test_a_large_length_alone_takes_no_memory(loop: str, tmp_path: Path) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096

    async def work() -> None:
        async with open_port(tmp_path, limit_bytes=1 << 30) as port:
            before = resident_bytes()
            for _ in range(200):
                wire = await port.connect()
                wire.send(head(content_length=str(1 << 30)), b"{")
            await port.connections(200)
            await asyncio.sleep(0.1)
            assert resident_bytes() - before < 100 << 20

    run(loop, work)


# The server's end.


def test_what_was_begun_is_finished_and_says_that_it_is_the_last(loop: str, tmp_path: Path) -> None:
    content = row(3.0)

    async def work() -> None:
        async with open_port(tmp_path) as port:
            idle, waits, sends, asks = [await port.connect() for _ in range(4)]
            for wire in (idle, sends):
                wire.send(infer(0.0))
                await wire.answer()
            waits.send(infer(1.0, model="held"), infer(2.0, model="held"))
            sends.send(head(content_length=str(len(content))), content[:5])
            asks.send(HELD)
            await port.in_flight(2)
            await until(lambda: port.application.entered == ["/held"])
            stopping = asyncio.create_task(port.listener.stop(10))
            assert await idle.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                await port.connect()
            sends.send(content[5:], infer(9.0))
            await is_last(sends, 3.0)
            port.desk.shelf.gate.open()
            port.application.may_answer.set()
            first = await waits.answer()
            assert (first.values, first.header("connection")) == ([1.0], None)
            await is_last(waits, 2.0)
            held = await asks.answer()
            assert (held.body, held.header("connection")) == (b"held", "close")
            await stopping

    async def is_last(wire: Wire, value: float) -> None:
        answer = await wire.answer()
        assert (answer.values, answer.headers[-1]) == ([value], ("connection", "close"))
        assert await wire.rest() == b""

    run(loop, work)


def test_what_does_not_end_within_the_limit_is_cut_off(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wires = [await port.connect() for _ in range(3)]
            wires[0].send(infer(1.0, model="held"))
            wires[1].send(HELD)
            wires[2].send(head(content_length="9"))
            await port.in_flight(1)
            await until(lambda: port.application.entered == ["/held"])
            begun_s = time.monotonic()
            await port.listener.stop(0.1)
            assert time.monotonic() - begun_s < 5
            assert [await wire.rest() for wire in wires] == [b""] * 3
            assert port.listener.statistics().connections == 0

    run(loop, work)


def test_a_listener_that_never_started_stops(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            await port.listener.stop(1)
            await port.listener.stop(1)

    run(loop, work)


def test_requests_while_the_process_drains_are_refused_and_the_connection_goes_on(
    loop: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            port.desk.lifecycle.drain()
            for _ in range(2):
                wire.send(infer(1.0))
                refused = await wire.answer()
                assert refused.status == 503
                assert refused.header("retry-after") == "1"
                assert [name for name, _ in refused.headers] == [
                    "date",
                    "content-type",
                    "retry-after",
                    "x-request-id",
                    "content-length",
                ]

    run(loop, work)


def test_two_thousand_clients_that_vanish_with_calls_in_flight_leave_nothing_behind(
    loop: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            stays = await port.connect()
            for number in range(100):
                await vanish(port, 20)
                stays.send(infer(float(number)))
                assert (await stays.answer()).values == [float(number)]
            port.desk.shelf.gate.open()
            await port.in_flight(0)
            await port.connections(1)
            assert port.statistics("held").queue.queued_requests == 0
        assert caplog.records == []

    run(loop, work)


async def vanish(port: Port, count: int) -> None:
    """Let so many clients go away, each with calls in flight."""
    wires = await asyncio.gather(*[port.connect() for _ in range(count)])
    for wire in wires:
        wire.send(infer(-1.0, model="held") * 2, infer(-2.0), head(content_length="50"), b"{")
    await until(lambda: port.desk.pipeline.in_flight >= 2 * count)
    for wire in wires:
        wire.reset()
    await port.connections(1)
