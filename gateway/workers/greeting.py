"""The first words on a link: each side names itself and hands over its arena's file descriptor.

Done on the raw socket, before an event loop's transport takes it: file descriptors travel beside
the bytes, which no transport knows. The greeting is one small datagram-like write on a fresh
socket, so it is written and read whole or not at all.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Final, NamedTuple

from gateway.workers.frames import FrameError
from gateway.workers.tensors_shared import Arena

_GREETING: Final = struct.Struct("<8sQQ")
_MAGIC: Final = b"sluice\x00\x01"


class Greeting(NamedTuple):
    """What a peer said of itself."""

    front: int
    """Of a front; 0 of the engine process."""
    arena_fd: int
    """The receiver's to close; -1: the peer has no arena."""
    arena_bytes: int


def say(sock: socket.socket, index: int, arena: Arena | None) -> None:
    """Greet the peer; the arena's file descriptor is closed, as the peer has it now."""
    size, fds = (arena.size_bytes, [arena.fd]) if arena is not None else (0, [])
    socket.send_fds(sock, [_GREETING.pack(_MAGIC, index, size)], fds)
    if arena is not None:
        arena.handed_over()


async def hear(sock: socket.socket) -> Greeting:
    """Return the peer's greeting; FrameError if it is none, ConnectionError if it went away.

    Cancellation: nothing was taken from the socket.
    """
    await _readable(sock)
    data, fds, _, _ = socket.recv_fds(sock, _GREETING.size, 1)
    if not data:
        raise ConnectionResetError("the peer went away before its greeting")
    fd = fds[0] if fds else -1
    if len(data) == _GREETING.size:
        magic, front, arena_bytes = _GREETING.unpack(data)
        if magic == _MAGIC and (fd >= 0) == (arena_bytes > 0):
            return Greeting(front, fd, arena_bytes)
    if fd >= 0:
        os.close(fd)
    raise FrameError(f"no greeting: {data!r}")


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def tell() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(sock.fileno(), tell)
    try:
        await readable
    finally:
        loop.remove_reader(sock.fileno())
