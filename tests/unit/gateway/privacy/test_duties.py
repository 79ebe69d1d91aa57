"""What is done once an hour: what no record can need any more goes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from gateway.prediction_log.capture.policy import Policies
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.duties import Duties
from gateway.prediction_log.spool.opening import open_memory
from gateway.prediction_log_config import RetentionConfig
from tests.support.prediction_log import log_settings
from tests.support.privacy import tap_of
from tests.support.redis import running_redis

pytestmark = pytest.mark.redis

DAY_S = 86_400


@pytest.mark.parametrize(("for_s", "is_left"), [(7 * DAY_S, False), (0, True), (30 * DAY_S, True)])
def test_files_that_no_record_can_name_any_more_are_deleted(
    tmp_path: Path, for_s: int, is_left: bool
) -> None:
    folder = tmp_path / "references"
    references = References(folder, max_bytes=1 << 20)
    old, young = (folder / references.keep(digest * 16, b"data") for digest in (b"1", b"2"))
    then_s = time.time() - 12 * DAY_S
    os.utime(old, (then_s, then_s))

    async def tick(url: str) -> None:
        config = log_settings(retention=RetentionConfig(for_s=for_s, grace_s=DAY_S))
        privacy = tap_of(tmp_path, config)
        policies = Policies(config, privacy=privacy)
        duties = Duties(config, url=url, privacy=privacy, policies=policies)
        store = open_memory(config, tmp_path / "gw-1", worker="w", now_ms=1)

        async def settle() -> None:
            pass

        hooks = duties.hooks(
            replica="gw-1", store=store, settle=settle, references=References(folder, max_bytes=1)
        )
        assert hooks.on_tick is not None
        await hooks.on_tick()
        await duties.close()
        await store.close()

    with running_redis() as server:
        asyncio.run(tick(server.url))
    assert (old.exists(), young.exists()) == (is_left, True)
