"""One process and two fronts give the same answers: the same calls are made to both, and compared.

What may differ is left out of the comparison: dates, request ids, counts of statistics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import grpc
import httpx
import numpy as np
import pytest

from gateway.pb import inference_pb2 as pb
from tests.support.gateway import GatewayProcess, toml, wait_until, with_free_ports
from tests.support.models import ONNX_TYPES, write_fake, write_identity
from tests.support.transports import (
    METHOD,
    TRANSPORTS,
    Ask,
    Given,
    Transport,
    infer_message,
    unary,
)

DATATYPES: Final = tuple(sorted(set(ONNX_TYPES) - {"BF16"}))
VARY: Final = {"date", "x-request-id"}
ELEMENTS: Final[dict[str, list[Any]]] = {  # Any: of the datatype
    "BOOL": [True, False],
    "BYTES": [b"", "grün".encode()],
    **{f"FP{bits}": [1.5, -0.25] for bits in (16, 32, 64)},
    **{f"UINT{bits}": [0, 200] for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": [-100, 100] for bits in (8, 16, 32, 64)},
}


def _config(workers: int) -> str:
    document = {
        "server": {"workers": workers, "max_body_bytes": 1 << 20},
        "routes": {
            "split": {
                "variants": {
                    "a": {"model": "echo_fp32", "version": "1", "weight": 100},
                    "b": {"model": "echo_fp64", "version": "1", "weight": 0},
                },
            }
        },
    }
    return toml(with_free_ports(document)) + _RULE


_RULE: Final = """
[[routes.split.rules]]
name = "gold"
when.header.x-tier = "gold"
to = "b"
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, ...]]:
    """Serve the same models from one process and from two fronts."""
    folder = tmp_path_factory.mktemp("answers")
    models = folder / "models"
    for datatype in DATATYPES:
        write_identity(models / f"echo_{datatype.lower()}" / "1" / "model.onnx", datatype, [2])
    write_identity(models / "wide" / "1" / "model.onnx", "FP32", ["n"])
    write_fake(models / "failing" / "1" / "model.json", fail_on=13)
    write_fake(models / "slow" / "1" / "model.json", latency_ms=60)
    (models / "slow" / "config.pbtxt").write_text("max_batch_size: 1")
    environ = {"SLUICE__MODELS__REPOSITORY": str(models)}
    with (
        GatewayProcess(_config(1), folder / "one", environ=environ) as one,
        GatewayProcess(_config(2), folder / "two", environ=environ) as two,
    ):
        yield one, two


def given(datatype: str = "FP32", elements: list[Any] | None = None, **fields: Any) -> Given:
    """Return an input of one row. Any: elements, and fields of Given."""
    elements = ELEMENTS[datatype] if elements is None else elements
    return Given(
        **{"name": "x", "datatype": datatype, "shape": (1, len(elements)), "elements": elements}
        | fields
    )


