"""Pipelining on the predict listener: answers leave in the order of their requests, bounded.

On both event loops, over a real pipeline. `held` answers when the test says so, `echo` at once.
"""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from pathlib import Path

import pytest

from engines.tensors import Raw
from gateway.config import LimitsConfig
from gateway.http_api import body as bodies
from gateway.http_api.fast.queue import MAX_PIPELINED
from tests.support.batching import until
from tests.support.http_wire import LOOPS, Wire, chunked, head, image, infer, open_port, row, run

pytestmark = pytest.mark.parametrize("loop", LOOPS)
NOW = b"GET /now HTTP/1.1\r\nhost: x\r\n\r\n"
HELD = b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n"


async def values_of(wire: Wire, count: int) -> list[float]:
    """Return the values of the next answers, each of which has one."""
    return [(await wire.answer()).values[0] for _ in range(count)]


def test_a_fast_answer_waits_for_the_slow_one_before_it(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire, other = await port.connect(), await port.connect()
            wire.send(infer(1.0, model="held"), infer(2.0), infer(3.0, model="held"), infer(4.0))
            await until(lambda: port.desk.pipeline.in_flight == 2)  # both echoes are ready
            other.send(infer(5.0))
            assert (await other.answer()).values == [5.0]
            port.desk.shelf.gate.let_go(1)
            assert await values_of(wire, 2) == [1.0, 2.0]
            assert port.desk.pipeline.in_flight == 1
            port.desk.shelf.gate.let_go(1)
            assert await values_of(wire, 2) == [3.0, 4.0]

    run(loop, work)


def test_infer_calls_behind_each_other_are_queued_together(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(*[infer(float(n), model="held") for n in range(5)])
            await port.queued("held", 4)
            port.desk.shelf.gate.let_go(5)
            assert await values_of(wire, 5) == [0.0, 1.0, 2.0, 3.0, 4.0]

    run(loop, work)


def test_another_request_waits_for_all_before_it_and_all_behind_it_wait_for_its_end(
    loop: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(1.0, model="held"), HELD, infer(2.0), NOW, NOW, infer(3.0))
            await port.in_flight(1)
            await asyncio.sleep(0.02)
            assert port.application.entered == []
            port.desk.shelf.gate.open()
            assert (await wire.answer()).values == [1.0]
            await until(lambda: port.application.entered == ["/held"])
            await asyncio.sleep(0.02)
            assert len(port.desk.log.records) == 1
            port.application.may_answer.set()
            assert (await wire.answer()).body == b"held"
            assert (await wire.answer()).values == [2.0]
            assert [(await wire.answer()).body for _ in range(2)] == [b"now", b"now"]
            assert (await wire.answer()).values == [3.0]

    run(loop, work)


def test_bodies_of_every_kind_may_follow_each_other_on_one_connection(
    loop: str, tmp_path: Path
) -> None:
    echo = b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    long = b"POST /echo HTTP/1.1\r\ncontent-length: 300000\r\n\r\n" + b"y" * 300_000
    request = b"".join(
        [
            infer(1.0),
            echo + chunked(b"a", b"bc"),
            head(transfer_encoding="chunked") + chunked(row(2.0)),
            image(30_000),
            long,
            infer(body=b"{"),
            NOW,
            image(2),
        ]
    )

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            for _ in range(2):
                wire.send(request)
                await is_answered(wire)
            for step in (1_000, 65_536):
                await wire.drip(request, step=step)
                await is_answered(wire)

    async def is_answered(wire: Wire) -> None:
        assert (await wire.answer()).values == [1.0]
        assert (await wire.answer()).body == b"abc"
        assert (await wire.answer()).values == [2.0]
        assert (await wire.answer()).values == list(range(30_000))
        assert (await wire.answer()).body == b"y" * 300_000
        assert (await wire.answer()).status == 400
        assert (await wire.answer()).body == b"now"
        assert (await wire.answer()).values == [0.0, 1.0]

    run(loop, work)


def test_a_thousand_pipelined_requests_are_all_answered_in_order_a_bounded_number_at_a_time(
    loop: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(*[infer(float(n), model="held") for n in range(1_000)])
            await port.in_flight(MAX_PIPELINED)
            await asyncio.sleep(0.05)
            assert port.desk.pipeline.in_flight == MAX_PIPELINED
            most = 0

            def watch() -> bool:
                nonlocal most
                most = max(most, port.desk.pipeline.in_flight)
                return len(port.desk.log.records) == 1_000

            port.desk.shelf.gate.open()
            await until(watch)
            assert await values_of(wire, 1_000) == [float(n) for n in range(1_000)]
            assert most <= MAX_PIPELINED

    run(loop, work)


def test_a_thousand_pipelined_requests_of_every_route_are_answered_in_order(
    loop: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(*[NOW if n % 7 == 3 else infer(float(n)) for n in range(1_000)])
            for n in range(1_000):
                answer = await wire.answer()
                assert answer.body == b"now" if n % 7 == 3 else answer.values == [float(n)]

    run(loop, work)


def test_an_error_among_answers_keeps_its_place(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(
                infer(1.0, model="held"),
                infer(2.0, model="nobody"),
                infer(body=b"[]"),
                infer(3.0, x_sluice_timeout_ms="soon"),
                infer(4.0),
            )
            await port.in_flight(1)
            port.desk.shelf.gate.open()
            statuses = [(await wire.answer()).status for _ in range(5)]
            assert statuses == [200, 404, 400, 400, 200]

    run(loop, work)


def test_what_is_no_request_is_refused_after_the_answers_before_it(
    loop: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(1.0, model="held"), b"nonsense\r\n\r\n", infer(2.0))
            await port.in_flight(1)
            await asyncio.sleep(0.02)
            port.desk.shelf.gate.open()
            assert (await wire.answer()).values == [1.0]
            assert (await wire.answer()).status == 400
            assert await wire.rest() == b""

    run(loop, work)


def test_a_deadline_passes_in_its_place(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(1.0, model="held"))
            await port.in_flight(1)
            wire.send(infer(2.0, model="held", x_sluice_timeout_ms="20"), infer(3.0))
            await until(lambda: len(port.desk.log.records) == 2)
            port.desk.shelf.gate.open()
            assert [(await wire.answer()).status for _ in range(3)] == [200, 504, 200]

    run(loop, work)


def test_bodies_of_waiting_requests_are_bounded_in_bytes(loop: str, tmp_path: Path) -> None:
    limits = LimitsConfig(connection_bytes=1 << 20)
    request = image(100_000).replace(b"/echo/", b"/held/")  # 400 KB each

    async def work() -> None:
        async with open_port(tmp_path, limits=limits) as port:
            wire = await port.connect()
            wire.send(*[request] * 10)
            await port.in_flight(3)
            await asyncio.sleep(0.1)
            assert port.desk.pipeline.in_flight == 3
            port.desk.shelf.gate.open()
            for _ in range(10):
                assert (await wire.answer()).values == list(range(100_000))

    run(loop, work)


def test_bodies_count_as_they_are_after_decompression(loop: str, tmp_path: Path) -> None:
    content = row(*[0.0] * 100_000)  # 500 KB, in less than one
    request = infer(body=gzip.compress(content), model="held", content_encoding="gzip")

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(*[request] * 30)
            await port.in_flight(3)
            await asyncio.sleep(0.1)
            assert port.desk.pipeline.in_flight == 3
            port.desk.shelf.gate.open()
            for _ in range(30):
                assert len((await wire.answer()).values) == 100_000

    run(loop, work)


def test_large_bodies_are_inflated_one_at_a_time(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, inflating, most = threading.Lock(), 0, 0
    decompress = bodies.decompress

    def watched(body: Raw, encoding: str, limit_bytes: int) -> Raw:
        nonlocal inflating, most
        with lock:
            inflating += 1
            most = max(most, inflating)
        time.sleep(0.01)  # room for others, if there are any
        inflated = decompress(body, encoding, limit_bytes)
        with lock:
            inflating -= 1
        return inflated

    monkeypatch.setattr(bodies, "decompress", watched)

    async def work() -> None:
        async with open_port(tmp_path, limit_bytes=4 << 20) as port:
            wire = await port.connect()
            wire.send(*[image(200_000, "gzip")] * 5)
            for _ in range(5):
                assert (await wire.answer()).status == 200
            assert most == 1

    run(loop, work)


def test_small_requests_with_large_answers_are_read_as_the_answers_are(
    loop: str, tmp_path: Path
) -> None:
    content = row(*[0.0] * 100_000)
    request = infer(body=gzip.compress(content), content_encoding="gzip")

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect(buffer_bytes=4_096)
            wire.send(*[request] * 40)
            await until(lambda: len(port.desk.log.records) > 0)
            await asyncio.sleep(0.3)
            served = len(port.desk.log.records)
            assert served < 20  # what the kernel takes is as much as it likes to
            await asyncio.sleep(0.1)
            assert len(port.desk.log.records) == served
            for _ in range(40):
                assert len((await wire.answer()).values) == 100_000

    run(loop, work)
