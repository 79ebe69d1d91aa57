"""The calls around inference, over HTTP and gRPC: metadata, configuration, statistics, health and
the index, for models and for routes. Loading and unloading are in test_model_control.py."""

from __future__ import annotations

from typing import Any, Final

import grpc
import httpx
import pytest

from gateway import __version__
from gateway.pb import inference_pb2 as pb
from tests.support.gateway import GatewayInProcess
from tests.support.http import body, tensor
from tests.support.served import CONFIG
from tests.support.transports import unary

EXTENSIONS: Final = {
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
}
STAGES: Final = (
    "success",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


def call(channel: grpc.Channel, method: str, **fields: Any) -> Any:  # Any: generated messages
    """Call a unary method by name."""
    request, answer = getattr(pb, f"{method}Request"), getattr(pb, f"{method}Response")
    return unary(channel, method, answer)(request(**fields), timeout=15)


def failure(channel: grpc.Channel, method: str, **fields: Any) -> tuple[str, str]:  # Any: as above
    """Call a unary method that fails, and return code and sentence."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, **fields)
    return caught.value.code().name, caught.value.details() or ""


def get(client: httpx.Client, path: str) -> Any:  # Any: JSON
    """Get a document."""
    reply = client.get(path)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    return reply.json()


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_names_itself_and_its_extensions(client: httpx.Client, path: str) -> None:
    document = get(client, path)
    assert (document["name"], document["version"]) == ("sluice", __version__)
    assert set(document["extensions"]) == EXTENSIONS


def test_grpc_says_the_same_of_the_server(channel: grpc.Channel) -> None:
    answer = call(channel, "ServerMetadata")
    assert (answer.name, answer.version) == ("sluice", __version__)
    assert set(answer.extensions) == EXTENSIONS


def test_the_server_is_live_and_ready(client: httpx.Client, channel: grpc.Channel) -> None:
    assert get(client, "/v2/health/live") == {"live": True}
    assert get(client, "/v2/health/ready") == {"ready": True}
    assert call(channel, "ServerLive").live
    assert call(channel, "ServerReady").ready


@pytest.mark.parametrize(
    ("name", "version", "versions"),
    [
        ("mlp", "", ["1", "2"]),
        ("mlp", "1", ["1"]),
        ("split", "", ["1", "2"]),
        ("split", "2", ["2"]),
        ("twin", "", ["1", "2"]),
        ("mixed", "", ["1", "2"]),
    ],
)
def test_metadata_work_for_models_and_routes_alike(
    client: httpx.Client, channel: grpc.Channel, name: str, version: str, versions: list[str]
) -> None:
    suffix = f"/versions/{version}" if version else ""
    document = get(client, f"/v2/models/{name}{suffix}")
    assert (document["name"], document["versions"]) == (name, versions)
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    answer = call(channel, "ModelMetadata", name=name, version=version)
    assert (answer.name, list(answer.versions)) == (name, versions)
    assert answer.platform == document["platform"]
    for spec, written in zip(
        (*answer.inputs, *answer.outputs), document["inputs"] + document["outputs"], strict=True
    ):
        assert {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": list(spec.shape),
        } == written


def test_a_model_without_a_batch_axis_shows_its_whole_shape(client: httpx.Client) -> None:
    document = get(client, "/v2/models/unbatched")
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [3]}]
    assert get(client, "/v2/models/unbatched/config")["max_batch_size"] == 0


UNKNOWN: Final = [
    ("nobody", "", "no route and no model is named 'nobody'"),
    ("mlp", "9", "version '9' of model 'mlp' is not known"),
    (
        "mixed",
        "1",
        (
            "version '1' of route 'mixed' is ambiguous: it is that of the variants ours (mlp), "
            "theirs (rival)"
        ),
    ),
]


@pytest.mark.parametrize(("name", "version", "sentence"), UNKNOWN)
@pytest.mark.parametrize(
    ("suffix", "method"),
    [
        ("", "ModelMetadata"),
        ("/config", "ModelConfig"),
        ("/stats", "ModelStatistics"),
    ],
)
def test_what_is_not_known_is_not_found_by_any_call(  # noqa: PLR0913 - two tables of two and three
    client: httpx.Client,
    channel: grpc.Channel,
    name: str,
    version: str,
    sentence: str,
    suffix: str,
    method: str,
) -> None:
    of_version = f"/versions/{version}" if version else ""
    reply = client.get(f"/v2/models/{name}{of_version}{suffix}")
    assert (reply.status_code, reply.json()) == (404, {"error": sentence})
    assert failure(channel, method, name=name, version=version) == ("NOT_FOUND", sentence)


@pytest.mark.parametrize(("name", "version", "sentence"), UNKNOWN)
def test_what_is_not_known_is_not_ready(
    client: httpx.Client, channel: grpc.Channel, name: str, version: str, sentence: str
) -> None:
    """Over gRPC this is no error: clients poll the call until it says yes."""
    of_version = f"/versions/{version}" if version else ""
    reply = client.get(f"/v2/models/{name}{of_version}/ready")
    assert (reply.status_code, reply.json()) == (404, {"error": sentence})
    assert not call(channel, "ModelReady", name=name, version=version).ready


@pytest.mark.parametrize(("suffix", "method"), [("", "ModelMetadata"), ("/config", "ModelConfig")])
def test_a_version_that_did_not_load_cannot_be_described(
    client: httpx.Client, channel: grpc.Channel, suffix: str, method: str
) -> None:
    reply = client.get(f"/v2/models/mlp/versions/3{suffix}")
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"
    sentence = reply.json()["error"]
    assert sentence.startswith("model 'mlp' version 3 is not ready: model.onnx does not load")
    assert failure(channel, method, name="mlp", version="3") == ("UNAVAILABLE", sentence)


@pytest.mark.parametrize(
    ("name", "version"), [("mlp", ""), ("mlp", "1"), ("split", ""), ("split", "2"), ("twin", "3")]
)
def test_who_serves_is_ready(
    client: httpx.Client, channel: grpc.Channel, name: str, version: str
) -> None:
    suffix = f"/versions/{version}" if version else ""
    assert get(client, f"/v2/models/{name}{suffix}/ready") == {"name": name, "ready": True}
    assert call(channel, "ModelReady", name=name, version=version).ready


def test_a_version_that_did_not_load_is_not_ready(
    client: httpx.Client, channel: grpc.Channel
) -> None:
    reply = client.get("/v2/models/mlp/versions/3/ready")
    assert (reply.status_code, reply.json()) == (503, {"error": "model 'mlp' is not ready"})
    assert not call(channel, "ModelReady", name="mlp", version="3").ready


@pytest.mark.parametrize("name", ["mlp", "split"])
def test_a_configuration_has_what_perf_analyzer_reads(
    client: httpx.Client, channel: grpc.Channel, name: str
) -> None:
    document = get(client, f"/v2/models/{name}/config")
    assert (document["name"], document["platform"]) == (name, "onnxruntime_onnx")
    assert document["max_batch_size"] > 0
    assert "dynamic_batching" in document
    assert "sequence_batching" not in document
    assert [(t["name"], t["data_type"], t["dims"]) for t in document["input"]] == [
        ("x", "TYPE_FP32", [4])
    ]
    assert [(t["name"], t["dims"]) for t in document["output"]] == [("y", [3])]
    for entry in document["input"]:
        assert (entry["is_shape_tensor"], entry["optional"]) == (False, False)
    config = call(channel, "ModelConfig", name=name).config
    assert (config.name, config.platform) == (name, "onnxruntime_onnx")
    assert config.max_batch_size == document["max_batch_size"]
    assert config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4]


def row_of(client: httpx.Client, path: str) -> dict[str, Any]:  # Any: JSON
    """Return the only row of a statistics call."""
    (row,) = get(client, path)["model_stats"]
    assert isinstance(row, dict)
    return row


@pytest.mark.parametrize("path", ["/v2/models/split/stats", "/v2/models/mlp/versions/1/stats"])
def test_statistics_have_every_key_that_clients_read_unchecked(
    client: httpx.Client, path: str
) -> None:
    client.post("/v2/models/split/infer", content=body(tensor(shape=[1, 4], data=[0.0] * 4)))
    row = row_of(client, path)
    assert isinstance(row["name"], str)
    assert isinstance(row["version"], str)
    int(row["version"])  # perf_analyzer computes with it
    numbers = [row["inference_count"], row["execution_count"], row["last_inference"]]
    for stage in STAGES:
        duration = row["inference_stats"][stage]
        numbers += [duration["count"], duration["ns"]]
    for batch in row["batch_stats"]:
        numbers.append(batch["batch_size"])
        for stage in ("compute_input", "compute_infer", "compute_output"):
            numbers += [batch[stage]["count"], batch[stage]["ns"]]
    assert all(type(number) is int and number >= 0 for number in numbers)


def test_each_request_counts_once_for_its_route_and_once_for_its_version(
    client: httpx.Client, channel: grpc.Channel
) -> None:
    def counts(path: str) -> tuple[int, int]:
        row = row_of(client, path)
        return row["inference_count"], row["inference_stats"]["queue"]["count"]

    paths = "/v2/models/twin/stats", "/v2/models/twin/versions/1/stats"
    before = [counts(path) for path in paths]
    for _ in range(3):
        client.post("/v2/models/twin/infer", content=body(tensor(shape=[2, 4], data=[0.0] * 8)))
    after = [counts(path) for path in paths]
    assert [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)] == [(6, 3)] * 2
    (row,) = call(channel, "ModelStatistics", name="twin").model_stats
    assert (row.name, row.version) == ("twin", "1")
    assert row.inference_count == after[0][0]
    assert row.inference_stats.queue.count == after[0][1]
    assert row.inference_stats.success.count >= 3
    assert sum(batch.compute_infer.count for batch in row.batch_stats) == row.execution_count


def test_a_refused_request_counts_as_a_failure(client: httpx.Client) -> None:
    path = "/v2/models/twin/versions/2/stats"
    before = row_of(client, path)["inference_stats"]["fail"]["count"]
    client.post("/v2/models/twin/versions/2/infer", content=body(tensor(shape=[1, 2])))
    assert row_of(client, path)["inference_stats"]["fail"]["count"] == before + 1


def test_all_statistics_have_a_row_per_version_and_one_per_route(
    client: httpx.Client, channel: grpc.Channel
) -> None:
    rows = [(r["name"], r["version"]) for r in get(client, "/v2/models/stats")["model_stats"]]
    assert len(rows) == len(set(rows))
    assert {("mlp", "1"), ("mlp", "2"), ("split", "1"), ("mixed", "1")} <= set(rows)
    assert [version for name, version in rows if name == "twin"] == ["1", "2", "3"]
    answer = call(channel, "ModelStatistics")
    assert [(r.name, r.version) for r in answer.model_stats] == rows


def test_statistics_of_a_model_without_a_route_have_a_row_per_ready_version(
    client: httpx.Client, channel: grpc.Channel
) -> None:
    rows = get(client, "/v2/models/mlp/stats")["model_stats"]
    assert [(row["name"], row["version"]) for row in rows] == [("mlp", "1"), ("mlp", "2")]
    answer = call(channel, "ModelStatistics", name="mlp")
    assert [row.version for row in answer.model_stats] == ["1", "2"]


def test_the_index_lists_every_version_with_its_state_and_reason(
    client: httpx.Client, channel: grpc.Channel
) -> None:
    rows = client.post("/v2/repository/index").json()
    found = {(row["name"], row["version"]): (row["state"], row["reason"]) for row in rows}
    assert found["mlp", "1"] == ("READY", "")
    state, reason = found["mlp", "3"]
    assert state == "UNAVAILABLE"
    assert reason.startswith("model.onnx does not load: ")
    assert not any(name in CONFIG["routes"] and name != "twin" for name, _ in found)
    answer = call(channel, "RepositoryIndex")
    assert {(r.name, r.version): (r.state, r.reason) for r in answer.models} == found


def test_the_index_may_be_asked_for_the_ready_ones(
    client: httpx.Client, channel: grpc.Channel
) -> None:
    rows = client.post("/v2/repository/any/index", json={"ready": True}).json()
    assert {row["state"] for row in rows} == {"READY"}
    ready = call(channel, "RepositoryIndex", ready=True).models
    assert len(ready) == len(rows)


@pytest.mark.parametrize("content", [b"{", b"[]", b"7"])
def test_an_index_body_that_is_no_object_is_refused(client: httpx.Client, content: bytes) -> None:
    reply = client.post("/v2/repository/index", content=content)
    assert reply.status_code == 400
    assert reply.json()["error"].startswith("request body: ")


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("GET", "/", 404, "there is no path '/'"),
        ("GET", "/v1/models", 404, "there is no path '/v1/models'"),
        ("GET", "/v2/models/mlp/", 404, "there is no path '/v2/models/mlp/'"),
        ("GET", "/v2/models/a/b/c", 404, "there is no path '/v2/models/a/b/c'"),
        ("POST", "/v2", 405, "POST is not allowed on '/v2'"),
        ("GET", "/v2/repository/index", 405, "GET is not allowed on '/v2/repository/index'"),
        ("DELETE", "/v2/models/mlp", 405, "DELETE is not allowed on '/v2/models/mlp'"),
    ],
)
def test_a_wrong_path_or_method_is_answered_in_the_one_form_of_errors(
    client: httpx.Client, method: str, path: str, status: int, sentence: str
) -> None:
    reply = client.request(method, path)
    assert (reply.status_code, reply.json()) == (status, {"error": sentence})


@pytest.mark.parametrize(
    "path",
    [
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/region/r/register",
        "/v2/trace/setting",
        "/v2/models/mlp/trace/setting",
        "/v2/logging",
    ],
)
def test_an_extension_that_is_not_there_says_so(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        reply = client.request(method, path)
        assert reply.status_code == 501
        assert reply.json() == {"error": f"{path} belongs to an extension that is not supported"}


def test_the_predict_port_serves_neither_admin_calls_nor_metrics(
    client: httpx.Client, gateway: GatewayInProcess
) -> None:
    assert client.get("/v1/routes").status_code == 404
    assert client.get("/metrics").status_code == 404
    assert httpx.get(f"http://{gateway.at.metrics}/v2").status_code == 404


def test_the_admin_port_shows_the_routes(gateway: GatewayInProcess) -> None:
    with httpx.Client(base_url=f"http://{gateway.at.admin}") as admin:
        names = [route["name"] for route in get(admin, "/v1/routes")["routes"]]
        assert names == sorted(CONFIG["routes"])
        document = get(admin, "/v1/routes/split")
        meta = document.pop("meta")
        assert (meta["verb"], meta["parent"]) == ("create", 0)
        assert document == {
            "name": "split",
            "revision": 1,
            "generation": 1,
            "kind": "rollout",
            "salt": "split",
            "key": ["header:x-user-id", "parameter:user"],
            "missing_key": "random",
            "stable": "stable",
            "variants": {
                "stable": {"model": "mlp", "version": "1", "weight": 90},
                "canary": {"model": "mlp", "version": "2", "weight": 10},
            },
            "rules": [],
            "shadows": {},
            "fallback": None,
            "rollback_window_s": 3_600,
            "derived": {
                "slots": [[0, 100_000, "canary", 1], [100_000, 1_000_000, "stable", 1]],
                "epoch": 1,
                "carryover": [],
                "warm": [],
            },
        }
        missing = admin.get("/v1/routes/none")
        assert (missing.status_code, missing.json()) == (
            404,
            {"error": "there is no route 'none'"},
        )
        assert get(admin, "/v1/health/live") == {"live": True}
        assert get(admin, "/v1/health/ready") == {"ready": True}
        assert admin.get("/v2").status_code == 404


def test_the_metrics_port_is_read_by_prometheus(gateway: GatewayInProcess) -> None:
    reply = httpx.get(f"http://{gateway.at.metrics}/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain")
    assert f'sluice_build_info{{version="{__version__}"}} 1.0' in reply.text
    assert "sluice_ready 1.0" in reply.text
    assert "sluice_log_" not in reply.text  # this gateway has no log
