"""Binding listeners: a port that cannot be had is an error at once, with its name."""

from __future__ import annotations

import socket

import pytest

from gateway.sockets import AddressInUse, bind


def test_a_bound_socket_takes_connections_at_once() -> None:
    with bind("http", "127.0.0.1", 0) as listening:
        socket.create_connection(listening.getsockname(), timeout=5).close()


def test_a_taken_port_is_refused_by_name_also_before_anybody_serves_it() -> None:
    with bind("http", "127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(AddressInUse, match=rf"127\.0\.0\.1:{port} for admin: Address already"):
            bind("admin", "127.0.0.1", port)


def test_a_port_is_free_again_when_its_socket_is_closed() -> None:
    first = bind("http", "127.0.0.1", 0)
    port = first.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        first.accept()[0].close()  # leaves a connection in TIME_WAIT on the port
        first.close()
    bind("http", "127.0.0.1", port).close()


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(AddressInUse, match=r"cannot listen on 203\.0\.113\.1:0 for http"):
        bind("http", "203.0.113.1", 0)


def test_ipv6_is_listened_on_where_there_is_any() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        listening = bind("http", "::1", 0)
    except AddressInUse:
        pytest.skip("this machine has no IPv6 loopback")
    with listening:
        assert listening.family is socket.AF_INET6
