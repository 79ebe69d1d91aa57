from __future__ import annotations

import socket
from pathlib import Path

import pytest

from loadtests import locust_process, run
from loadtests.locust_process import Load
from loadtests.run import Target


@pytest.mark.parametrize(
    ("admin", "is_local"),
    [("127.0.0.1:8003", True), ("localhost:1", True), ("[::1]:8003", True), ("10.0.0.7:1", False)],
)
def test_a_demo_is_only_for_this_machine(admin: str, is_local: bool) -> None:
    target = Target(http="127.0.0.1:8000", grpc="127.0.0.1:8001", admin=admin, route="digits")
    assert target.is_local is is_local


def test_half_a_gateway_is_no_gateway_and_no_reason_to_start_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it
        http, grpc = taken.getsockname()[1], bound.getsockname()[1]
        where = {"--http": http, "--grpc": grpc, "--admin": http}
        arguments = [text for name, port in where.items() for text in (name, f"127.0.0.1:{port}")]
        assert run.main([*arguments, "--dir", str(tmp_path / "demo")]) == 2
    assert f"nothing listens at grpc 127.0.0.1:{grpc}\n" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_an_address_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--http", "8000"]) == 2
    assert "'8000' is not of the form host:port" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--duration", "--users"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_durations_and_users_are_positive_whole_numbers(option: str, value: str) -> None:
    with pytest.raises(SystemExit) as refused:
        run.main([option, value])
    assert refused.value.code == 2


def test_locust_is_told_where_what_and_how_long() -> None:
    load = Load(http="http://h:1", grpc="h:2", route="digits", users=16, duration_s=60)
    line = " ".join(locust_process.command(load, Path("f.json")))
    for part in (
        "--headless",
        "--users 16",
        "--run-time 60s",
        "--host http://h:1",
        "--grpc h:2",
        "--route digits",
        "--figures f.json",
    ):
        assert part in line
    assert locust_process.LOCUST_FILE.is_file()
