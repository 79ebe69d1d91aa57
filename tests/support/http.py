"""Bodies of infer calls over HTTP, and raw connections, for tests of what only HTTP has."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any, Final

import httpx
import pytest

from tests.support.gateway import GatewayInProcess
from tests.support.transports import Answer, read_http

LENGTH: Final = "inference-header-content-length"
ECHO: Final = "/v2/models/echo_fp32/infer"
Document = dict[str, Any]  # Any: JSON


def tensor(name: str = "x", **fields: Any) -> Document:  # Any: JSON
    """Return a JSON input of one FP32 row, with some fields changed."""
    return {"name": name, "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0], **fields}


def body(*inputs: Document, **fields: Any) -> bytes:  # Any: JSON
    """Return a JSON body."""
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def binary(head: bytes, *tails: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a body with binary tensors, and its header."""
    return b"".join([head, *tails]), {LENGTH: str(len(head))}


def post(
    client: httpx.Client,
    content: bytes,
    headers: Mapping[str, str] | None = None,
    path: str = ECHO,
) -> Answer:
    """Post a body to a model and return the answer."""
    return read_http(client.post(path, content=content, headers=headers))


def size(byte_count: object) -> Document:
    """Return the field that makes a tensor binary."""
    return {"parameters": {"binary_data_size": byte_count}}


def connect(gateway: GatewayInProcess) -> socket.socket:
    """Open a connection to the predict port."""
    host, _, port = gateway.at.http.partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def receive(connection: socket.socket, until: bytes) -> bytes:
    """Read until some bytes have come."""
    received = b""
    while until not in received:
        received += connection.recv(65_536) or pytest.fail(f"closed after {received!r}")
    return received


def converse(gateway: GatewayInProcess, sent: bytes, until: bytes) -> bytes:
    """Send bytes on a connection of their own and return what comes back."""
    with connect(gateway) as connection:
        connection.sendall(sent)
        return receive(connection, until)
