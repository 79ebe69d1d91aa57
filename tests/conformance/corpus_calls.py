"""Calls that are ordinary on the wire: good ones, and those that the service refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from gateway.pb import inference_pb2 as pb
from tests.conformance.rpc import SERVICE, Body, Head, Rpc, message, with_fields
from tests.support.served import BAD_ON, DATATYPES, FAIL_ON
from tests.support.transports import Ask, Given, infer_message

HEALTH: Final = "/grpc.health.v1.Health/"
REFLECTION: Final = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_ELEMENTS: Final[Mapping[str, list[Any]]] = {  # Any: numbers, booleans or bytes
    "BOOL": [True, False],
    "BYTES": [b"a", b"\xff\x00"],
    "BF16": [0x3F80, 0x4000],
}
ROW: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0, 2.0, 3.0, 4.0])


def unary(name: str, method: str, data: bytes, *, is_alone: bool = False) -> Rpc:
    """Return a plain unary call; a method without a slash is one of the inference service."""
    path = method if "/" in method else SERVICE + method
    head = Head(with_fields(__path=path))
    return Rpc(name=name, steps=(head, Body(message(data))), is_alone=is_alone)


def infer_data(ask: Ask, *, is_raw: bool = True) -> bytes:
    """Return an infer request."""
    data: bytes = infer_message(ask, is_raw=is_raw).SerializeToString()
    return data


def infer(name: str, *inputs: Given, is_raw: bool = True, model: str = "mlp", **ask: Any) -> Rpc:
    """Return an infer call. Any: the fields of Ask."""
    data = infer_data(Ask(model=model, inputs=inputs or (ROW,), **ask), is_raw=is_raw)
    return unary(name, "ModelInfer", data, is_alone=model in ("failing", "lookup", "slow"))


def rpcs() -> list[Rpc]:
    """Return the calls."""
    return [*_inform(), *_infer(), *_refused_inputs(), *_refused(), *_malformed(), *_services()]


def _inform() -> list[Rpc]:
    found = [unary(name, name, b"") for name in ("ServerLive", "ServerReady", "ServerMetadata")]
    for name, version in (("mlp", ""), ("mlp", "1"), ("mlp", "3"), ("mlp", "9"), ("nobody", "")):
        called = f"{name} {version or 'any'}"
        ready = pb.ModelReadyRequest(name=name, version=version)
        found.append(unary(f"ready: {called}", "ModelReady", ready.SerializeToString()))
        metadata = pb.ModelMetadataRequest(name=name, version=version)
        found.append(unary(f"metadata: {called}", "ModelMetadata", metadata.SerializeToString()))
        config = pb.ModelConfigRequest(name=name, version=version)
        found.append(unary(f"config: {called}", "ModelConfig", config.SerializeToString()))
    for model in ("pair", "unbatched", "lookup", "graded", "split", "twin", "echo_bytes"):
        described = pb.ModelMetadataRequest(name=model).SerializeToString()
        found.append(unary(f"metadata: {model}", "ModelMetadata", described))
    for ready_only in (False, True):
        index = pb.RepositoryIndexRequest(ready=ready_only).SerializeToString()
        found.append(unary(f"index: ready only {ready_only}", "RepositoryIndex", index))
    return found


def _infer() -> list[Rpc]:
    found = []
    for datatype in DATATYPES:
        elements = _ELEMENTS.get(datatype, [1, 2])
        given = Given(name="x", datatype=datatype, shape=(1, 2), elements=elements)
        model = f"echo_{datatype.lower()}"
        found.append(infer(f"infer: {datatype} raw", given, model=model))
        if datatype not in ("FP16", "BF16"):
            found.append(infer(f"infer: {datatype} typed", given, model=model, is_raw=False))
    for rows in (0, 1, 2, 3, 64, 65, 200):
        given = Given(name="x", datatype="FP32", shape=(rows, 4), elements=[0.5] * 4 * rows)
        found.append(infer(f"infer: {rows} rows", given, model="echo_fp32"))
    a = Given(name="a", datatype="FP32", shape=(1, 2), elements=[1.0, 2.0])
    b = Given(name="b", datatype="INT64", shape=(1, 1), elements=[3])
    three = Given(name="x", datatype="FP32", shape=(3,), elements=[1.0] * 3)
    index = Given(name="x", datatype="INT64", shape=(4, 1), elements=[0, 1, 2, 3])
    return [
        *found,
        infer("infer: two inputs", a, b, model="pair"),
        infer("infer: two inputs turned round", b, a, model="pair"),
        infer("infer: one of two outputs", a, b, model="pair", outputs=("v",)),
        infer("infer: outputs turned round", a, b, model="pair", outputs=("v", "u")),
        infer("infer: no batch axis", three, model="unbatched"),
        infer("infer: a full batch", index, model="lookup"),
        infer("infer: version 1", version="1"),
        infer("infer: version 2", version="2"),
        infer("infer: an id", id="call-1"),
        infer("infer: an id beyond ASCII", id="№ 5"),
        infer("infer: an empty row of text", _text(b""), model="echo_bytes"),
        infer("infer: a long text", _text(b"z" * 70_000), model="echo_bytes"),
        infer("infer: by a key", model="split", parameters={"user": "somebody"}),
        infer("infer: all to one version", model="twin"),
        infer("infer: a priority", model="graded", parameters={"priority": 2}),
        infer("infer: a timeout", parameters={"timeout": 5_000_000}),
        infer("infer: a boolean parameter", parameters={"flag": True}),
        infer("infer: slow", model="slow"),
    ]


def _text(data: bytes) -> Given:
    return Given(name="x", datatype="BYTES", shape=(1, 1), elements=[data])


def _refused_inputs() -> list[Rpc]:
    def given(**changes: Any) -> Given:  # Any: the fields of Given
        fields: dict[str, Any] = {  # Any: as above
            "name": "x",
            "datatype": "FP32",
            "shape": (1, 4),
            "elements": [1.0] * 4,
        }
        return Given(**(fields | changes))

    found = []
    for is_raw in (True, False):
        form = "raw" if is_raw else "typed"
        for what, one in {
            "another name": given(name="z"),
            "another datatype": given(datatype="INT32", elements=[1] * 4),
            "no such datatype": given(datatype="FP99", raw=b"\0" * 16),
            "too few elements": given(elements=[1.0] * 3),
            "too many elements": given(elements=[1.0] * 5),
            "another width": given(shape=(1, 5), elements=[1.0] * 5),
            "another rank": given(shape=(4,)),
            "a negative dimension": given(shape=(-1, 4)),
            "huge dimensions": given(shape=(1 << 40, 1 << 40)),
            "no dimensions": given(shape=()),
        }.items():
            found.append(infer(f"refused: {what}, {form}", one, is_raw=is_raw))
    text = given(datatype="BYTES", shape=(1, 1), raw=b"\x05\0\0\0ab")
    odd = given(elements=[], raw=b"\0" * 15)
    return [
        *found,
        infer("refused: text cut off", text, model="echo_bytes"),
        infer("refused: bytes that are no elements", odd),
        infer("refused: the same input twice", ROW, ROW),
        infer("refused: one of two inputs missing", given(name="a", shape=(1, 2)), model="pair"),
    ]


def _refused() -> list[Rpc]:
    def row(value: float) -> Given:
        return Given(name="x", datatype="FP32", shape=(1, 4), elements=[value] * 4)

    bad_index = Given(name="x", datatype="INT64", shape=(1, 1), elements=[99])
    mixed = infer_message(Ask(model="mlp", inputs=(ROW,)), is_raw=True)
    mixed.inputs[0].contents.fp32_contents.append(1.0)
    counted = infer_message(Ask(model="mlp", inputs=(ROW,)), is_raw=True)
    counted.raw_input_contents.append(b"")
    loads = pb.RepositoryModelLoadRequest(model_name="mlp").SerializeToString()
    unloads = pb.RepositoryModelUnloadRequest(model_name="mlp").SerializeToString()
    statistics = pb.ModelStatisticsRequest(name="nobody").SerializeToString()
    return [
        infer("refused: no inputs given by name", Given(**_NAMELESS)),
        infer("refused: unknown model", model="nobody"),
        infer("refused: unknown model beyond ASCII", model="числа %20\n"),
        infer("refused: empty model", model=""),
        infer("refused: unknown version", version="77"),
        infer("refused: version that failed to load", version="3"),
        infer("refused: version of a route", model="split", version="1"),
        infer("refused: version that is no number", version="latest"),
        infer("refused: unknown output", outputs=("z",)),
        infer("refused: an output twice", outputs=("y", "y")),
        infer("refused: a priority too high", model="graded", parameters={"priority": 3}),
        infer("refused: a priority that is text", model="graded", parameters={"priority": "a"}),
        infer("refused: a timeout that is text", parameters={"timeout": "soon"}),
        infer("refused: a negative timeout", parameters={"timeout": -1}),
        infer("refused: a sequence", parameters={"sequence_id": 4}),
        infer("late: the timeout parameter", model="slow", parameters={"timeout": 1}),
        infer("failed: the engine raises", row(FAIL_ON), model="failing"),
        infer("failed: the engine refuses", row(BAD_ON), model="failing"),
        infer("failed: the graph raises", bad_index, model="lookup"),
        unary("refused: typed beside raw", "ModelInfer", mixed.SerializeToString()),
        unary("refused: too many raw entries", "ModelInfer", counted.SerializeToString()),
        unary("refused: no model and no inputs", "ModelInfer", b""),
        unary("refused: load", "RepositoryModelLoad", loads),
        unary("refused: unload", "RepositoryModelUnload", unloads),
        unary("refused: statistics of nobody", "ModelStatistics", statistics),
        unary("unknown method: shared memory", "SystemSharedMemoryStatus", b""),
        unary("unknown method: lower case", "modelInfer", b""),
        unary("unknown method: one more letter", "ModelInfers", b""),
        unary("unknown method: none", SERVICE, b""),
        unary("unknown service", "/someone.Else/Call", b""),
        unary("unknown service: without its package", "/GRPCInferenceService/ServerLive", b""),
    ]


_NAMELESS: Final[dict[str, Any]] = {  # Any: the fields of Given
    "name": "",
    "datatype": "FP32",
    "shape": (1, 4),
    "elements": [1.0] * 4,
}


def _malformed() -> list[Rpc]:
    wrong = {
        "a lone byte": b"\xff",
        "a cut field": b"\x0a\x05ab",
        "no UTF-8": b"\x0a\x02\xff\xfe",
        "a group that never ends": b"\x0b",
        "field zero": b"\x02\x00",
        "an endless varint": b"\x08" + b"\xff" * 11,
        "an unknown field": b"\xfa\x7f\x01x",
    }
    methods = ("ModelInfer", "ModelMetadata", "ModelReady", "ModelConfig", "RepositoryIndex")
    return [
        unary(f"malformed: {what}, {method}", method, data)
        for what, data in wrong.items()
        for method in methods
    ]


def _services() -> list[Rpc]:
    check = health_pb2.HealthCheckRequest
    ours = check(service=SERVICE.strip("/")).SerializeToString()
    nobody = check(service="someone.Else").SerializeToString()
    asked = reflection_pb2.ServerReflectionRequest
    extension = reflection_pb2.ExtensionRequest(containing_type="a.B", extension_number=3)
    options = "google.protobuf.FieldOptions"
    questions = {
        "the services": asked(list_services="*"),
        "a file": asked(file_by_filename="grpc/health/v1/health.proto"),
        "an unknown file": asked(file_by_filename="nothing.proto"),
        "a service": asked(file_containing_symbol=SERVICE.strip("/")),
        "a message": asked(file_containing_symbol="inference.ModelInferRequest"),
        "a method": asked(file_containing_symbol="inference.GRPCInferenceService.ModelInfer"),
        "an unknown symbol": asked(file_containing_symbol="inference.Nobody"),
        "an unknown extension": asked(file_containing_extension=extension),
        "extensions of a message": asked(all_extension_numbers_of_type=options),
        "extensions of nobody": asked(all_extension_numbers_of_type="a.B"),
        "nothing": asked(host="here"),
    }
    return [
        unary("health: the server", HEALTH + "Check", b""),
        unary("health: the service", HEALTH + "Check", ours),
        unary("health: nobody", HEALTH + "Check", nobody),
        unary("health: malformed", HEALTH + "Check", b"\xff"),
        unary("health: list", HEALTH + "List", b""),
        unary("health: unknown method", HEALTH + "Look", b""),
        unary("health: a malformed watch", HEALTH + "Watch", b"\xff"),
        unary("reflection: malformed", REFLECTION, b"\xff"),
        *(
            unary(f"reflection: {what}", REFLECTION, question.SerializeToString())
            for what, question in questions.items()
        ),
    ]
