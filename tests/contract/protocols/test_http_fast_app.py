"""The infer route before ASGI in the whole gateway: beside its other routes, and under TLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.certificates import issue
from tests.support.gateway import GatewayInProcess, LoopThread, in_process
from tests.support.http import ECHO, body, connect, tensor
from tests.support.served import CONFIG

ROW: Final = body(tensor())


def post(path: str, content: bytes) -> bytes:
    """Return a request."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def get(path: str, method: str = "GET") -> bytes:
    """Return a request without a body."""
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


def answers(received: bytes) -> Iterator[tuple[int, dict[str, str], bytes]]:
    """Yield status, headers and body of answers that have lengths and bodies."""
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        yield int(status.split()[1]), headers, received[:length]
        received = received[length:]


def test_every_route_may_follow_every_other_on_one_connection(gateway: GatewayInProcess) -> None:
    slow = body(tensor(shape=[1, 4], data=[1.0] * 4))
    requests = [
        (post(ECHO, ROW), 200),
        (get("/v2/models/echo_fp32"), 200),
        (post("/v2/models/slow/infer", slow), 200),
        (post(ECHO, ROW), 200),
        (get("/v2/health/ready"), 200),
        (get(ECHO), 405),
        (post("/v2/repository/index", b""), 200),
        (post("/v2/repository/models/mlp/load", b""), 403),
        (post("/v2/models/nobody/infer", ROW), 404),
        (post(ECHO, b"{"), 400),
        (get("/v2/nowhere"), 404),
        (post("/v2/models/split/infer", slow), 200),
    ]
    sent = b"".join(request for request, _ in requests) * 3
    last = post(ECHO, ROW).replace(b"host: x", b"connection: close")
    with connect(gateway) as connection:
        connection.sendall(sent + last)
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    statuses = [status for status, _, _ in answers(received)]
    assert statuses == [status for _, status in requests] * 3 + [200]


def test_answers_of_both_paths_have_the_same_headers_but_for_their_own(
    gateway: GatewayInProcess,
) -> None:
    sent = post(ECHO, ROW) + get("/v2") + post("/v2/models/nobody/infer", ROW) + get("/v2/nowhere")
    with connect(gateway) as connection:
        connection.sendall(sent + get("/v2").replace(b"host: x", b"connection: close"))
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    fast, slow, refused, unknown, _ = [list(headers) for _, headers, _ in answers(received)]
    assert fast == ["date", "content-type", "x-request-id", "x-sluice-reason", "content-length"]
    assert refused == ["date", "content-type", "x-request-id", "content-length"]
    assert set(slow) == set(unknown) == {"date", "content-type", "content-length"}


def test_the_predict_port_speaks_tls_where_it_is_configured(
    loop_thread: LoopThread, served_root: Path, tmp_path: Path
) -> None:
    certificates = issue(tmp_path)
    tls = {
        "certificate": str(certificates.server.certificate),
        "key": str(certificates.server.key),
        "client_ca": str(certificates.authority),
    }
    config = {**CONFIG, "server": {**CONFIG["server"], "tls": tls}}
    with in_process(loop_thread, config, served_root) as gateway:
        known = certificates.client_context(shows_itself=True)
        with httpx.Client(base_url=f"https://{gateway.at.http}", verify=known) as client:
            for _ in range(2):
                assert json.loads(client.post(ECHO, content=ROW).content)["model_name"]
            assert client.get("/v2/health/ready").status_code == 200
        unknown = certificates.client_context()
        with (
            httpx.Client(base_url=f"https://{gateway.at.http}", verify=unknown) as client,
            pytest.raises(httpx.TransportError),
        ):
            client.get("/v2/health/ready")
        assert httpx.get(f"http://{gateway.at.metrics}/metrics").status_code == 200
