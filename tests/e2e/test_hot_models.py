"""Models that are replaced, added and let go while traffic flows: nobody fails, nobody waits.

How a request to a version that was not warm would be seen. The fake engine can be told to fail
after so many batches, and the warm-up's batches count. A copy that is told to fail after exactly as
many as its warm-up has can answer no caller, unless a caller's batch came before the warm-up's
end: then that caller gets one of the answers that were meant for the warm-up. So under load, each
such copy is to give failures only; and a copy with one answer more is to give just one, which shows
that one would have been noticed. Which copy gave an answer, its output's name tells.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.gateway import GatewayProcess, metric, wait_until
from tests.support.models import write_fake
from tests.support.traffic import CONCURRENCY, Operator, Traffic, timed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

MODEL: Final = "hot"
REPLACEMENTS: Final = 20
ROWS: Final = 8
WARM_UP_BATCHES: Final = 4
"""Of a model of ROWS: 8, 4, 2 and 1 rows."""
LATEST: Final = "version_policy { latest { num_versions: 1 } }\n"


def script(folder: Path, version: int = 1) -> Path:
    return folder / "models" / MODEL / str(version) / "model.json"


def write_copy(path: Path, output: str, **settings: object) -> None:
    """Write a copy that shows itself by its output's name."""
    outputs = [{"name": output, "datatype": "FP32", "shape": [-1, 4]}]
    write_fake(path, outputs=outputs, max_batch_size=ROWS, **settings)


def serve(folder: Path, **tables: Any) -> GatewayProcess:  # Any: what a TOML file holds
    return GatewayProcess(tables, folder)


def split(weights: dict[str, int], **settings: object) -> dict[str, Any]:  # Any: as serve
    """Return a route over versions of the model, by weight."""
    variants = {
        name: {"model": MODEL, "version": name.removeprefix("v"), "weight": weight}
        for name, weight in weights.items()
    }
    return {"split": {"key": ["header:x-user-id"], "variants": variants, **settings}}


@pytest.mark.parametrize("asked", [MODEL, "split"], ids=["by its name", "behind a route"])
def test_a_version_replaced_twenty_times_under_load_fails_no_request(
    tmp_path: Path, asked: str
) -> None:
    write_copy(script(tmp_path), "copy0")
    loads: list[tuple[int, int]] = []
    with serve(tmp_path, routes=split({"v1": 100})) as gateway, Operator(gateway.at) as operator:
        with Traffic(gateway.at, asked) as traffic:
            for number in range(1, REPLACEMENTS + 1):
                traffic.flow(CONCURRENCY)
                write_copy(script(tmp_path), f"copy{number}")
                sent_ns, answer, answered_ns = timed(lambda: operator.load(MODEL))
                assert answer.status_code == 200, answer.text
                loads.append((sent_ns, answered_ns))
            traffic.flow()
        traffic.assert_flawless()
        assert metric(gateway.at.metrics, "sluice_requests_total") == len(traffic.seen)
        assert metric(gateway.at.metrics, "sluice_errors_total") == 0
        assert len(gateway.events("version ready")) == REPLACEMENTS + 1
        assert gateway.events("warm-up skipped") == []
        assert gateway.stop() == 0
        assert "Traceback" not in gateway.log
    over_ns = time.monotonic_ns()
    for number, (sent_ns, answered_ns) in enumerate(loads, start=1):
        until_ns = loads[number][0] if number < REPLACEMENTS else over_ns
        calm = {seen.output for seen in traffic.between(answered_ns, until_ns)}
        assert calm == {f"copy{number}"}  # the new one alone, from the answer of the load on
        ended_ns = min(seen.ended_ns for seen in traffic.seen if seen.output == f"copy{number}")
        assert ended_ns > sent_ns


def test_no_request_reaches_a_copy_before_its_warm_up_is_over(tmp_path: Path) -> None:
    """As the module's documentation explains; ten cold copies, then one with an answer to give."""
    write_copy(script(tmp_path), "good")
    with serve(tmp_path) as gateway, Operator(gateway.at) as operator:
        with Traffic(gateway.at, MODEL) as traffic:
            for number in range(10):
                write_copy(script(tmp_path), f"spent{number}", fail_after=WARM_UP_BATCHES)
                assert operator.load(MODEL).status_code == 200
                since_ns = time.monotonic_ns()
                traffic.flow(CONCURRENCY)
                asked = traffic.between(since_ns, time.monotonic_ns())
                assert len(asked) >= CONCURRENCY
                assert not any(seen.is_ok for seen in asked)  # this copy alone had them all
                write_copy(script(tmp_path), "good")
                assert operator.load(MODEL).status_code == 200
                traffic.flow(CONCURRENCY)
            write_copy(script(tmp_path), "control", fail_after=WARM_UP_BATCHES + 1)
            assert operator.load(MODEL).status_code == 200
            traffic.flow(CONCURRENCY)
        found = [seen.output for seen in traffic.seen if seen.is_ok]
        assert set(found) == {"good", "control"}
        assert 1 <= found.count("control") <= ROWS  # one batch
        assert gateway.stop() == 0


