"""ModelInferRequest and ModelInferResponse <-> InferRequest and InferResponse.

The only module besides the service that reads protobuf messages of the infer calls. Raw contents
pass through as they stand; typed contents become raw bytes once. Answers are always raw: the
clients of the field decode nothing else (protocol note, 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from engines.errors import InvalidInput
from engines.tensors import (
    BYTES,
    DATATYPES,
    Raw,
    Tensor,
    check_element_count,
    check_shape,
    datatype_of,
    encode_bytes,
    out_of_range,
)
from gateway.errors import MalformedRequest
from gateway.pb import inference_pb2 as pb
from gateway.request import (
    InferRequest,
    InferResponse,
    ParameterValue,
    ServedBy,
    check_no_shared_memory,
    check_output_parameters,
)

# The field of InferTensorContents that carries a datatype, and what its elements are there; FP16
# and BF16 exist only raw.
_CONTENTS: Final[Mapping[str, tuple[str, str]]] = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "<i4"),
    "INT16": ("int_contents", "<i4"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "<u4"),
    "UINT16": ("uint_contents", "<u4"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
    BYTES: ("bytes_contents", "O"),
}


def parse(data: Raw, message: Any) -> None:
    """Parse wire bytes into a message. Any: every generated class.

    Raises:
        MalformedRequest: they are no such message.
    """
    try:
        message.ParseFromString(data)
    except DecodeError:
        name = message.DESCRIPTOR.name
        raise MalformedRequest(f"the request is no {name} message") from None


def decode(data: Raw) -> InferRequest:
    """Decode a ModelInferRequest.

    Raises:
        MalformedRequest, InvalidInput: naming the field.
    """
    message = pb.ModelInferRequest()
    parse(data, message)
    raw = message.raw_input_contents
    inputs = []
    if raw and len(raw) != len(message.inputs):
        raise MalformedRequest(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs"
        )
    for position, tensor in enumerate(message.inputs):
        if raw and tensor.HasField("contents"):
            raise MalformedRequest(
                f"input {tensor.name!r}: has typed contents beside raw_input_contents"
            )
        inputs.append(_input(tensor, raw[position] if raw else None))
    for output in message.outputs:
        if output.parameters:
            check_output_parameters(output.name, output.parameters)
    return InferRequest(
        name=message.model_name,
        version=message.model_version,
        id=message.id,
        parameters=parameters(message.parameters) if message.parameters else {},
        inputs=tuple(inputs),
        outputs=tuple(output.name for output in message.outputs),
        protocol="grpc",
    )


def parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, ParameterValue]:
    """Return request parameters as plain values; one that is not set is left out."""
    out: dict[str, ParameterValue] = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            out[name] = getattr(parameter, choice)
    return out


def _input(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    datatype_of(tensor.datatype, tensor.name)
    check_shape(tensor.name, tensor.shape)
    if tensor.parameters:
        check_no_shared_memory(f"input {tensor.name!r}", tensor.parameters)
    shape = tuple(tensor.shape)
    if raw is not None:
        return Tensor(tensor.name, tensor.datatype, shape, raw)
    return Tensor(tensor.name, tensor.datatype, shape, _typed(tensor, shape))


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> bytes:
    """Return typed contents as raw bytes.

    Raises:
        InvalidInput: another datatype's field is used, or an element is out of range.
    """
    if tensor.datatype not in _CONTENTS:
        raise InvalidInput(f"input {tensor.name!r}: {tensor.datatype} has only a raw form")
    wanted, element_type = _CONTENTS[tensor.datatype]
    for field, _ in tensor.contents.ListFields():
        if field.name != wanted:
            raise InvalidInput(
                f"input {tensor.name!r}: {field.name} given, {tensor.datatype} takes {wanted}"
            )
    elements = getattr(tensor.contents, wanted)
    check_element_count(tensor.name, shape, len(elements))
    if tensor.datatype == BYTES:
        return encode_bytes(elements)
    array = np.array(elements, dtype=element_type)
    dtype = DATATYPES[tensor.datatype].dtype
    if array.dtype == dtype:
        return array.tobytes()
    narrow = array.astype(dtype)  # numpy wraps around what does not fit
    if not np.array_equal(narrow, array):
        raise out_of_range(tensor.name, tensor.datatype)
    return narrow.tobytes()


def encode(response: InferResponse) -> pb.ModelInferResponse:
    """Return the answer as a message, every output raw."""
    message = described(response)
    message.id = response.id
    message.raw_output_contents.extend([bytes(tensor.data) for tensor in response.outputs])
    return message


def described(response: InferResponse) -> pb.ModelInferResponse:
    """Return an answer without its id and data: what is the same each time."""
    message = pb.ModelInferResponse(model_name=response.model, model_version=response.version)
    for tensor in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return message


def encode_stream(response: InferResponse, served_by: ServedBy) -> pb.ModelStreamInferResponse:
    """Return the answer as a message of a stream."""
    message = pb.ModelStreamInferResponse(infer_response=encode(response))
    add_parameters(message.infer_response, served_by.headers())
    return message


def add_parameters(message: pb.ModelInferResponse, served_by: Sequence[tuple[str, str]]) -> None:
    """Say in a stream's answer who served, for want of metadata, and that it is the last one.

    Clients of streams read until an answer is marked as a request's last; here each one is.
    """
    for name, value in served_by:
        message.parameters[name].string_param = value
    message.parameters["triton_final_response"].bool_param = True
