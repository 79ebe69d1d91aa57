"""Loading and unloading: refused on the predict ports by default, always there for admins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import pytest

from gateway.pb import inference_pb2 as pb
from tests.support.gateway import GatewayInProcess, LoopThread, in_process
from tests.support.models import write_fake
from tests.support.transports import UNLIMITED, unary

CONFIG: Final[dict[str, Any]] = {  # Any: what a TOML file holds
    "models": {"control": "explicit"},
    "routes": {"route": {"variants": {"only": {"model": "echo", "version": "1", "weight": 100}}}},
}
FORBIDDEN: Final = (
    "{verb} is not allowed on this port: set models.control to 'explicit', or use the admin API"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        write_fake(tmp_path / "echo" / version / "model.json")
    (tmp_path / "echo" / "config.pbtxt").write_text("version_policy { latest { num_versions: 1 } }")
    return tmp_path


@pytest.fixture
def controlled(loop_thread: LoopThread, root: Path) -> Iterator[GatewayInProcess]:
    """Serve with models.control = explicit."""
    with in_process(loop_thread, CONFIG, root) as running:
        yield running


@pytest.fixture
def predict(controlled: GatewayInProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{controlled.at.http}") as client:
        yield client


def states(client: httpx.Client) -> dict[str, str]:
    """Return the state of each version of the model."""
    rows = client.post("/v2/repository/index").json()
    return {row["version"]: row["state"] for row in rows if row["name"] == "echo"}


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_the_predict_ports_refuse_by_default(
    client: httpx.Client, channel: grpc.Channel, verb: str
) -> None:
    sentence = FORBIDDEN.format(verb=verb)
    for path in ("/v2/repository/models/mlp", "/v2/repository/any/models/mlp"):
        reply = client.post(f"{path}/{verb}")
        assert (reply.status_code, reply.json()) == (403, {"error": sentence})
    with pytest.raises(grpc.RpcError) as caught:
        control(channel, verb, "mlp")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == sentence
    assert client.get("/v2/models/mlp/ready").status_code == 200


def control(channel: grpc.Channel, verb: str, model: str) -> Any:  # Any: generated messages
    """Call RepositoryModelLoad or RepositoryModelUnload."""
    method = f"RepositoryModel{verb.capitalize()}"
    request = getattr(pb, f"{method}Request")(model_name=model)
    return unary(channel, method, getattr(pb, f"{method}Response"))(request, timeout=15)


def test_a_version_that_a_route_names_is_served_whatever_the_policy_says(
    predict: httpx.Client,
) -> None:
    assert states(predict) == {"1": "READY", "2": "READY"}


def test_explicit_control_unloads_and_loads_again(predict: httpx.Client) -> None:
    assert predict.post("/v2/repository/models/echo/unload").status_code == 200
    assert states(predict) == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
    for name in ("echo", "route"):
        reply = predict.get(f"/v2/models/{name}/ready")
        assert (reply.status_code, reply.json()) == (
            503,
            {"error": f"model {name!r} is not ready"},
        )
    assert predict.get("/v2/health/ready").status_code == 200
    assert predict.post("/v2/repository/models/echo/load").status_code == 200
    assert states(predict) == {"1": "READY", "2": "READY"}
    assert predict.get("/v2/models/route/ready").status_code == 200


def test_explicit_control_works_over_grpc(
    controlled: GatewayInProcess, predict: httpx.Client
) -> None:
    with grpc.insecure_channel(controlled.at.grpc, options=UNLIMITED) as channel:
        control(channel, "unload", "echo")
        assert states(predict) == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
        control(channel, "load", "echo")
        assert states(predict) == {"1": "READY", "2": "READY"}
        with pytest.raises(grpc.RpcError) as caught:
            control(channel, "load", "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_new_version_on_disk_is_served_after_a_load(predict: httpx.Client, root: Path) -> None:
    write_fake(root / "echo" / "3" / "model.json")
    assert predict.post("/v2/repository/models/echo/load").status_code == 200
    assert states(predict) == {"1": "READY", "3": "READY"}  # latest 1, and the route's


def test_a_load_that_brings_nothing_up_says_why(predict: httpx.Client, root: Path) -> None:
    (root / "new" / "1").mkdir(parents=True)
    (root / "new" / "1" / "model.json").write_text("{}")
    reply = predict.post("/v2/repository/models/new/load")
    assert reply.status_code == 503
    assert reply.json()["error"].startswith("model 'new' is not ready: 1: model.json does not load")


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_a_model_that_is_not_there_is_not_found(predict: httpx.Client, verb: str) -> None:
    reply = predict.post(f"/v2/repository/models/nobody/{verb}")
    assert reply.status_code == 404
    assert "'nobody'" in reply.json()["error"]


def test_a_name_cannot_leave_the_repository(predict: httpx.Client) -> None:
    for name in ("..", "%2e%2e", "..%2fecho"):
        assert predict.post(f"/v2/repository/models/{name}/load").status_code == 404


def test_load_parameters_are_not_supported(
    controlled: GatewayInProcess, predict: httpx.Client
) -> None:
    sentence = "load parameters (config overrides, file uploads) are not supported"
    reply = predict.post("/v2/repository/models/echo/load", json={"parameters": {"config": "{}"}})
    assert (reply.status_code, reply.json()) == (501, {"error": sentence})
    assert predict.post("/v2/repository/models/echo/load", json={}).status_code == 200
    request = pb.RepositoryModelLoadRequest(model_name="echo")
    request.parameters["config"].string_param = "{}"
    with grpc.insecure_channel(controlled.at.grpc, options=UNLIMITED) as channel:
        load = unary(channel, "RepositoryModelLoad", pb.RepositoryModelLoadResponse)
        with pytest.raises(grpc.RpcError) as caught:
            load(request, timeout=15)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == sentence


def test_the_admin_port_always_loads_and_unloads(loop_thread: LoopThread, root: Path) -> None:
    with (
        in_process(loop_thread, {}, root) as running,
        httpx.Client(base_url=f"http://{running.at.admin}") as admin,
    ):
        for verb, state in (("unload", "UNAVAILABLE"), ("load", "READY")):
            reply = admin.post(f"/v1/models/echo/{verb}")
            assert reply.status_code == 200
            assert {row["state"] for row in reply.json()["models"]} == {state}
        assert admin.get("/v1/models").json() == reply.json()
        assert admin.post("/v1/models/nobody/load").status_code == 404


def test_nothing_is_loaded_while_the_server_drains(
    controlled: GatewayInProcess, predict: httpx.Client
) -> None:
    controlled.loop.call(controlled.app.lifecycle.drain)
    reply = predict.post("/v2/repository/models/echo/load")
    assert reply.status_code == 503
    assert reply.json() == {"error": "the server is shutting down"}
    assert predict.get("/v2/health/ready").status_code == 503
    assert predict.get("/v2/health/live").json() == {"live": True}
    assert predict.get("/v2/models/echo/ready").status_code == 503
