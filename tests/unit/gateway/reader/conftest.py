"""One Redis for the tests of a file, empty before each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log import reader
from tests.support.redis import running_redis


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis(append_only=False) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with reader.connect(server.url) as connected:
        connected.flushall()
        yield connected