ROW: Final = given()
WIDE: Final = np.arange(100_000, dtype=np.float32)
FAILS: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[13.0] * 4)
FOUR: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0] * 4)
CORPUS: Final[dict[str, Ask]] = {
    **{d: Ask(model=f"echo_{d.lower()}", inputs=(given(d),), id=d) for d in DATATYPES},
    "version": Ask(model="echo_fp32", version="1", inputs=(ROW,)),
    "no version": Ask(model="echo_fp32", version="7", inputs=(ROW,)),
    "no model": Ask(model="nobody", inputs=(ROW,)),
    "no input": Ask(model="echo_fp32", inputs=()),
    "another input": Ask(model="echo_fp32", inputs=(given(name="z"),)),
    "two inputs": Ask(model="echo_fp32", inputs=(ROW, given(name="z"))),
    "another datatype": Ask(model="echo_fp32", inputs=(given("FP64"),)),
    "another shape": Ask(model="echo_fp32", inputs=(given(elements=[1.0, 2.0, 3.0]),)),
    "too many rows": Ask(model="echo_fp32", inputs=(given(elements=[0.0] * 130, shape=(65, 2)),)),
    "outputs": Ask(model="echo_fp32", inputs=(ROW,), outputs=("y",)),
    "another output": Ask(model="echo_fp32", inputs=(ROW,), outputs=("z",)),
    "parameters": Ask(
        model="echo_fp32",
        inputs=(ROW,),
        parameters={"a": True, "b": -(1 << 63), "c": 1.25, "d": "text", "timeout": 5_000_000},
    ),
    "bad timeout": Ask(model="echo_fp32", inputs=(ROW,), parameters={"timeout": "soon"}),
    "route": Ask(model="split", inputs=(ROW,)),
    "route by header": Ask(model="split", inputs=(given("FP64"),), headers={"x-tier": "gold"}),
    "infinity": Ask(
        model="echo_fp32",
        inputs=(given(elements=[float("inf"), 1.0]),),
    ),
    "wide": Ask(model="wide", inputs=(given(elements=WIDE.tolist(), raw=WIDE.tobytes()),)),
    "failing": Ask(model="failing", inputs=(FAILS,)),
    "late": Ask(model="slow", inputs=(FOUR,), timeout_s=0.02),
    "own id": Ask(model="echo_fp32", inputs=(ROW,), id="an id", headers={"x-request-id": "r"}),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("case", CORPUS)
def test_an_infer_call_has_the_same_answer(
    both: tuple[GatewayProcess, ...], case: str, transport: str
) -> None:
    ask = CORPUS[case]
    answers: list[object] = []
    for gateway in both:
        client: Transport = TRANSPORTS[transport](gateway.at)
        if ask.inputs and ask.inputs[0].datatype in client.cannot_carry:
            client.close()
            return
        try:
            answer = client.infer(ask)
        except ValueError as exc:  # the client cannot write it
            answers.append(str(exc))
            continue
        finally:
            client.close()
        lines = {key: value for key, value in answer.headers.items() if key not in VARY}
        whole = answer.model, answer.version, answer.id, answer.outputs, lines, answer.error
        answers.append((answer.code, *whole) if case != "late" else (answer.code,))
    assert answers[0] == answers[1]


NAN: Final = np.array([np.nan, 1.0], dtype=np.float32).tobytes()
HEAD: Final = {
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    ]
}
LENGTH: Final = "inference-header-content-length"
INFER: Final = "/v2/models/echo_fp32/infer"


def _binary(**fields: Any) -> dict[str, Any]:  # Any: JSON, and arguments of httpx
    head = json.dumps(HEAD | fields).encode()
    return {"content": head + NAN, "headers": {LENGTH: str(len(head))}}


PAGES: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {  # Any: arguments of httpx
    "nan as json": ("POST", INFER, _binary()),
    "nan as bytes": (
        "POST",
        INFER,
        _binary(outputs=[{"name": "y", "parameters": {"binary_data": True}}]),
    ),
    "nan as json by output": (
        "POST",
        INFER,
        _binary(
            parameters={"binary_data_output": True},
            outputs=[{"name": "y", "parameters": {"binary_data": False}}],
        ),
    ),
    "raw": ("POST", INFER, {"content": bytes(8), "headers": {LENGTH: "0"}}),
    "raw of another size": ("POST", INFER, {"content": bytes(7), "headers": {LENGTH: "0"}}),
    "raw to nobody": ("POST", "/v2/models/x/infer", {"content": b"", "headers": {LENGTH: "0"}}),
    "no json": ("POST", INFER, {"content": b"{"}),
    "bad timeout": ("POST", INFER, {"content": b"{}", "headers": {"x-sluice-timeout-ms": "x"}}),
    "too large": ("POST", INFER, {"content": bytes((1 << 20) + 1)}),
    "too large elsewhere": ("POST", "/v2/repository/index", {"content": bytes((1 << 20) + 1)}),
    "infer by get": ("GET", INFER, {}),
    "live": ("GET", "/v2/health/live", {}),
    "live by post": ("POST", "/v2/health/live", {}),
    "ready": ("GET", "/v2/health/ready", {}),
    "head": ("HEAD", "/v2", {}),
    "metadata": ("GET", "/v2", {}),
    "slash": ("GET", "/v2/", {}),
    "model": ("GET", "/v2/models/echo_fp32", {}),
    "model version": ("GET", "/v2/models/echo_fp32/versions/1", {}),
    "model of a route": ("GET", "/v2/models/split", {}),
    "model ready": ("GET", "/v2/models/echo_fp32/ready", {}),
    "nobody ready": ("GET", "/v2/models/nobody/ready", {}),
    "config": ("GET", "/v2/models/echo_fp32/config", {}),
    "no path": ("GET", "/v3/%C3%BC?x=1", {}),
    "index": ("POST", "/v2/repository/index", {"content": b'{"ready": true}'}),
    "index, compressed": (
        "POST",
        "/v2/repository/index",
        {"content": b"no gzip", "headers": {"content-encoding": "gzip"}},
    ),
    "load": ("POST", "/v2/repository/models/echo_fp32/load", {}),
    "unsupported": ("GET", "/v2/systemsharedmemory/status", {}),
}