@pytest.mark.parametrize(
    ("filename", "why"),
    [("1/model.json", "model.json does not load"), ("config.pbtxt", "config.pbtxt")],
)
def test_a_failed_reload_leaves_the_old_copy_serving_and_the_index_says_why(
    tmp_path: Path, filename: str, why: str
) -> None:
    write_copy(script(tmp_path), "old")
    config = tmp_path / "models" / MODEL / "config.pbtxt"
    config.write_text(LATEST)
    with serve(tmp_path) as gateway, Operator(gateway.at) as operator:
        with Traffic(gateway.at, MODEL) as traffic:
            traffic.flow(CONCURRENCY)
            broken = tmp_path / "models" / MODEL / filename
            broken.write_text("{ this is nothing")
            assert operator.load(MODEL).status_code == 200
            state, reason = operator.versions(MODEL)["1"]
            assert state == "READY"
            assert "the last reload failed" in reason
            assert why in reason
            traffic.flow(CONCURRENCY)
            config.write_text(LATEST)
            write_copy(script(tmp_path), "new")
            assert operator.load(MODEL).status_code == 200
            assert operator.versions(MODEL)["1"] == ("READY", "")
            traffic.flow(CONCURRENCY)
        traffic.assert_flawless()
        assert {seen.output for seen in traffic.seen} == {"old", "new"}


def test_a_version_that_only_a_route_wants_is_warm_before_its_first_weight(tmp_path: Path) -> None:
    """The policy selects version 2; the route asks for version 1, which takes seven batches of
    0.1 s to warm up."""
    config = tmp_path / "models" / MODEL / "config.pbtxt"
    write_fake(script(tmp_path, 1), latency_ms=100, max_batch_size=64)
    write_fake(script(tmp_path, 2), max_batch_size=ROWS)
    config.write_text(LATEST)
    with (
        serve(tmp_path, routes=split({"v2": 100})) as gateway,
        Operator(gateway.at) as operator,
    ):
        assert list(operator.versions(MODEL)) == ["2"]
        with Traffic(gateway.at, "split") as traffic:
            traffic.flow()
            change = {
                "variants": {
                    "v1": {"model": MODEL, "version": "1", "weight": 50},
                    "v2": {"weight": 50},
                }
            }
            sent_ns, answer, answered_ns = timed(lambda: operator.patch("split", change))
            assert answer.status_code == 200, answer.text
            assert answer.json()["loads"] == [{"model": MODEL, "version": "1"}]
            traffic.flow(400)
        traffic.assert_flawless()
        assert operator.is_ready(MODEL, "1")
    assert answered_ns - sent_ns > 0.7e9  # its seven batches ran before the route came into force
    new = sorted(
        (seen for seen in traffic.seen if seen.variant == "v1"), key=lambda s: s.started_ns
    )
    assert {seen.version for seen in new} == {"1"}
    warm_s = statistics.median(seen.took_s for seen in new[len(new) // 2 :])
    # Up to two batches, the one under way and its own; the load would be seven more.
    assert new[0].took_s <= 3 * warm_s


def test_a_version_that_is_dropped_in_is_served_without_any_call(tmp_path: Path) -> None:
    write_fake(script(tmp_path, 1), max_batch_size=ROWS)
    text = script(tmp_path, 1).read_text()
    with (
        serve(tmp_path, models={"poll_s": 0.2}) as gateway,
        Operator(gateway.at) as operator,
        Traffic(gateway.at, MODEL, concurrency=8) as traffic,
    ):
        traffic.flow()
        write_fake(tmp_path / "2" / "model.json", max_batch_size=ROWS)  # beside, then moved in
        os.rename(tmp_path / "2", tmp_path / "models" / MODEL / "2")
        wait_until(lambda: operator.is_ready(MODEL, "2"), "version 2 is ready")
        traffic.flow()
        assert traffic.seen[-1].version == "2"
        slow = script(tmp_path, 3)  # copied in so slowly that several looks see a part of it
        slow.parent.mkdir()
        for end in range(0, len(text), 20):
            slow.write_text(text[:end])
            time.sleep(0.1)
        slow.write_text(text)
        wait_until(lambda: operator.is_ready(MODEL, "3"), "version 3 is ready")
        traffic.flow()
        traffic.stop()
        assert traffic.seen[-1].version == "3"
        traffic.assert_flawless()
        assert list(operator.versions(MODEL)) == ["1", "2", "3"]


def test_the_old_version_stays_for_the_rollback_window_and_goes_after_it(tmp_path: Path) -> None:
    for version in (1, 2):
        write_fake(script(tmp_path, version), max_batch_size=ROWS)
    (tmp_path / "models" / MODEL / "config.pbtxt").write_text(LATEST)
    window_s = 3
    routes = split({"v1": 90, "v2": 10}, stable="v1", rollback_window_s=window_s)
    with (
        serve(tmp_path, routes=routes, control={"poll_ms": 100}) as gateway,
        Operator(gateway.at) as operator,
        Traffic(gateway.at, "split", concurrency=8) as traffic,
    ):

        def loaded(version: str) -> int:
            return sum(e["version"] == version for e in gateway.events("version ready"))

        traffic.flow()
        promoted = operator.verb("split", "promote")
        assert promoted.status_code == 200, promoted.text
        (warm,) = promoted.json()["document"]["derived"]["warm"]
        assert (warm["model"], warm["version"]) == (MODEL, "1")
        time.sleep(window_s / 2)
        assert operator.is_ready(MODEL, "1")
        undone = operator.verb("split", "undo")  # within the window: nothing is loaded
        assert undone.status_code == 200, undone.text
        assert undone.json()["loads"] == []
        traffic.flow()
        assert loaded("1") == 1
        assert {seen.version for seen in traffic.seen[-CONCURRENCY:]} >= {"1"}

        since_s = time.monotonic()
        assert operator.verb("split", "promote").status_code == 200
        wait_until(lambda: "1" not in operator.versions(MODEL), "version 1 goes", limit_s=15)
        assert time.monotonic() - since_s > window_s
        traffic.flow()
        undone = operator.verb("split", "undo")  # after it: loaded again before the route changes
        assert undone.status_code == 200, undone.text
        assert undone.json()["loads"] == [{"model": MODEL, "version": "1"}]
        assert loaded("1") == 2
        traffic.flow()
        traffic.stop()
        traffic.assert_flawless()
