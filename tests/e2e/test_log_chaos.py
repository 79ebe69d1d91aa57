"""The loss contract under kills: whatever a client got an answer for stands in Redis, once.

Real gateways, real Redis servers, real clients over both protocols. The gateway keeps its replica's
name, ports and spool through every restart, as a service on a volume does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import redis

from tests.support.gateway import metric, wait_until
from tests.support.log_sites import (
    ASK,
    Site,
    assert_balanced,
    assert_complete,
    counted,
    is_complete,
    settled,
    spooled,
)
from tests.support.redis import running_redis
from tests.support.witness import OK, Witness, found, missing, rids

pytestmark = [pytest.mark.redis, pytest.mark.slow]

STEP: Final = 150
"""Answers between one event and the next."""


@pytest.mark.parametrize("append_only", [True, False], ids=["aof", "no-persistence"])
def test_redis_is_killed_six_times(tmp_path: Path, append_only: bool) -> None:
    with running_redis(append_only=append_only) as server:
        site = Site(tmp_path, server.url)
        with site.serve() as gateway, Witness(site.at, ASK) as witness:
            for _ in range(6):
                witness.flow(STEP)
                server.kill()
                witness.flow(STEP)
                server.start()
                wait_until(lambda: metric(site.at.metrics, "sluice_log_sink_up") == 1, "it is back")
            witness.flow(STEP)
            witness.stop()
            settled(site.at)
            assert witness.broken == 0
            assert set(witness.codes) <= set(OK)
            assert counted(site.at, "answered") == witness.total
            assert_balanced(site.at)
            assert counted(site.at, "dropped") == 0
            assert_complete(server, witness)
            rewound = metric(site.at.metrics, "sluice_log_rewound_total")
            assert append_only or rewound > 0
            assert gateway.stop() == 0
            assert "Traceback" not in gateway.log


def test_the_gateway_is_killed_four_times(tmp_path: Path) -> None:
    with running_redis() as server:
        site = Site(tmp_path, server.url)
        with Witness(site.at, ASK) as witness:
            for _ in range(4):
                with site.serve() as gateway:
                    witness.flow(STEP)
                    gateway.kill()
            with site.serve() as gateway:
                witness.flow(STEP)
                witness.stop()
                settled(site.at)
                assert_balanced(site.at)
                assert_complete(server, witness)
                assert gateway.stop() == 0


def test_both_are_killed(tmp_path: Path) -> None:
    with running_redis() as server:
        site = Site(tmp_path, server.url)
        with Witness(site.at, ASK) as witness:
            for _ in range(2):
                with site.serve() as gateway:
                    witness.flow(STEP)
                    server.kill()
                    witness.flow(STEP)
                    gateway.kill()
                server.start()
            with site.serve() as gateway:
                witness.flow(STEP)
                witness.stop()
                settled(site.at)
                assert_complete(server, witness)
                assert gateway.stop() == 0


def test_a_gateway_that_is_stopped_under_load_loses_nothing(tmp_path: Path) -> None:
    with running_redis() as server:
        site = Site(tmp_path, server.url)
        with Witness(site.at, ASK) as witness:
            with site.serve() as gateway:
                witness.flow(STEP)
                assert gateway.stop() == 0
            server.kill()
            with site.serve() as gateway:  # starts and stops without Redis
                witness.flow(STEP)
                assert gateway.stop() == 0
                assert gateway.events("prediction log closed before all was shipped")
            server.start()
            with site.serve() as gateway:
                witness.stop()
                settled(site.at)
                assert gateway.stop() == 0
        with redis.Redis.from_url(server.url) as client:
            assert missing(witness, rids(found(client, "split"))) == set()


def test_redis_is_stopped_for_ten_seconds(tmp_path: Path) -> None:
    with running_redis() as server:
        site = Site(tmp_path, server.url)
        with site.serve() as gateway, Witness(site.at, ASK) as witness:
            witness.flow(STEP)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                until_s = time.monotonic() + 10
                while time.monotonic() < until_s:
                    witness.flow(STEP, limit_s=10)
                assert spooled(site.at) > 0
            finally:
                os.kill(server.pid, signal.SIGCONT)
            witness.flow(STEP)
            witness.stop()
            settled(site.at)
            assert witness.broken == 0
            assert set(witness.codes) <= set(OK)
            assert counted(site.at, "dropped") == 0
            assert_complete(server, witness)
            assert gateway.stop() == 0


def test_redis_is_emptied_in_the_middle(tmp_path: Path) -> None:
    with running_redis() as server:
        site = Site(tmp_path, server.url)
        with site.serve() as gateway, Witness(site.at, ASK) as witness:
            for _ in range(2):
                witness.flow(2 * STEP)
                with redis.Redis.from_url(server.url) as client:
                    client.flushall()
            witness.flow(STEP)
            witness.stop()
            wait_until(lambda: is_complete(server, witness), "all is back", limit_s=30)
            assert_complete(server, witness)
            assert gateway.stop() == 0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a small file system in memory on a folder; skips where that is not allowed."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_costs_records_that_are_counted_and_no_prediction(tmp_path: Path) -> None:
    """The spool's disk fills while Redis is away; what was taken is shipped when it is back."""
    with running_redis() as server, small_disk(tmp_path / "spool", "3m"):
        site = Site(tmp_path, server.url)
        with site.serve() as gateway, Witness(site.at, ASK) as witness:
            witness.flow(STEP)
            settled_at_kill = witness.total
            server.kill()
            filler = tmp_path / "spool" / "filler"
            with contextlib.suppress(OSError), filler.open("wb") as file:
                while True:  # somebody else takes what is left
                    file.write(bytes(4096))
                    file.flush()
            wait_until(lambda: counted(site.at, "dropped") > 0, "it is full", limit_s=60)
            witness.flow(STEP)
            filler.unlink(missing_ok=True)
            dropped = counted(site.at, "dropped")
            server.start()
            wait_until(lambda: spooled(site.at) < 50, "it is shipped", limit_s=30)
            witness.flow(STEP)
            witness.stop()
            settled(site.at)
            assert witness.broken == 0
            assert set(witness.codes) <= set(OK)
            assert_balanced(site.at)
            assert settled_at_kill > 0
            with redis.Redis.from_url(server.url) as client:
                lost = missing(witness, rids(found(client, "split")))
            assert len(lost) == counted(site.at, "dropped") >= dropped > 0
            assert counted(site.at, "answered") == witness.total
            assert gateway.stop() == 0
