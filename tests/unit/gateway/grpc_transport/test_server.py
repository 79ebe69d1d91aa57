"""The server on a socket, asked by grpcio: what clients of another make see."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop

from gateway.grpc_transport import Call, Method, Raw, Server, encode_metadata
from gateway.http2.limits import Limits
from gateway.sockets import AddressInUse
from tests.support.grpc_transport import (
    ECHO,
    SERVICE,
    CallClient,
    message,
    messages,
    pieces,
    serving,
    until,
)
from tests.support.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    frame,
    setting,
    window,
)

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]
BIG = bytes(range(256)) * (20 << 12)
"""20 MiB."""
HELLO = b"\0\0\6\0\1\0\0\0%c\0\0\0\0\1a"
"""A DATA frame that is a request, but for its stream."""


class Slow:
    """A unary method that never answers by itself."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = 0

    def start(self, call: Call, data: Raw) -> None:
        self.calls.append(call)
        call.on_cancel = self._cancel

    def _cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine on either loop. Any: as asyncio types it."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


def channel(server: Server, *options: tuple[str, Any]) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[*OPTIONS, *options])


# Any: grpcio types its methods by message and serializer; here both are bytes.
def unary(to: Any, name: str = "Echo") -> Any:
    return to.unary_unary(SERVICE + name)


def bidirectional(to: Any) -> Any:
    return to.stream_stream(SERVICE + "Stream")


async def ask(to: grpc.aio.Channel, data: bytes, name: str = "Echo", **options: Any) -> bytes:
    answer: bytes = await unary(to, name)(data, timeout=15, **options)
    return answer


Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.mark.parametrize("size", [0, 100, 100_000, len(BIG)])
def test_messages_of_any_size_go_both_ways(run: Run, size: int) -> None:
    async def scenario() -> None:
        async with serving() as server, channel(server) as to:
            assert await ask(to, BIG[:size]) == BIG[:size]
            assert server.statistics().held_bytes == 0

    run(scenario())


def test_many_calls_at_a_time_get_their_own_answers(run: Run) -> None:
    async def scenario() -> None:
        async with serving() as server, channel(server) as to:
            sent = [b"%d" % number * (number % 50) for number in range(2_000)]
            assert await asyncio.gather(*(ask(to, data) for data in sent)) == sent
            statistics = server.statistics()
            assert (statistics.calls, statistics.calls_opened) == (0, 2_000)

    run(scenario())


def test_large_messages_of_several_calls_are_not_mixed_up(run: Run) -> None:
    async def scenario() -> None:
        async with serving() as server, channel(server) as to:
            sent = [bytes((number,)) * 602_112 for number in range(16)]
            assert await asyncio.gather(*(ask(to, data) for data in sent)) == sent

    run(scenario())


def test_a_stream_goes_both_ways_at_a_time(run: Run) -> None:
    async def scenario() -> None:
        async with serving() as server, channel(server) as to:
            stream = bidirectional(to)(timeout=15)
            for number in range(100):
                await stream.write(b"%d" % number)
                assert await stream.read() == b"%d" % number
            await stream.done_writing()
            assert await stream.read() == grpc.aio.EOF
            assert await stream.code() == grpc.StatusCode.OK

    run(scenario())


def test_a_stream_of_large_messages_is_held_back_by_its_reader(run: Run) -> None:
    sizes: list[int] = []

    def start(call: Call) -> Callable[[Raw | None], None]:
        left = 200

        def go_on() -> None:
            nonlocal left
            while left and not call.is_full:
                left -= 1
                call.send(BIG[:100_000])
            sizes.append(call.connection.held_bytes)
            if not left and not call.is_done:
                call.finish()

        call.on_drained = go_on
        return lambda data: go_on() if data is not None else None

    async def scenario() -> None:
        methods = {SERVICE + "Stream": Method(start, is_streaming=True)}
        async with serving(methods) as server, channel(server) as to:
            stream = bidirectional(to)(timeout=15)
            await stream.write(b"go")
            got = 0
            async for data in stream:
                assert data == BIG[:100_000]
                got += 1
            assert got == 200
        assert max(sizes) < 2 << 20

    run(scenario())