@pytest.mark.parametrize("page", PAGES)
def test_an_http_request_has_the_same_answer(both: tuple[GatewayProcess, ...], page: str) -> None:
    method, path, arguments = PAGES[page]
    answers = []
    for gateway in both:
        answer = httpx.request(method, f"http://{gateway.at.http}{path}", **arguments)
        lines = sorted(
            (k, sorted(v.split(", "))) for k, v in answer.headers.items() if k not in VARY
        )
        answers.append((answer.status_code, answer.content, lines))
    if page.startswith("raw") and answers[0][0] != 200:
        # A body that only the engine process can read is refused there, as a request with an id.
        assert answers[0][:2] == answers[1][:2]
    else:
        assert answers[0] == answers[1]


CALLS: Final[dict[str, tuple[Any, Any]]] = {  # Any: generated classes
    "ServerLive": (pb.ServerLiveRequest(), pb.ServerLiveResponse),
    "ServerReady": (pb.ServerReadyRequest(), pb.ServerReadyResponse),
    "ModelReady": (pb.ModelReadyRequest(name="wide"), pb.ModelReadyResponse),
    "ServerMetadata": (pb.ServerMetadataRequest(), pb.ServerMetadataResponse),
    "ModelMetadata": (pb.ModelMetadataRequest(name="split"), pb.ModelMetadataResponse),
    "ModelConfig": (pb.ModelConfigRequest(name="echo_fp32"), pb.ModelConfigResponse),
    "ModelStatistics": (pb.ModelStatisticsRequest(name="nobody"), pb.ModelStatisticsResponse),
    "RepositoryIndex": (pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse),
    "RepositoryModelLoad": (
        pb.RepositoryModelLoadRequest(model_name="wide"),
        pb.RepositoryModelLoadResponse,
    ),
}


@pytest.mark.parametrize("method", CALLS)
def test_a_grpc_call_has_the_same_answer(both: tuple[GatewayProcess, ...], method: str) -> None:
    asked, answer_type = CALLS[method]
    answers: list[object] = []
    for gateway in both:
        with grpc.insecure_channel(gateway.at.grpc) as channel:
            try:
                answers.append(unary(channel, method, answer_type)(asked, timeout=10))
            except grpc.RpcError as exc:
                answers.append((exc.code(), exc.details()))
    assert answers[0] == answers[1]


def test_a_stream_has_the_same_answers_in_the_same_order(both: tuple[GatewayProcess, ...]) -> None:
    asks = [Ask(model="echo_fp32", inputs=(given(elements=[n, -n]),), id=str(n)) for n in range(50)]
    asks[7] = Ask(model="nobody", inputs=(ROW,), id="7")
    answers = []
    for gateway in both:
        with grpc.insecure_channel(gateway.at.grpc) as channel:
            stream: Any = channel.stream_stream(  # Any: grpcio ships no types
                METHOD + "ModelStreamInfer",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=pb.ModelStreamInferResponse.FromString,
            )
            found = []
            for answer in stream((infer_message(a, is_raw=True) for a in asks), timeout=15):
                answer.infer_response.parameters.pop("x-request-id", None)
                found.append(answer)
            answers.append(found)
    assert len(answers[0]) == 50
    assert answers[0] == answers[1]


def requests_counted(gateway: GatewayProcess) -> dict[str, float]:
    """Return the metric of answered requests by its labels.

    A client whose deadline passes resets its stream at the moment at which the gateway's own timer
    fires: which of the two a call is counted as is a race, so they are added up.
    """
    counted: dict[str, float] = {}
    for line in httpx.get(f"http://{gateway.at.metrics}/metrics").text.splitlines():
        if line.startswith("sluice_requests_total"):
            labels, _, count = line.rpartition(" ")
            labels = labels.replace('"CANCELLED"', '"DEADLINE_EXCEEDED"')
            counted[labels] = counted.get(labels, 0) + float(count)
    return counted


def test_the_books_agree_in_the_end(both: tuple[GatewayProcess, ...]) -> None:
    """Everything above was asked of both; what a front refuses it reports a moment later."""
    one, two = both
    wait_until(lambda: requests_counted(one) == requests_counted(two), "both have counted the same")
