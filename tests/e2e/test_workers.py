"""Two front processes and their engine process: what clients see when one of them is killed.

Every kill is SIGKILL, under load, and what clients saw is counted to the request.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

from tests.support.gateway import GatewayProcess, metric, wait_until
from tests.support.models import write_fake, write_identity
from tests.support.transports import RAW, TRANSPORTS, Ask, Given, connected
from tests.support.workers import (
    ENGINE,
    Caller,
    Callers,
    arenas,
    connections,
    descriptors,
    fronts,
    is_running,
    kill,
    processes,
    wait_replaced,
)

ROW: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0, 2.0, 3.0, 4.0])
FAST: Final = Ask(model="fast", inputs=(ROW,), timeout_s=15.0)
IMAGE: Final = (3, 224, 224)
PIXELS: Final = np.random.default_rng(3).random((2, *IMAGE), dtype=np.float32)
PICTURES: Final = Ask(
    model="picture",
    inputs=(
        Given(name="x", datatype="FP32", shape=PIXELS.shape, elements=[], raw=PIXELS.tobytes()),
    ),
    timeout_s=15.0,
)
SLOW_S: Final = 0.3


def _write_models(folder: Path) -> None:
    models = folder / "models"
    write_fake(models / "fast" / "1" / "model.json", latency_ms=2)
    write_fake(models / "slow" / "1" / "model.json", latency_ms=SLOW_S * 1_000, max_batch_size=2)
    (models / "slow" / "config.pbtxt").write_text(_WARMED_ONCE)
    write_identity(models / "picture" / "1" / "model.onnx", "FP32", IMAGE)
    (models / "picture" / "config.pbtxt").write_text("max_batch_size: 4")


_WARMED_ONCE: Final = """
max_batch_size: 2
dynamic_batching {}
model_warmup { name: "one" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }
"""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """Serve from two fronts."""
    _write_models(tmp_path)
    config: dict[str, Any] = {  # Any: what a TOML file holds
        "server": {"workers": 2, "drain_timeout_s": 10},
        "routes": {"split": {"variants": {"a": {"model": "fast", "version": "1", "weight": 100}}}},
    }
    with GatewayProcess(config, tmp_path) as running:
        yield running


def _on_both_fronts(gateway: GatewayProcess, ask: Ask) -> list[Caller]:
    """Return idle callers of both protocols, at least one per protocol on either front."""
    callers: list[Caller] = []
    for name in RAW:
        seen: set[str] = set()
        for _ in range(24):
            callers.append(Caller(gateway, name, ask))
            seen.add(callers[-1].front)
            if len(seen) == 2:
                break
        assert len(seen) == 2, f"all {name} connections went to {seen}"
    return callers


def _close(callers: list[Caller]) -> None:
    for caller in callers:
        caller.transport.close()


def test_a_front_that_is_killed_loses_its_own_connections_and_no_other_call(
    gateway: GatewayProcess,
) -> None:
    with Callers(gateway, RAW, FAST, count=10) as callers:
        callers.wait_for(100)
        pid = kill(gateway, "front 1")
        wait_replaced(gateway, "front 1", pid)
        callers.wait_for(100)
    lost = [caller for caller in callers.all if caller.front == "front 1"]
    kept = [caller for caller in callers.all if caller.front == "front 2"]
    assert lost
    assert kept
    for caller in kept:
        assert caller.broken == []
    for caller in lost:
        # The call under way; a gRPC channel may try a dead connection once more.
        assert len(caller.broken) <= 2, caller.broken
    assert set(callers.answers) <= {200, "OK"}
    (ended,) = gateway.events("a process has ended and is replaced")
    assert (ended["name"], ended["pid"], ended["exit_code"]) == ("front 1", pid, -signal.SIGKILL)


def test_connections_made_while_a_front_is_replaced_are_served_and_none_is_refused(
    gateway: GatewayProcess,
) -> None:
    pid = kill(gateway, "front 2")
    host, _, port = gateway.at.http.rpartition(":")
    made = [socket.create_connection((host, int(port)), timeout=10) for _ in range(40)]
    for connection in made:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
    for connection in made:
        assert connection.recv(1_000).startswith(b"HTTP/1.1 200 OK")
    holders = connections(int(port), fronts(gateway))
    for connection in made:
        connection.close()
    wait_replaced(gateway, "front 2", pid)
    assert set(holders.values()) == {"front 1", "front 2"}


def test_calls_outlive_an_engine_process_that_is_killed_under_load(
    gateway: GatewayProcess,
) -> None:
    with Callers(gateway, RAW, FAST, count=6) as callers:
        callers.wait_for(100)
        pid = kill(gateway, ENGINE)
        wait_replaced(gateway, ENGINE, pid)
        callers.wait_for(100)
    assert callers.broken == []
    assert set(callers.answers) == {200, "OK"}
    assert max(caller.longest_s for caller in callers.all) < 10
    (ended,) = gateway.events("a process has ended and is replaced")
    assert (ended["name"], ended["exit_code"]) == (ENGINE, -signal.SIGKILL)


def test_what_was_queued_or_executing_in_a_killed_engine_process_is_answered_by_the_next_one(
    gateway: GatewayProcess,
) -> None:
    patient = Ask(model="slow", inputs=(ROW,), timeout_s=12.0)
    hasty = Ask(model="slow", inputs=(ROW,), timeout_s=0.3)
    with connected(gateway.at, RAW) as transports, ThreadPoolExecutor(12) as threads:
        calls = [threads.submit(transports[n % 2].infer, patient) for n in range(8)]
        late = [threads.submit(transports[n % 2].infer, hasty) for n in range(4)]
        wait_until(lambda: _requests(gateway, "slow") >= 1, "some are answered")
        pid = kill(gateway, ENGINE)
        answers = [call.result(20).code for call in calls]
        too_late = [call.result(20).code for call in late]
        wait_replaced(gateway, ENGINE, pid)
    assert answers.count(200) == 4
    assert answers.count("OK") == 4
    assert sorted(map(str, too_late)) == ["504", "504", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"]


def _requests(gateway: GatewayProcess, model: str) -> int:
    try:
        return int(metric(gateway.at.metrics, "sluice_requests_total", model=model))
    except httpx.HTTPError:
        return 0


def test_without_an_engine_process_fronts_are_live_and_not_ready_and_answer_in_the_end(
    gateway: GatewayProcess,
) -> None:
    """The engine process is stopped rather than killed as it starts again: that lasts longer."""
    client = httpx.Client(base_url=f"http://{gateway.at.http}", timeout=20)
    with client:
        kill(gateway, ENGINE)
        wait_until(lambda: client.get("/v2/health/ready").status_code == 503, "it is not ready")
        assert client.get("/v2/health/live").json() == {"live": True}
        wait_until(lambda: client.get("/v2/health/ready").status_code == 200, "it is ready", 15)
        assert client.get("/v2/models/fast").status_code == 200


def test_sigterm_answers_what_was_accepted_and_ends_every_process(gateway: GatewayProcess) -> None:
    pids = processes(gateway)
    ask = Ask(model="slow", inputs=(ROW,), timeout_s=15.0)
    with connected(gateway.at, RAW * 4) as transports, ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(transport.infer, ask) for transport in transports]
        wait_until(lambda: _requests(gateway, "slow") >= 2, "some are answered")
        assert gateway.stop() == 0
        codes = [call.result().code for call in calls]
    assert codes.count(200) == 4
    assert codes.count("OK") == 4
    assert not any(is_running(pid) for pid in pids.values())
    assert gateway.events("drain timeout passed") == []
    assert gateway.events("a process does not end and is killed") == []


def test_sigterm_to_every_process_at_once_drains_as_well(gateway: GatewayProcess) -> None:
    """That is what service managers send, and terminals on Ctrl-C."""
    ask = Ask(model="slow", inputs=(ROW,), timeout_s=15.0)
    pids = processes(gateway)
    with connected(gateway.at, RAW * 2) as transports, ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(transport.infer, ask) for transport in transports]
        wait_until(lambda: _requests(gateway, "slow") >= 2, "some are answered")
        for pid in pids.values():
            os.kill(pid, signal.SIGTERM)
        assert gateway.stop() == 0
        codes = [call.result().code for call in calls]
    assert codes.count(200) == 2
    assert codes.count("OK") == 2


def test_processes_whose_supervisor_is_killed_finish_what_they_accepted_and_end(
    gateway: GatewayProcess,
) -> None:
    pids = processes(gateway)
    ask = Ask(model="slow", inputs=(ROW,), timeout_s=15.0)
    folders = set(Path(tempfile.gettempdir()).glob("sluice-*/engine.sock"))
    with connected(gateway.at, RAW * 2) as transports, ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(transport.infer, ask) for transport in transports]
        wait_until(lambda: _requests(gateway, "slow") >= 2, "some are answered")
        gateway.kill()
        codes = [call.result().code for call in calls]
        assert codes.count(200) == 2
        assert codes.count("OK") == 2
    wait_until(lambda: not any(is_running(pid) for pid in pids.values()), "all have ended", 10)
    assert set(Path(tempfile.gettempdir()).glob("sluice-*/engine.sock")) < folders


def test_a_changed_route_is_one_revision_for_all_fronts_as_soon_as_it_is_confirmed(
    gateway: GatewayProcess,
) -> None:
    callers = _on_both_fronts(gateway, Ask(model="split", inputs=(ROW,)))
    url = f"http://{gateway.at.admin}/v1/routes/split"
    etag = httpx.get(url).headers["etag"]
    for revision in range(2, 8):
        document = {"variants": {f"v{revision}": {"model": "fast", "version": "1", "weight": 100}}}
        changed = httpx.put(
            url, json=document, headers={"if-match": etag, "x-reason": f"revision {revision}"}
        )
        assert changed.status_code == 200, changed.text
        etag = changed.headers["etag"]
        for caller in callers:
            answer = caller.transport.infer(Ask(model="split", inputs=(ROW,)))
            assert answer.headers["x-sluice-revision"] == str(revision)
            assert answer.headers["x-sluice-variant"] == f"v{revision}"
    _close(callers)


def test_metrics_and_statistics_are_those_of_all_fronts(gateway: GatewayProcess) -> None:
    callers = _on_both_fronts(gateway, FAST)
    for caller in callers:
        for _ in range(5):
            assert caller.transport.infer(FAST).code in (200, "OK")
    asked = 6 * len(callers)
    assert _requests(gateway, "fast") == asked
    for _ in range(4):  # a connection each, so from either front
        rows = httpx.get(f"http://{gateway.at.http}/v2/models/fast/stats").json()["model_stats"]
        assert rows[0]["inference_stats"]["success"]["count"] == asked
    refused = httpx.post(f"http://{gateway.at.http}/v2/models/fast/infer", content=b"{")
    assert refused.status_code == 400
    wait_until(
        lambda: metric(gateway.at.metrics, "sluice_requests_total", code="INVALID_ARGUMENT") == 1,
        "a request that a front refused is counted",
    )
    _close(callers)


def _pictures(gateway: GatewayProcess, name: str, count: int) -> list[bool]:
    """Ask for pictures to be echoed; whether each came back as it went."""
    right = []
    transport = TRANSPORTS[name](gateway.at)
    for _ in range(count):
        answer = transport.infer(PICTURES)
        assert answer.code in (200, "OK"), answer.error
        y = np.asarray(answer.outputs["y"].elements, dtype=np.float32)
        right.append(np.array_equal(y.reshape(PIXELS.shape), PIXELS))
    transport.close()
    return right


def test_large_tensors_travel_both_ways_and_leave_nothing_behind(gateway: GatewayProcess) -> None:
    with ThreadPoolExecutor(4) as threads:
        rounds = list(threads.map(lambda n: _pictures(gateway, RAW[n % 2], 2), range(4)))
    assert all(all(right) for right in rounds)
    pids = processes(gateway)
    before = {name: descriptors(pid) for name, pid in pids.items()}
    shm = sorted(os.listdir("/dev/shm"))
    with ThreadPoolExecutor(4) as threads:
        rounds = list(threads.map(lambda n: _pictures(gateway, RAW[n % 2], 4), range(4)))
    assert all(all(right) for right in rounds)
    assert sorted(os.listdir("/dev/shm")) == shm
    wait_until(
        lambda: all(descriptors(pid) <= before[name] for name, pid in pids.items()),
        "no file descriptor is left",
    )
    assert arenas(pids[ENGINE]) == 4
    assert [arenas(pid) for name, pid in pids.items() if name != ENGINE] == [2, 2]


def test_processes_killed_while_large_tensors_travel_leave_neither_memory_nor_wrong_answers(
    gateway: GatewayProcess,
) -> None:
    shm = sorted(os.listdir("/dev/shm"))
    wrong: list[str] = []
    is_over = threading.Event()

    def ask_on(name: str) -> int:
        count = 0
        while not is_over.is_set():
            transport = TRANSPORTS[name](gateway.at)
            try:
                answer = transport.infer(PICTURES)
            except httpx.HTTPError:
                answer = None
            transport.close()
            if answer is None or answer.code == "UNAVAILABLE":
                continue
            if answer.code not in (200, "OK"):
                wrong.append(f"{answer.code}: {answer.error}")
                continue
            y = np.asarray(answer.outputs["y"].elements, dtype=np.float32)
            if not np.array_equal(y.reshape(PIXELS.shape), PIXELS):
                wrong.append("another picture came back")
            count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        counts = [threads.submit(ask_on, RAW[n % 2]) for n in range(4)]
        for name in ("front 1", ENGINE, "front 2", ENGINE):
            time.sleep(0.7)
            pid = kill(gateway, name)
            wait_replaced(gateway, name, pid)
        time.sleep(0.7)
        is_over.set()
        assert sum(count.result(20) for count in counts) > 0
    assert wrong == []
    assert sorted(os.listdir("/dev/shm")) == shm
    pids = processes(gateway)
    wait_until(lambda: arenas(pids[ENGINE]) == 4, "arenas of links that ended are gone")


def test_a_taken_port_ends_the_command_as_it_does_with_one_process(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    environ = {"SLUICE__MODELS__REPOSITORY": str(tmp_path / "models")}
    for taken in ("http", "grpc", "metrics", "admin"):
        address = getattr(gateway.at, taken)
        config = {"server": {"workers": 2, taken: address}}
        second = GatewayProcess(config, tmp_path / taken, environ=environ)
        assert second.wait() == 1
        (entry,) = second.events("cannot start")
        assert entry["reason"].startswith(f"cannot listen on {address} for ")
        assert "Traceback" not in second.log


def test_the_reference_transport_is_served_by_all_fronts_as_well(tmp_path: Path) -> None:
    """grpcio binds its port itself, in every front."""
    _write_models(tmp_path)
    config = {"server": {"workers": 2, "grpc_transport": "grpcio"}}
    with GatewayProcess(config, tmp_path) as gateway:
        callers = _on_both_fronts(gateway, FAST)
        pid = kill(gateway, "front 1")
        wait_replaced(gateway, "front 1", pid)
        for caller in callers:
            if caller.front == "front 2":
                assert caller.transport.infer(FAST).code in (200, "OK")
        _close(callers)
        with connected(gateway.at, RAW * 3) as transports:
            assert {t.infer(FAST).code for t in transports} == {200, "OK"}
        assert gateway.stop() == 0


def test_one_worker_is_one_process_and_does_not_even_import_this(tmp_path: Path) -> None:
    _write_models(tmp_path)
    with GatewayProcess({"server": {"workers": 1}}, tmp_path) as gateway:
        (serving,) = gateway.events("serving")
        assert "processes" not in serving
    code = (
        "import sys, gateway.app, gateway.cli.server;"
        "print([m for m in sys.modules if m.startswith('gateway.workers')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