def test_statuses_and_metadata_reach_the_client(run: Run) -> None:
    def fail(call: Call, data: Raw) -> None:
        value = call.head.header("x-value")
        many = [pair for pair in call.head.metadata if pair[0] == "many-bin"]
        call.send_metadata(encode_metadata([("early-bin", b"\0\xff")]))
        text = f"{value}, {many} 100 % käse\n"
        call.fail(5, text, encode_metadata([("late", "1"), ("late", "2"), ("l-bin", b"\1")]))

    async def scenario() -> None:
        async with (
            serving({SERVICE + "Echo": Method(fail, is_streaming=False)}) as server,
            channel(server) as to,
        ):
            metadata = (("x-value", "v"), ("many-bin", b"\1\2"), ("many-bin", b"\3"))
            call = unary(to)(b"", metadata=metadata, timeout=15)
            assert await call.code() == grpc.StatusCode.NOT_FOUND
            expected = "v, [('many-bin', b'\\x01\\x02'), ('many-bin', b'\\x03')] 100 % käse\n"
            assert await call.details() == expected
            assert ("early-bin", b"\0\xff") in tuple(await call.initial_metadata())
            assert tuple(await call.trailing_metadata()) == (
                ("late", "1"),
                ("late", "2"),
                ("l-bin", b"\1"),
            )

    run(scenario())


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("coding", ["none", "gzip", "deflate"])
def test_compression_works_both_ways(run: Run, compression: grpc.Compression, coding: str) -> None:
    async def scenario() -> None:
        async with serving(compression=coding) as server, channel(server) as to:
            for data in (b"", b"x" * 100_000, BIG[:3_000_000]):
                assert await ask(to, data, compression=compression) == data

    run(scenario())


def test_a_deadline_is_kept_and_the_handler_told(run: Run) -> None:
    slow = Slow()

    async def scenario() -> None:
        methods = {SERVICE + "Echo": Method(slow.start, is_streaming=False)}
        async with serving(methods) as server, channel(server) as to:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await unary(to)(b"", timeout=0.2)
            assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: slow.cancelled == 1)
            assert server.statistics().calls == 0

    run(scenario())


def test_a_cancelled_call_is_given_up(run: Run) -> None:
    slow = Slow()

    async def scenario() -> None:
        methods = {SERVICE + "Echo": Method(slow.start, is_streaming=False)}
        async with serving(methods) as server, channel(server) as to:
            calls = [unary(to)(b"", timeout=15) for _ in range(20)]
            await until(lambda: len(slow.calls) == 20)
            for call in calls[:10]:
                call.cancel()
            await until(lambda: slow.cancelled == 10)
            for kept in slow.calls:
                kept.reply(b"A")
            assert await asyncio.gather(*calls[10:]) == [b"A"] * 10
            assert server.statistics().calls == 0

    run(scenario())


def test_calls_of_a_connection_that_breaks_are_given_up(run: Run) -> None:
    slow = Slow()

    async def scenario() -> None:
        methods = {SERVICE + "Echo": Method(slow.start, is_streaming=False)}
        async with serving(methods) as server:
            client = CallClient(methods)
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            calls = [client.head(number) + HELLO % number for number in (1, 3)]
            writer.write(PREFACE + b"".join(calls) + client.head(5))
            await until(lambda: len(slow.calls) == 2)
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            await until(lambda: server.statistics().connections == 0)
            assert slow.cancelled == 2
            for call in slow.calls:
                call.reply(b"too late")

    run(scenario())


