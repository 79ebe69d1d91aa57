"""One request in the form of one protocol, and whether its answer is the right one.

Knows the three wire forms (payloads.py); sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import msgspec
import numpy as np
import onnxruntime as ort

from engines.tensors import Array, Tensor, from_array
from gateway.pb import inference_pb2 as pb
from loadtests import grpc_loop, payloads
from loadtests.bench import content, models
from loadtests.bench.cases import ModelName, Protocol
from loadtests.bench.content import Target

STREAM_METHOD: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
TOLERANCE: Final = 1e-4
"""Of an output: a row's place in a batch may change the last bits of a sum."""
_CONTENT_TYPES: Final = {"json": "application/json", "binary": "application/octet-stream"}
_SEED: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request, in the form of one protocol."""

    protocol: Protocol
    model: ModelName
    path: str
    """Of the HTTP request, or the gRPC method's."""
    body: bytes
    """Of the HTTP request, or the gRPC message."""
    json_bytes: int | None = None
    """Length of the JSON header, where tensors follow it."""

    @property
    def is_grpc(self) -> bool:
        """Whether it goes to the gRPC listener."""
        return self.protocol in ("grpc", "stream")

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers besides the length and the key."""
        lines = {"Content-Type": _CONTENT_TYPES[self.protocol]}
        if self.json_bytes is not None:
            lines[payloads.HEADER_LENGTH] = str(self.json_bytes)
        return lines


def row(model: ModelName) -> Array:
    """Return the row that every request asks about: random, and always the same."""
    shape = (1, *content.SHAPES[model])
    return np.random.default_rng(_SEED).random(shape, dtype=np.float32)


def question(protocol: Protocol, model: ModelName, asked: Target) -> Question:
    """Make the question of a case."""
    tensors: tuple[Tensor, ...] = (from_array(models.INPUT, "FP32", row(model)),)
    path, json_bytes = f"{asked.path}/infer", None
    if protocol in ("grpc", "stream"):
        path = grpc_loop.METHOD if protocol == "grpc" else STREAM_METHOD
        body = payloads.as_grpc(asked.name, tensors, version=asked.version)
    elif protocol == "json":
        body = payloads.as_json(tensors)
    else:
        body, json_bytes = payloads.as_binary(tensors)
    return Question(protocol=protocol, model=model, path=path, body=body, json_bytes=json_bytes)


class WrongAnswer(Exception):
    """A server answered something else than the model does."""


def check(asked: Question, answer: bytes, json_bytes: int | None, files: ModelFiles) -> None:
    """Compare an answer with what onnxruntime gives in-process.

    Args:
        asked: the question.
        answer: the HTTP body or the gRPC message.
        json_bytes: length of the JSON header of a binary answer.
        files: where the models lie.

    Raises:
        WrongAnswer: it is none, or not that of the version that it names.
    """
    if asked.is_grpc:
        version, found = _read_grpc(asked, answer)
    else:
        version, found = _read_http(answer, json_bytes)
    wanted = files.expected(asked.model, version or "1")
    if found.shape != wanted.shape or not np.allclose(found, wanted, atol=TOLERANCE):
        raise WrongAnswer(f"{asked.path}: {found} instead of {wanted} (version {version!r})")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The model repository, asked in-process."""

    root: str

    def expected(self, model: ModelName, version: str) -> Array:
        """Return the right outputs for `row`, flat."""
        return _expected(self.root, model, version)


@cache
def _expected(root: str, model: ModelName, version: str) -> Array:
    session = ort.InferenceSession(f"{root}/{model}/{version}/model.onnx")
    (output,) = session.run([models.OUTPUT], {models.INPUT: row(model)})
    return np.asarray(output, np.float32).reshape(-1)


def _read_grpc(asked: Question, answer: bytes) -> tuple[str, Array]:
    if asked.protocol == "stream":
        streamed = pb.ModelStreamInferResponse.FromString(answer)
        if streamed.error_message:
            raise WrongAnswer(streamed.error_message)
        message = streamed.infer_response
    else:
        message = pb.ModelInferResponse.FromString(answer)
    if len(message.raw_output_contents) != 1:
        raise WrongAnswer(f"{len(message.raw_output_contents)} outputs instead of one")
    return message.model_version, np.frombuffer(message.raw_output_contents[0], np.float32)


def _read_http(answer: bytes, json_bytes: int | None) -> tuple[str, Array]:
    try:
        document = msgspec.json.decode(answer[:json_bytes])
        (output,) = document["outputs"]
        version = str(document.get("model_version", ""))
        data = output.get("data")
    except (msgspec.DecodeError, KeyError, ValueError, AttributeError, TypeError) as exc:
        raise WrongAnswer(f"{answer[:200]!r}: {exc!r}") from None
    if data is None:
        return version, np.frombuffer(answer[json_bytes:], np.float32)
    return version, np.asarray(data, np.float32).reshape(-1)
