"""The predict listener under TLS, with real certificates, on both event loops."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest

from gateway.config import LimitsConfig
from gateway.tls import server_context
from tests.support.certificates import Certificates, issue
from tests.support.http_wire import (
    HOST,
    LOOPS,
    chunked,
    head,
    image,
    infer,
    open_port,
    row,
    run,
)

pytestmark = pytest.mark.parametrize("loop", LOOPS)
QUICK = LimitsConfig(handshake_timeout_s=0.3, slow_peer_timeout_s=0.3)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Issue some certificates."""
    return issue(tmp_path_factory.mktemp("certificates"))


def context_of(certificates: Certificates, *, asks_clients: bool = False) -> ssl.SSLContext:
    """Return the listener's context."""
    settings = certificates.settings(asks_clients=asks_clients)
    return server_context(settings, certificates.folder, ["http/1.1"])


@pytest.mark.parametrize("step", [None, 3_000])
def test_requests_of_every_kind_pass(
    loop: str, step: int | None, certificates: Certificates, tmp_path: Path
) -> None:
    content = row(3.0)
    request = b"".join(
        [
            infer(1.0),
            b"GET /now HTTP/1.1\r\n\r\n",
            image(200_000),
            head(transfer_encoding="chunked") + chunked(content),
            b"POST /echo HTTP/1.1\r\ncontent-length: 100000\r\n\r\n" + b"z" * 100_000,
            *[infer(4.0)] * 300,
        ]
    )

    async def work() -> None:
        async with open_port(tmp_path, tls=context_of(certificates)) as port:
            wire = await port.connect(tls=certificates.client_context())
            sending = asyncio.create_task(wire.drip(request, step=step or len(request)))
            assert (await wire.answer()).values == [1.0]
            assert (await wire.answer()).body == b"now"
            assert (await wire.answer()).values == list(range(200_000))
            assert (await wire.answer()).values == [3.0]
            assert (await wire.answer()).body == b"z" * 100_000
            for _ in range(300):
                assert (await wire.answer()).values == [4.0]
            await sending

    run(loop, work)


def test_httpx_talks_to_it(loop: str, certificates: Certificates, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path, tls=context_of(certificates)) as port:
            async with httpx.AsyncClient(
                base_url=f"https://{HOST}:{port.listener.port}",
                verify=certificates.client_context(),
            ) as client:
                for _ in range(3):
                    reply = await client.post("/v2/models/echo/infer", content=row(1.0))
                    assert reply.json()["outputs"][0]["data"] == [1.0]
                assert (await client.get("/now")).text == "now"
            await port.connections(0)

    run(loop, work)


def test_a_client_without_a_certificate_is_not_served_where_one_is_demanded(
    loop: str, certificates: Certificates, tmp_path: Path
) -> None:
    async def work() -> None:
        context = context_of(certificates, asks_clients=True)
        async with open_port(tmp_path, tls=context) as port:
            known = await port.connect(tls=certificates.client_context(shows_itself=True))
            known.send(infer(1.0))
            assert (await known.answer()).values == [1.0]
            unknown = await port.connect(tls=certificates.client_context())
            unknown.send(infer(2.0))
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await unknown.answer()
            assert len(port.desk.log.records) == 1

    run(loop, work)


def test_the_last_answer_ends_the_connection(
    loop: str, certificates: Certificates, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path, tls=context_of(certificates)) as port:
            wire = await port.connect(tls=certificates.client_context())
            wire.send(infer(1.0, connection="close"))
            answer = await wire.answer()
            assert (answer.values, answer.header("connection")) == ([1.0], "close")
            assert await wire.rest() == b""
            await port.connections(0)

    run(loop, work)


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"nonsense\r\n\r\n", 400), (head(content_length="99999999"), 413), (b"POST", 408)],
)
def test_a_refusal_arrives_and_the_connection_does_not_stay_for_ever(
    loop: str, sent: bytes, status: int, certificates: Certificates, tmp_path: Path
) -> None:
    async def work() -> None:
        tls = context_of(certificates)
        async with open_port(tmp_path, tls=tls, limits=QUICK) as port:
            wire = await port.connect(tls=certificates.client_context())
            wire.send(sent)
            assert (await wire.answer()).status == status
            await port.connections(0)

    run(loop, work)


def test_who_does_not_shake_hands_is_closed_in_time(
    loop: str, certificates: Certificates, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path, tls=context_of(certificates), limits=QUICK) as port:
            silent, plain = await port.connect(), await port.connect()
            plain.send(infer(1.0))
            assert b"HTTP/" not in await plain.rest()
            assert await silent.rest() == b""
            assert port.listener.statistics().connections == 0

    run(loop, work)


def test_a_client_that_goes_away_takes_its_request_out_of_the_queue(
    loop: str, certificates: Certificates, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path, tls=context_of(certificates)) as port:
            stays = await port.connect(tls=certificates.client_context())
            stays.send(infer(1.0, model="held"))
            await port.in_flight(1)
            for way in ("close", "reset"):
                goes = await port.connect(tls=certificates.client_context())
                goes.send(infer(2.0, model="held"))
                await port.queued("held", 1)
                goes.close() if way == "close" else goes.reset()
                await port.queued("held", 0)
            port.desk.shelf.gate.open()
            assert (await stays.answer()).values == [1.0]

    run(loop, work)


def test_a_listener_with_open_connections_stops(
    loop: str, certificates: Certificates, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path, tls=context_of(certificates)) as port:
            idle = await port.connect(tls=certificates.client_context())
            idle.send(infer(1.0))
            await idle.answer()
            waits = await port.connect(tls=certificates.client_context())
            waits.send(infer(2.0, model="held"))
            await port.in_flight(1)
            stopping = asyncio.create_task(port.listener.stop(5))
            assert await idle.rest() == b""
            port.desk.shelf.gate.open()
            answer = await waits.answer()
            assert (answer.values, answer.header("connection")) == ([2.0], "close")
            await stopping

    run(loop, work)
