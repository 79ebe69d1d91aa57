from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.config import ServerConfig
from gateway.demo import gateway_process
from gateway.demo.gateway_process import Addresses, GatewayProcess, addresses
from gateway.demo.screen import DemoFailed

PORTS = {"http": 1, "grpc": 2, "metrics": 3, "admin": 4}
SERVING = {"event": "serving", "level": "info", "routes": ["digits"], **PORTS}


def log_of(folder: Path, *lines: object) -> Path:
    """Write a log whose lines are events, or text as it stands."""
    path = folder / "gateway.log"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_ports_are_read_from_the_line_that_says_serving(tmp_path: Path) -> None:
    log = log_of(tmp_path, {"event": "version ready"}, SERVING, {"event": "later"})
    assert gateway_process.serving_ports(log) == PORTS


@pytest.mark.parametrize(
    "lines", [[], [{"event": "version ready"}], [json.dumps(SERVING)[:-9]], ["serving", "12"]]
)
def test_a_log_without_that_line_or_with_half_of_it_names_no_ports(
    tmp_path: Path, lines: list[object]
) -> None:
    assert gateway_process.serving_ports(log_of(tmp_path, *lines)) is None


def test_wildcard_hosts_are_reached_by_the_loopback() -> None:
    server = ServerConfig(http="0.0.0.0:0", grpc="[::]:0", metrics="10.1.2.3:9", admin="host:8")
    assert addresses(server, PORTS) == Addresses(
        http=("127.0.0.1", 1), grpc=("::1", 2), metrics=("10.1.2.3", 3), admin=("host", 4)
    )


def test_urls_put_ipv6_hosts_in_brackets() -> None:
    assert gateway_process.url(("127.0.0.1", 80)) == "http://127.0.0.1:80"
    assert gateway_process.url(("::1", 80)) == "http://[::1]:80"


def test_the_end_of_the_log_is_readable_and_has_no_stack_trace(tmp_path: Path) -> None:
    failed = {"event": "failed", "level": "error", "model": "m", "trace": "Traceback\n  x\nOops: y"}
    log = log_of(
        tmp_path,
        failed,
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in <module>',
        "ImportError: no module",
    )
    assert gateway_process.last_lines(log) == [
        "  error   failed model=m: Oops: y",
        "  ImportError: no module",
    ]


def test_only_the_last_lines_of_a_long_log_are_shown(tmp_path: Path) -> None:
    log = log_of(tmp_path, *(f"line {n}" for n in range(100)))
    assert len(gateway_process.last_lines(log)) == gateway_process.LAST_LINES
    assert gateway_process.last_lines(log)[-1] == "  line 99"


def test_the_reason_why_it_does_not_start_is_found(tmp_path: Path) -> None:
    log = log_of(tmp_path, {"event": "cannot start", "reason": "cannot listen on a:1 for http"})
    assert gateway_process.refusal(log) == "cannot listen on a:1 for http"
    assert gateway_process.refusal(log_of(tmp_path, SERVING)) is None


def test_a_gateway_that_refuses_its_configuration_is_quoted(tmp_path: Path) -> None:
    process = GatewayProcess(tmp_path / "none.toml", ServerConfig(), tmp_path / "gateway.log")
    with pytest.raises(DemoFailed, match="the gateway ended with exit code 2; its log") as caught:
        process.wait_ready()
    assert process.has_ended
    (line,) = caught.value.details
    assert "cannot read" in line
    process.stop()


def test_a_gateway_that_is_not_ready_in_time_is_an_error_and_can_be_stopped(
    tmp_path: Path,
) -> None:
    process = GatewayProcess(tmp_path / "none.toml", ServerConfig(), tmp_path / "gateway.log")
    with pytest.raises(DemoFailed, match="is not ready after 0 s"):
        process.wait_ready(timeout_s=0)
    process.stop()
    assert process.has_ended
