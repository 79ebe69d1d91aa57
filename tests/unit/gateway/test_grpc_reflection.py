"""Reflection for our transport: each answer is the reference servicer's, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from gateway.grpc_transport.reflection import SERVICE, SERVICE_V1, Reflection, methods
from gateway.pb import inference_pb2 as pb

_NAMES: Final = ("z.Last", "inference.GRPCInferenceService", "a.First")
_OPTIONS: Final = "google.protobuf.FieldOptions"


def asked(**fields: Any) -> Any:  # Any: generated without types
    return reflection_pb2.ServerReflectionRequest(**fields)


def extension(containing_type: str, number: int) -> Any:  # Any: as above
    return reflection_pb2.ExtensionRequest(containing_type=containing_type, extension_number=number)


QUESTIONS: Final = {
    "services": asked(list_services="*"),
    "services, with a host": asked(host="here", list_services=""),
    "file": asked(file_by_filename=pb.DESCRIPTOR.name),
    "file that imports": asked(file_by_filename="gateway/pb/model_config.proto"),
    "unknown file": asked(file_by_filename="nothing.proto"),
    "service": asked(file_containing_symbol="inference.GRPCInferenceService"),
    "method": asked(file_containing_symbol="inference.GRPCInferenceService.ModelInfer"),
    "message": asked(file_containing_symbol="inference.ModelInferRequest"),
    "nested message": asked(file_containing_symbol="inference.ModelInferRequest.InferInputTensor"),
    "field": asked(file_containing_symbol="inference.ModelInferRequest.model_name"),
    "unknown symbol": asked(file_containing_symbol="inference.Nobody"),
    "empty symbol": asked(file_containing_symbol=""),
    "unknown extended type": asked(file_containing_extension=extension("a.B", 1)),
    "unknown extension": asked(file_containing_extension=extension(_OPTIONS, 99)),
    "extension numbers": asked(all_extension_numbers_of_type=_OPTIONS),
    "extension numbers of nobody": asked(all_extension_numbers_of_type="a.B"),
    "nothing": asked(host="here"),
}


def reference(question: Any) -> bytes:  # Any: as above
    """Return what grpcio's servicer answers."""
    servicer = reflection.ReflectionServicer(_NAMES)
    context: Any = None  # Any: it looks at none
    (answer,) = servicer.ServerReflectionInfo(iter([question]), context)
    data: bytes = answer.SerializeToString()
    return data


@pytest.mark.parametrize("name", list(QUESTIONS))
def test_every_answer_is_that_of_the_reference(name: str) -> None:
    question = QUESTIONS[name]
    assert Reflection(_NAMES).answer(question.SerializeToString()) == reference(question)


def test_what_is_no_request_is_said_to_be_none() -> None:
    with pytest.raises(DecodeError):
        Reflection(_NAMES).answer(b"\xff")


def test_both_versions_are_served() -> None:
    served = methods(_NAMES)
    assert set(served) == {f"/{name}/ServerReflectionInfo" for name in (SERVICE, SERVICE_V1)}
    assert all(method.is_streaming for method in served.values())
    starts: set[Callable[..., Any]] = {method.start for method in served.values()}  # Any: either
    assert len(starts) == 1