def test_an_unknown_method_is_refused_and_a_too_large_message_too(run: Run) -> None:
    async def scenario() -> None:
        async with serving(max_message_bytes=1_000) as server, channel(server) as to:
            for name, data, code, text in (
                ("Nope", b"", grpc.StatusCode.UNIMPLEMENTED, "Method not found!"),
                (
                    "Echo",
                    b"x" * 100_000,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "SERVER: Received message larger than max (100000 vs. 1000)",
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await ask(to, data, name)
                assert (error.value.code(), error.value.details()) == (code, text)
            assert await ask(to, b"still here") == b"still here"

    run(scenario())


def test_more_calls_than_streams_wait_for_each_other(run: Run) -> None:
    async def scenario() -> None:
        limits = Limits(streams_per_connection=8)
        async with serving(limits=limits) as server, channel(server) as to:
            sent = [b"%d" % number for number in range(300)]
            assert await asyncio.gather(*(ask(to, data) for data in sent)) == sent

    run(scenario())


def test_an_answer_gets_through_the_narrow_windows_of_a_plain_client(run: Run) -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = CallClient()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(PREFACE + frame(SETTINGS, 0, 0) + client.head(1))
            for part in pieces(message(BIG[: 3 << 20]), 16_384):
                writer.write(frame(DATA, 0, 1, part))
            writer.write(frame(DATA, END_STREAM, 1, b""))
            body = b""
            while True:
                head = await asyncio.wait_for(reader.readexactly(9), 10)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == DATA:
                    body += payload
                    writer.write(window(1, len(payload)) + window(0, len(payload)))
                elif head[3] == HEADERS and head[4] & END_STREAM:
                    break
            assert messages(body) == [BIG[: 3 << 20]]
            writer.close()

    run(scenario())


class InThread:
    """A server in a thread of its own, for clients that block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = Server(
            methods=ECHO,
            limits=Limits(),
            max_message_bytes=64 << 20,
            compression="none",
            name="gRPC",
            host="127.0.0.1",
            port=0,
        )
        self._run(self.server.start())

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.result(10)

    def close(self) -> None:
        self._run(self.server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def in_thread() -> Iterator[Server]:
    running = InThread()
    yield running.server
    running.close()


def test_the_blocking_client_works(in_thread: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{in_thread.port}", options=OPTIONS) as to:
        assert unary(to)(b"a", timeout=15) == b"a"
        with ThreadPoolExecutor(8) as pool:
            sent = [bytes((number,)) * 70_000 for number in range(100)]
            assert list(pool.map(lambda data: unary(to)(data, timeout=15), sent)) == sent
        answers = bidirectional(to)(iter([b"a", b"b"]), timeout=15)
        assert list(answers) == [b"a", b"b"]
        with pytest.raises(grpc.RpcError):
            unary(to, "Nope")(b"", timeout=15)


# The listener.


async def first_bytes(server: Server, **options: Any) -> bytes:
    """Connect and return a frame's head. Any: of asyncio.open_connection."""
    reader, writer = await asyncio.open_connection("localhost", server.port, **options)
    try:
        return await reader.readexactly(9)
    finally:
        writer.close()


def test_a_stop_serves_what_is_under_way_and_closes(run: Run) -> None:
    slow = Slow()

    async def scenario() -> None:
        methods = {SERVICE + "Echo": Method(slow.start, is_streaming=False)}
        async with serving(methods) as server, channel(server) as to:
            call = unary(to)(b"", timeout=15)
            await until(lambda: slow.calls)
            stopped: list[str] = []
            server.on_stop.append(lambda: stopped.append("begun"))
            stopping = asyncio.create_task(server.stop(10))
            await until(lambda: stopped)
            await asyncio.sleep(0.1)
            assert not stopping.done()
            slow.calls[0].reply(b"A")
            assert await call == b"A"
            began = time.monotonic()
            await stopping
            assert time.monotonic() - began < 2
            assert server.statistics().connections == 0

    run(scenario())


def test_a_stop_gives_up_what_is_not_answered_in_time(run: Run) -> None:
    slow = Slow()

    async def scenario() -> None:
        methods = {SERVICE + "Echo": Method(slow.start, is_streaming=False)}
        async with serving(methods) as server, channel(server) as to:
            call = unary(to)(b"", timeout=15)
            await until(lambda: slow.calls)
            await server.stop(0.2)
            assert slow.cancelled == 1
            assert await call.code() == grpc.StatusCode.UNAVAILABLE
            assert server.statistics().connections == 0

    run(scenario())


def test_a_stop_of_a_server_that_was_never_started_frees_the_port() -> None:
    options: dict[str, Any] = {
        "methods": ECHO,
        "limits": Limits(),
        "max_message_bytes": 1_000,
        "compression": "none",
        "name": "gRPC",
        "host": "127.0.0.1",
    }
    server = Server(port=0, **options)
    with pytest.raises(AddressInUse, match="for gRPC"):
        Server(port=server.port, **options)
    asyncio.run(server.stop(1))
    asyncio.run(Server(port=server.port, **options).stop(1))


def test_a_socket_that_was_handed_in_is_served(run: Run) -> None:
    async def scenario() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        async with serving(sock=sock) as server, channel(server) as to:
            assert server.port == sock.getsockname()[1]
            assert await ask(to, b"a") == b"a"

    run(scenario())


def test_more_connections_than_allowed_are_closed_at_once(run: Run) -> None:
    async def scenario() -> None:
        async with serving(limits=Limits(connections=2)) as server:
            lines = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
            for reader, _ in lines:
                assert await reader.readexactly(9)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await first_bytes(server)
            assert server.statistics().connections_refused == 1
            for _, writer in lines:
                writer.close()
            await until(lambda: server.statistics().connections == 0)
            async with channel(server) as to:
                assert await ask(to, b"a") == b"a"

    run(scenario())


def test_a_client_that_speaks_another_protocol_reads_a_goaway_and_the_end(run: Run) -> None:
    async def scenario() -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 1_000)
            data = await asyncio.wait_for(reader.read(), 10)
            assert b"no HTTP/2 preface" in data
            writer.close()
            await until(lambda: server.statistics().connections == 0)

    run(scenario())


def test_a_peer_that_does_not_read_is_not_read_from_and_holds_bounded_memory(run: Run) -> None:
    """It grants all the window there is, asks for much, and reads nothing at first."""

    def large(call: Call, data: Raw) -> None:
        call.reply(BIG[: 1 << 20])

    async def scenario() -> None:
        methods = {SERVICE + "Echo": Method(large, is_streaming=False)}
        limits = Limits(connection_bytes=8 << 20, slow_peer_timeout_s=1)
        async with serving(methods, limits=limits) as server:
            client = CallClient(methods)
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(PREFACE + setting(4, 0x7FFF_FFFF) + window(0, 0x7FFF_0000))
            for number in range(300):
                stream_id = 2 * number + 1
                writer.write(client.head(stream_id))
                writer.write(frame(DATA, END_STREAM, stream_id, b"\0\0\0\0\0"))
            await until(lambda: server.statistics().calls)
            highest = 0
            async with asyncio.timeout(12):
                while server.statistics().connections:
                    highest = max(highest, server.statistics().held_bytes)
                    await asyncio.sleep(0.01)
            assert highest <= 8 << 20
            writer.close()

    run(scenario())


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key)]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return key, cert


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate[1], certificate[0])
    context.set_alpn_protocols(["h2"])
    return context


