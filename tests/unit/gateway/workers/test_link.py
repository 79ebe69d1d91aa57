"""Links over real sockets: one write per turn, large messages, peers that do not read."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.workers import frames, greeting
from gateway.workers.frames import FrameError, Kind
from gateway.workers.link import WRITE_LIMIT_BYTES, Link, widen
from gateway.workers.tensors_shared import Arena, SharedReader
from tests.support.batching import until

LIMIT_S = 5.0


class End:
    """One end of a link, and what came to it."""

    def __init__(self, *, arena: Arena | None = None, reads_when_full: bool = True) -> None:
        self.came: list[tuple[int, bytes]] = []
        self.is_lost = asyncio.Event()
        self.some_came = asyncio.Event()
        self.link = Link(
            {Kind.CALL: self._take},
            lambda: None,
            self.is_lost.set,
            arena=arena,
            reads_when_full=reads_when_full,
        )

    def _take(self, flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        self.came.append((number, data[start:end]))
        self.some_came.set()

    async def until(self, count: int) -> None:
        """Return when so many messages have come."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.came) < count:
                self.some_came.clear()
                await self.some_came.wait()


@asynccontextmanager
async def ends(near: End, far: End) -> AsyncIterator[None]:
    """Connect two ends for the length of a block."""
    loop = asyncio.get_running_loop()
    links = [near.link, far.link]
    for sock in socket.socketpair():
        sock.setblocking(False)
        widen(sock)
        await loop.create_unix_connection(lambda: links.pop(0), sock=sock)
    try:
        yield
    finally:
        near.link.abort()
        far.link.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@asynccontextmanager
async def raw_peer(end: End) -> AsyncIterator[socket.socket]:
    """Connect an end to a plain socket."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: end.link, sock=theirs)
    try:
        yield ours
    finally:
        end.link.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ours.close()


def test_what_is_sent_in_one_turn_leaves_in_one_write() -> None:
    async def scene() -> None:
        end = End()
        async with raw_peer(end) as peer:
            for number in range(100):
                end.link.send(frames.message(Kind.CALL, number, b"x"))
            with pytest.raises(BlockingIOError):
                peer.recv(1, socket.MSG_DONTWAIT)
            await asyncio.sleep(0.01)
            assert len(peer.recv(1 << 20)) == 100 * (frames.HEAD_BYTES + 1)

    asyncio.run(scene())


def test_messages_arrive_whole_and_in_order_whatever_their_size() -> None:
    async def scene() -> None:
        near, far = End(), End()
        sizes = [0, 1, 70_000, 3, 5_000_000, 0, 9]
        async with ends(near, far):
            for number, size in enumerate(sizes):
                near.link.send(frames.message(Kind.CALL, number, bytes([number]) * size))
            await far.until(len(sizes))
        assert far.came == [(n, bytes([n]) * size) for n, size in enumerate(sizes)]

    asyncio.run(scene())


@pytest.mark.parametrize(
    "data",
    [
        bytes(64),
        b"\xff" * 64,
        frames.message(Kind.HTTP, 1),
        frames.HEAD.pack(frames.HEAD_BYTES, 200, 0, 0, 1),
        frames.free_message([4_096]),
        frames.message(Kind.FREE, 0, b"abc"),
    ],
)
def test_bytes_that_are_no_message_for_this_end_end_the_link(data: bytes) -> None:
    async def scene() -> None:
        end = End(arena=Arena(1 << 20))
        async with raw_peer(end) as peer:
            peer.sendall(data)
            async with asyncio.timeout(LIMIT_S):
                await end.is_lost.wait()
            assert end.came == []

    asyncio.run(scene())


def test_an_end_whose_peer_does_not_read_is_full_and_takes_no_more_work() -> None:
    async def scene() -> None:
        near, far = End(reads_when_full=False), End()
        async with ends(near, far):
            assert far.link._transport is not None
            far.link._transport.pause_reading()
            answer = frames.message(Kind.CALL, 1, bytes(WRITE_LIMIT_BYTES + (4 << 20)))
            near.link.send(answer)
            await asyncio.sleep(0.01)
            assert near.link.is_full
            far.link.send(frames.message(Kind.CALL, 2))
            await asyncio.sleep(0.02)
            assert near.came == []
            far.link._transport.resume_reading()
            await far.until(1)
            await near.until(1)
            assert not near.link.is_full

    asyncio.run(scene())


def test_slots_go_back_to_the_writer_whichever_thread_dropped_the_view() -> None:
    async def scene() -> None:
        arena = Arena(1 << 20)
        near, far = End(arena=arena), End()
        far.link.reader = SharedReader(arena.fd, arena.size_bytes, far.link.freed)
        async with ends(near, far):
            first = far.link.reader.fetch(arena.put(bytes(100)), 100)
            views = [far.link.reader.fetch(arena.put(bytes(100)), 100)]
            assert len(first) == 100
            del first
            await asyncio.to_thread(views.clear)
            await until(lambda: not arena.taken_slots)

    asyncio.run(scene())


def test_a_greeting_hands_an_arena_over() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        arena = Arena(1 << 20)
        greeting.say(ours, 3, arena)
        heard = await greeting.hear(theirs)
        assert (heard.front, heard.arena_bytes) == (3, 1 << 20)
        reader = SharedReader(heard.arena_fd, heard.arena_bytes, lambda: None)
        assert bytes(reader.fetch(arena.put(b"abc"), 3)) == b"abc"
        assert arena.fd == -1
        for sock in (ours, theirs):
            sock.close()

    asyncio.run(scene())


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", bytes(24), b"x"])
def test_somebody_who_does_not_greet_is_refused(said: bytes) -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.sendall(said)
        with pytest.raises(FrameError, match="no greeting"):
            await greeting.hear(theirs)
        for sock in (ours, theirs):
            sock.close()

    asyncio.run(scene())


def test_somebody_who_goes_away_before_greeting_is_a_lost_connection() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.close()
        with pytest.raises(ConnectionResetError):
            await greeting.hear(theirs)
        theirs.close()

    asyncio.run(scene())
