"""One gateway per kind of store for all tests of the admin API; each test makes its own routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.admin import Admin, administered, write_repository
from tests.support.gateway import LoopThread
from tests.support.redis import running_redis


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the repository that tests/support/admin.py describes."""
    return write_repository(tmp_path_factory.mktemp("administered"))


@pytest.fixture(scope="session", params=[pytest.param("redis", marks=pytest.mark.redis), "file"])
def admin(
    request: pytest.FixtureRequest, loop_thread: LoopThread, digits_root: Path
) -> Iterator[Admin]:
    """Connect to a gateway that keeps its routes in Redis, then to one that uses a folder."""
    if request.param == "file":
        with administered(loop_thread, digits_root, {}) as connected:
            yield connected
        return
    with (
        running_redis() as server,
        administered(loop_thread, digits_root, {"redis": {"url": server.url}}) as connected,
    ):
        yield connected
