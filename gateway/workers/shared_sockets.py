"""Sockets of one port for several processes."""

from __future__ import annotations

import socket

from gateway.sockets import BACKLOG, AddressInUse, bind


def bind_shared(
    name: str, host: str, port: int, count: int, *, is_listening: bool
) -> list[socket.socket]:
    """Return listening TCP sockets of one address, over which the kernel spreads connections.

    A port that somebody else listens on is refused, although SO_REUSEPORT alone would share it
    with any process of the same user: an exclusive socket is bound first, and closed.

    Args:
        name: of the listener, for the error.
        host, port: address; port 0 picks a free one.
        count: how many sockets.
        is_listening: False: the sockets only keep the port for who binds it as well.

    Raises:
        AddressInUse: the address cannot be bound.
    """
    probe = bind(name, host, port)
    port = probe.getsockname()[1]
    probe.close()
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, port))
            if is_listening:
                sock.listen(BACKLOG)
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise AddressInUse(name=name, host=host, port=port, why=exc.strerror or str(exc)) from None
    return sockets
