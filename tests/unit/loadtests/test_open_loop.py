from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from loadtests.open_loop import OpenLoop

ANSWER = b"HTTP/1.1 %d Fine\r\ncontent-length: 2\r\n\r\n{}"
REQUEST = b"GET / HTTP/1.1\r\n\r\n"
RATE = 500.0

Behaviour = Callable[[int], Awaitable[bytes]]
"""Takes the number of a request; returns what is sent back, nothing to end the connection."""


class Server:
    """Answers each request as it is told to, and counts."""

    def __init__(self, behave: Behaviour) -> None:
        self.requests = 0
        self.connections = 0
        self._behave = behave

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                answer = await self._behave(self.requests)
                if not answer:
                    break
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def load(behave: Behaviour, *, duration_s: float, runs: int = 1) -> tuple[Server, OpenLoop, int]:
    """Load a server; return it, the load, and how many good answers there were."""

    async def run() -> tuple[Server, OpenLoop, int]:
        server, answers = Server(behave), 0
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            host, port = listening.sockets[0].getsockname()
            async with OpenLoop((host, port), lambda: REQUEST, rate=RATE) as asked:
                for _ in range(runs):
                    answers += len(await asked.run(duration_s))
            return server, asked, answers

    return asyncio.run(run())


async def at_once(_: int) -> bytes:
    return ANSWER % 200


def test_so_many_requests_are_sent_and_connections_are_kept() -> None:
    server, asked, answers = load(at_once, duration_s=0.1, runs=2)
    assert answers == server.requests == 2 * 0.1 * RATE
    assert server.connections < answers
    assert asked.failures == []


def test_an_answer_that_does_not_come_holds_up_no_other_request() -> None:
    """The first request is answered when the last one has come, which a closed loop never sends."""
    total = round(0.1 * RATE)

    async def run() -> tuple[int, list[str]]:
        all_sent = asyncio.Event()

        async def behave(number: int) -> bytes:
            if number == total:
                all_sent.set()
            await all_sent.wait()
            return ANSWER % 200

        server = Server(behave)
        async with (
            await asyncio.start_server(server, "127.0.0.1", 0) as listening,
            OpenLoop(listening.sockets[0].getsockname(), lambda: REQUEST, rate=RATE) as asked,
        ):
            return len(await asked.run(0.1)), asked.failures

    assert asyncio.run(run()) == (total, [])


def test_what_is_no_good_answer_is_a_failure_and_the_load_goes_on() -> None:
    async def behave(number: int) -> bytes:
        if number == 1:
            return b""
        return ANSWER % (503 if number == 2 else 200)

    server, asked, answers = load(behave, duration_s=0.1)
    assert answers == server.requests - 2 == 0.1 * RATE - 2
    assert sorted(failure[:4] for failure in asked.failures) == ["503:", "Loop"]
