"""`sluice serve` as a process: what it refuses to start with, and what it serves regardless."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.gateway import Addresses, GatewayProcess, free_port, toml, wait_until
from tests.support.models import write_fake, write_mlp
from tests.support.transports import Ask, Given, Outcome, connected

ROUTE: Final[dict[str, Any]] = {  # Any: what a TOML file holds
    "routes": {"split": {"variants": {"only": {"model": "mlp", "version": "1", "weight": 100}}}}
}
ROW: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0, 2.0, 3.0, 4.0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder whose repository holds a model with a good version and a corrupt one."""
    write_mlp(tmp_path / "models" / "mlp" / "1" / "model.onnx", [4, 3], seed=1)
    corrupt = tmp_path / "models" / "mlp" / "2" / "model.onnx"
    corrupt.parent.mkdir()
    corrupt.write_bytes(b"no ONNX file")
    return tmp_path


def test_a_bad_configuration_ends_the_process_with_its_path_and_exit_code_two(
    folder: Path,
) -> None:
    gateway = GatewayProcess("[server]\nhtpp = 'x'\n", folder)
    assert gateway.wait() == 2
    assert gateway.log == f"sluice: {gateway.config_path}: $.server.htpp: unknown key\n"


def test_the_environment_overrides_the_file(folder: Path) -> None:
    environ = {"SLUICE__MODELS__REPOSITORY": "elsewhere"}
    gateway = GatewayProcess(ROUTE, folder, environ=environ)
    assert gateway.wait() == 2
    assert "$.models.repository: " in gateway.log
    assert "elsewhere is not a folder" in gateway.log


def test_a_corrupt_version_is_reported_and_all_others_serve(folder: Path) -> None:
    with GatewayProcess(ROUTE, folder) as gateway:
        with connected(gateway.at) as transports:
            for transport in transports:
                for model in ("mlp", "split"):
                    answer = transport.infer(Ask(model=model, inputs=(ROW,)))
                    assert answer.came_to(Outcome.OK), answer.error
                    assert answer.version == "1"
                refused = transport.infer(Ask(model="mlp", version="2", inputs=(ROW,)))
                assert refused.came_to(Outcome.UNAVAILABLE)
        (entry,) = gateway.events("version unavailable")
        assert (entry["model"], entry["version"]) == ("mlp", "2")
        assert entry["reason"].startswith("model.onnx does not load: ")
        index = httpx.post(f"http://{gateway.at.http}/v2/repository/index").json()
        assert {row["version"]: row["reason"] for row in index} == {"1": "", "2": entry["reason"]}
        assert gateway.stop() == 0
    assert len(gateway.events("serving without a prediction log")) == 1


def test_a_route_to_a_corrupt_version_is_an_error_in_the_log_and_answers_why(
    folder: Path,
) -> None:
    variants = {"bad": {"model": "mlp", "version": "2", "weight": 100}}
    with GatewayProcess({"routes": {"split": {"variants": variants}}}, folder) as gateway:
        (entry,) = gateway.events("a route names a version that is unavailable")
        assert (entry["level"], entry["version"]) == ("error", "2")
        with connected(gateway.at) as transports:
            for transport in transports:
                answer = transport.infer(Ask(model="split", inputs=(ROW,)))
                assert answer.came_to(Outcome.UNAVAILABLE)
                assert "model.onnx does not load" in answer.error


def test_client_mistakes_leave_no_trace_in_the_log_and_engine_failures_do(folder: Path) -> None:
    write_fake(folder / "models" / "failing" / "1" / "model.json", fail_on=13)
    with GatewayProcess(ROUTE, folder) as gateway:
        before = gateway.log
        wrong = Given(name="y", datatype="FP32", shape=(1, 4), elements=[0.0] * 4)
        mistakes = (
            Ask(model="nobody", inputs=(ROW,)),
            Ask(model="mlp", inputs=(wrong,)),
            Ask(model="mlp", inputs=()),
            Ask(model="mlp", inputs=(ROW,), outputs=("z",)),
        )
        with connected(gateway.at) as transports:
            for transport in transports:
                for ask in mistakes:
                    assert not transport.infer(ask).came_to(Outcome.OK)
            httpx.post(f"http://{gateway.at.http}/v2/models/mlp/infer", content=b"{")
            assert gateway.log == before
            failing = Given(name="x", datatype="FP32", shape=(1, 4), elements=[13.0] * 4)
            answer = transports[0].infer(Ask(model="failing", inputs=(failing,)))
            assert answer.came_to(Outcome.INTERNAL)
        (entry,) = gateway.events("engine failed")
        assert entry["trace"].startswith("Traceback ")
        assert "scripted failure" in entry["trace"]


@pytest.mark.parametrize("taken", ["http", "grpc", "metrics", "admin"])
def test_a_taken_port_ends_the_second_process_with_a_clear_line(folder: Path, taken: str) -> None:
    with GatewayProcess(ROUTE, folder / "first", environ=_models(folder)) as first:
        address = getattr(first.at, taken)
        document = {**ROUTE, "server": {taken: address}}
        second = GatewayProcess(document, folder / "second", environ=_models(folder))
        assert second.wait() == 1
        (entry,) = second.events("cannot start")
        assert entry["reason"].startswith(f"cannot listen on {address} for ")
        assert "Traceback" not in second.log
        assert httpx.get(f"http://{first.at.http}/v2/health/ready").status_code == 200
        assert first.stop() == 0


def _models(folder: Path) -> dict[str, str]:
    return {"SLUICE__MODELS__REPOSITORY": str(folder / "models")}


def test_ctrl_c_stops_as_sigterm_does(folder: Path) -> None:
    with GatewayProcess(ROUTE, folder) as gateway:
        gateway.signal(signal.SIGINT)
        assert gateway.wait() == 0
        assert len(gateway.events("stopped")) == 1
        assert "Traceback" not in gateway.log


def test_while_models_load_the_process_is_live_and_not_ready(folder: Path) -> None:
    """The fake is warmed up over seven batch sizes, at 0.3 s each."""
    write_fake(folder / "models" / "slow" / "1" / "model.json", latency_ms=300)
    ports = {name: free_port() for name in ("http", "grpc", "metrics", "admin")}
    server = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    gateway = GatewayProcess(toml({**ROUTE, "server": server}), folder)
    at = Addresses.of_ports(ports)
    try:
        with httpx.Client(base_url=f"http://{at.http}") as client:
            wait_until(lambda: _answers(client), "the predict port answers")
            assert client.get("/v2/health/live").status_code == 200
            assert client.get("/v2/health/ready").status_code == 503
            assert "sluice_ready 0.0" in httpx.get(f"http://{at.metrics}/metrics").text
            with connected(at) as transports:
                for transport in transports:
                    answer = transport.infer(Ask(model="mlp", inputs=(ROW,)))
                    assert answer.came_to(Outcome.UNAVAILABLE)
                    assert answer.error == "the server is starting: its models are being loaded"
            gateway.wait_ready()
            assert client.get("/v2/health/ready").status_code == 200
    finally:
        gateway.kill()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/v2/health/live").status_code == 200
    except httpx.TransportError:
        return False


def test_a_stop_while_models_load_ends_well(folder: Path) -> None:
    write_fake(folder / "models" / "slow" / "1" / "model.json", latency_ms=100)
    port = free_port()
    gateway = GatewayProcess({**ROUTE, "server": {"http": f"127.0.0.1:{port}"}}, folder)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: _answers(client), "the predict port answers")
        assert gateway.stop() == 0
        assert gateway.events("serving") == []
        assert len(gateway.events("stopped")) == 1
    finally:
        gateway.kill()
