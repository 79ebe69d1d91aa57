"""A device that fails under a running gateway: who notices, what it says, and that it serves again.

The device is a script's (`die_on` of engines/fake.py); process, protocols and the times between the
attempts are the real ones: the first one a second after the loss, the next ones 2 and 4 s later.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.gateway import Addresses, GatewayProcess, metric, wait_until
from tests.support.load import Load
from tests.support.models import write_fake
from tests.support.transports import Ask, Given, Outcome, connected

FATAL: Final = 13
WHY: Final = "cpu failed: scripted death; it is being loaded again"
ROUTES: Final[dict[str, Any]] = {  # Any: what a TOML file holds
    "careful": {
        "variants": {
            "first": {"model": "mortal", "version": "1", "weight": 100},
            "second": {"model": "echo", "version": "1", "weight": 0},
        },
        "fallback": {"to": "second"},
    },
    "bold": {"variants": {"first": {"model": "mortal", "version": "1", "weight": 100}}},
}


def asking(model: str, value: float = 1.0) -> Ask:
    row = Given(name="x", datatype="FP32", shape=(1, 4), elements=[value] * 4)
    return Ask(model=model, inputs=(row,))


def write_models(folder: Path) -> Path:
    """Write a model that may die, with one instance and with two, and one that does not."""
    models = folder / "models"
    for name in ("mortal", "pair"):
        write_fake(models / name / "1" / "model.json", die_on=FATAL, max_batch_size=1)
    (models / "pair" / "config.pbtxt").write_text("instance_group { count: 2 kind: KIND_CPU }\n")
    write_fake(models / "echo" / "1" / "model.json")
    return folder


def kill(at: Addresses, model: str) -> None:
    """Let the device of an instance fail; the caller is told no more than that it failed."""
    rows = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [FATAL] * 4}
    answer = httpx.post(f"http://{at.http}/v2/models/{model}/infer", json={"inputs": [rows]})
    assert answer.status_code == 500
    assert "scripted" not in answer.text


def is_ready(at: Addresses, path: str) -> bool:
    """Ask a readiness endpoint, which says 200 or 503 and nothing else."""
    code = httpx.get(f"http://{at.http}/v2/{path}").status_code
    assert code in (200, 503)
    return code == 200


def index(at: Addresses, model: str) -> tuple[str, str]:
    rows = httpx.post(f"http://{at.http}/v2/repository/index").json()
    ((state, reason),) = ((r["state"], r["reason"]) for r in rows if r["name"] == model)
    return state, reason


def test_a_lost_model_says_so_everywhere_and_comes_back_and_its_neighbours_notice_nothing(
    tmp_path: Path,
) -> None:
    with GatewayProcess({"routes": ROUTES}, write_models(tmp_path)) as gateway:
        at = gateway.at
        with Load(at, asking("echo")) as neighbours, connected(at) as transports:
            for transport in transports:
                assert transport.infer(asking("mortal")).came_to(Outcome.OK)
            script = tmp_path / "models" / "mortal" / "1" / "model.json"
            content = script.read_text()
            script.write_text("{")  # it comes back when the test has seen all, and not before
            kill(at, "mortal")
            assert index(at, "mortal") == ("LOADING", WHY)
            assert not is_ready(at, "models/mortal/ready")
            assert not is_ready(at, "models/mortal/versions/1/ready")
            assert not is_ready(at, "models/bold/ready")
            assert is_ready(at, "models/careful/ready")
            assert is_ready(at, "models/echo/ready")
            assert is_ready(at, "health/ready")
            assert metric(at.metrics, "sluice_lost_instances", model="mortal") == 1
            for transport in transports:
                for name in ("mortal", "bold"):
                    refused = transport.infer(asking(name))
                    assert refused.came_to(Outcome.UNAVAILABLE)
                    assert WHY in refused.error
                instead = transport.infer(asking("careful"))
                assert instead.came_to(Outcome.OK)
                assert instead.model == "echo"
            script.write_text(content)
            wait_until(lambda: is_ready(at, "models/mortal/ready"), "it is loaded again", 15)
            for transport in transports:
                for name in ("mortal", "bold"):
                    assert transport.infer(asking(name)).came_to(Outcome.OK)
            assert index(at, "mortal") == ("READY", "")
            assert metric(at.metrics, "sluice_lost_instances", model="mortal") == 0
            asked = neighbours.total
            wait_until(lambda: neighbours.total > asked + 20, "the neighbours go on")
        assert set(neighbours.answers) == {200, "OK"}
        assert neighbours.broken == []
        (lost,) = gateway.events("instance lost")
        assert (lost["model"], lost["reason"]) == ("mortal", "cpu failed: scripted death")
        assert len(gateway.events("instance revived")) == 1
        assert gateway.stop() == 0


@pytest.mark.slow
def test_with_an_instance_left_callers_of_the_same_model_notice_nothing(tmp_path: Path) -> None:
    with GatewayProcess({}, write_models(tmp_path)) as gateway:
        at = gateway.at
        with Load(at, asking("pair")) as callers:
            wait_until(lambda: callers.total > 20, "callers are answered")
            for death in range(1, 4):
                kill(at, "pair")
                assert is_ready(at, "models/pair/ready")
                assert index(at, "pair") == ("READY", "")
                wait_until(
                    lambda: len(gateway.events("instance revived")) == death,  # noqa: B023
                    "the instance is replaced",
                )
            asked = callers.total
            wait_until(lambda: callers.total > asked + 20, "callers are still answered")
        assert set(callers.answers) == {200, "OK"}
        assert callers.broken == []
        assert len(gateway.events("instance lost")) == 3
        assert gateway.stop() == 0


def test_attempts_that_fail_are_told_and_the_last_one_need_not_be_waited_for(
    tmp_path: Path,
) -> None:
    with GatewayProcess({}, write_models(tmp_path)) as gateway:
        script = tmp_path / "models" / "mortal" / "1" / "model.json"
        script.write_text("{")
        kill(gateway.at, "mortal")
        event = "instance does not come up again"
        wait_until(lambda: bool(gateway.events(event)), "an attempt fails")
        assert "model.json does not load" in gateway.events(event)[0]["reason"]
        assert index(gateway.at, "mortal") == ("LOADING", WHY)
        assert is_ready(gateway.at, "models/echo/ready")
        stopped_at = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - stopped_at < 5


def test_the_process_ends_in_time_while_a_load_hangs(tmp_path: Path) -> None:
    with GatewayProcess({"server": {"drain_timeout_s": 5}}, write_models(tmp_path)) as gateway:
        kill(gateway.at, "mortal")
        script = tmp_path / "models" / "mortal" / "1" / "model.json"
        script.unlink()
        os.mkfifo(script)  # whoever opens it to read waits for a writer that never comes
        time.sleep(1.5)  # the first attempt is under way: nothing announces it
        assert index(gateway.at, "mortal") == ("LOADING", WHY)
        assert gateway.events("instance does not come up again") == []
        stopped_at = time.monotonic()
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
        assert time.monotonic() - stopped_at < 5


@pytest.mark.parametrize("is_reload", [True, False], ids=["reload", "unload"])
def test_a_lost_model_can_be_loaded_anew_and_unloaded(tmp_path: Path, is_reload: bool) -> None:
    with GatewayProcess({}, write_models(tmp_path)) as gateway:
        kill(gateway.at, "mortal")
        verb = "load" if is_reload else "unload"
        url = f"http://{gateway.at.admin}/v1/models/mortal/{verb}"
        assert httpx.post(url, timeout=10).status_code == 200
        state, _ = index(gateway.at, "mortal")
        assert state == ("READY" if is_reload else "UNAVAILABLE")
        assert is_ready(gateway.at, "models/mortal/ready") is is_reload
        assert gateway.stop() == 0
