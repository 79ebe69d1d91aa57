"""Binds listening sockets; a taken port is an error with the port's name in it."""

from __future__ import annotations

import socket
from typing import Final

BACKLOG: Final = 2048
"""Connections that wait to be accepted."""


class AddressInUse(Exception):
    """A listener's address cannot be bound."""

    def __init__(self, *, name: str, host: str, port: int, why: str) -> None:
        super().__init__(f"cannot listen on {host}:{port} for {name}: {why}")


def bind(name: str, host: str, port: int) -> socket.socket:
    """Return a listening TCP socket; raises AddressInUse."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, because asyncio sets TCP_NODELAY only on sockets that say that they are TCP.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        # Without it two processes could both bind the port, and only one of them serve it.
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise AddressInUse(name=name, host=host, port=port, why=exc.strerror or str(exc)) from None
    return sock