def test_calls_go_over_tls(run: Run, certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(ssl=server_context(certificate)) as server:
            credentials = grpc.ssl_channel_credentials(certificate[1].read_bytes())
            address = f"localhost:{server.port}"
            async with grpc.aio.secure_channel(address, credentials, options=OPTIONS) as to:
                for size in (1, 100_000, len(BIG)):
                    assert await ask(to, BIG[:size]) == BIG[:size]
                await server.stop(5)

    run(scenario())


@pytest.mark.parametrize("protocols", [["http/1.1"], []])
def test_tls_without_http2_is_refused(
    run: Run, certificate: tuple[Path, Path], protocols: list[str]
) -> None:
    async def scenario() -> None:
        async with serving(ssl=server_context(certificate)) as server:
            context = ssl.create_default_context(cafile=str(certificate[1]))
            if protocols:
                context.set_alpn_protocols(protocols)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)):
                await first_bytes(server, ssl=context)
            await until(lambda: server.statistics().connections == 0)

    run(scenario())


def test_a_tls_handshake_that_never_comes_is_cut_off(
    run: Run, certificate: tuple[Path, Path]
) -> None:
    async def scenario() -> None:
        limits = Limits(handshake_timeout_s=0.5)
        async with serving(ssl=server_context(certificate), limits=limits) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()

    run(scenario())


def test_a_handshake_that_never_comes_is_cut_off(run: Run) -> None:
    async def scenario() -> None:
        async with serving(limits=Limits(handshake_timeout_s=0.5)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            data = await asyncio.wait_for(reader.read(), 10)
            assert b"no preface in time" in data
            writer.close()

    run(scenario())


def test_importing_the_transport_starts_nothing() -> None:
    code = "import threading, gateway.grpc_transport; assert threading.active_count() == 1"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
