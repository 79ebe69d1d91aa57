"""Redis' own files are written anew, and nothing deleted is left in them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.demo.redis_server import RedisBinary
from gateway.prediction_log.erasure import persistence
from gateway.prediction_log.erasure.persistence import NotRewritten
from tests.support.erasures import MARK, files_with, plain_redis
from tests.support.redis import redis_binaries

pytestmark = pytest.mark.redis


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source.split()[0])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    binary: RedisBinary = request.param
    with plain_redis(binary) as (_, client):
        yield client


def folder_of(client: redis.Redis) -> Path:
    found: Any = client.config_get("dir")
    return Path(found["dir"])


def gone_in_time(folder: Path) -> bool:
    """Redis 7 deletes the files that it replaced in a thread of its own, a moment later."""
    limit_s = time.monotonic() + 5
    while files_with(folder, [MARK]):
        if time.monotonic() > limit_s:
            return False
        time.sleep(0.01)
    return True


def test_deleted_bytes_leave_the_append_only_file_and_the_snapshot(client: redis.Redis) -> None:
    client.set("k", MARK)
    client.bgsave(schedule=False)
    while client.info("persistence")["rdb_bgsave_in_progress"]:
        pass
    client.delete("k")
    folder = folder_of(client)
    assert len(files_with(folder, [MARK])) == 2
    done = persistence.rewrite(client, timeout_s=20)
    assert gone_in_time(folder)
    assert done.append_only_s is not None
    assert done.replicas == 0


def test_a_server_without_an_append_only_file_writes_its_snapshot(client: redis.Redis) -> None:
    client.config_set("appendonly", "no")
    assert persistence.rewrite(client, timeout_s=20).append_only_s is None
    assert (folder_of(client) / "dump.rdb").is_file()


def test_files_that_are_being_written_already_are_written_again(client: redis.Redis) -> None:
    client.config_set("rdb-key-save-delay", 20_000)
    for number in range(20):
        client.set(f"k{number}", MARK)
    client.bgsave(schedule=False)  # takes 0.4 s, and what it writes has the mark
    client.flushall()
    pauses = 0

    def count() -> None:
        nonlocal pauses
        pauses += 1
        client.config_set("rdb-key-save-delay", 0)

    persistence.rewrite(client, timeout_s=20, each_pause=count)
    assert pauses > 0
    assert gone_in_time(folder_of(client))


def test_a_server_that_cannot_write_is_told_of(client: redis.Redis) -> None:
    client.config_set("appendonly", "no")
    folder = folder_of(client)
    target = folder / "dump.rdb"
    target.mkdir()  # what is renamed into its place is refused
    (target / "x").touch()
    with pytest.raises(NotRewritten, match="failed to write its snapshot"):
        persistence.rewrite(client, timeout_s=20)


def test_a_server_that_takes_too_long_is_told_of(client: redis.Redis) -> None:
    client.config_set("rdb-key-save-delay", 200_000)
    for number in range(20):
        client.set(f"k{number}", b"x")
    with pytest.raises(NotRewritten, match=r"within 0\.2 s"):
        persistence.rewrite(client, timeout_s=0.2)
    client.config_set("rdb-key-save-delay", 0)


def test_a_server_that_does_not_allow_it_is_told_of(client: redis.Redis) -> None:
    client.acl_setuser(
        "limited",
        enabled=True,
        nopass=True,
        keys=["*"],
        commands=["+@all", "-bgsave", "-bgrewriteaof"],
    )
    at = client.connection_pool.connection_kwargs
    limited = redis.Redis(
        host=at["host"], port=at["port"], username="limited", password="x", protocol=2
    )
    with pytest.raises(NotRewritten, match=r"(?i)permission|NOPERM"):
        persistence.rewrite(limited, timeout_s=5)
    limited.close()
