"""A served version's configuration as clients are told it: the file's, completed by the engine.

Knows what tritonclient and perf_analyzer read of it: every field of the JSON form is present even
at its default, `dims` leave the batch axis out where there is one, and `dynamic_batching` is there
exactly when requests are joined, or the file has it. What the message has no field for (the engine,
its providers, why it runs on the CPU) is in parameters of the prefix `sluice.`, which are not read
back. Pure: no file is read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from engines.base import ModelMetadata, ModelSpec, TensorSpec
from engines.loading import batch_policy
from gateway.model_config.fields import map_values
from gateway.model_config.parameters import ANSWER_PREFIX
from gateway.model_config.placement import AUTO, CPU
from gateway.model_config.read import ConfiguredSpec
from gateway.model_config.tensors import DATA_TYPES
from gateway.pb import model_config_pb2 as pb

_Entry = TypeVar("_Entry", pb.ModelInput, pb.ModelOutput)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfigDocument:
    """The answer of the ModelConfig call."""

    name: str
    """Public name: the model's, or that of a route."""
    version: str
    """The version whose inputs and outputs these are."""
    wire: bytes
    """A serialized inference.ModelConfig."""
    json: str
    """The same as a JSON object with the field names of the proto file; integers are numbers."""


def describe(
    spec: ModelSpec, metadata: ModelMetadata, version: str, *, name: str = ""
) -> ModelConfigDocument:
    """Return the configuration in force for a loaded version, under a route's name if given."""
    config = pb.ModelConfig()
    if isinstance(spec, ConfiguredSpec):
        config.ParseFromString(spec.source)
    config.name = name or spec.name
    config.platform = metadata.platform
    config.backend = spec.backend
    config.default_model_filename = spec.filename
    config.max_batch_size = metadata.max_batch_size
    _complete_versions(config, spec)
    _complete_tensors(config, metadata)
    _complete_instances(config, spec, metadata)
    _add_answers(config, spec, metadata)
    if batch_policy(spec, metadata).dynamic:
        config.dynamic_batching.SetInParent()
    return _document(config, version)


def _complete_versions(config: pb.ModelConfig, spec: ModelSpec) -> None:
    if spec.versions.specific:
        versions = [int(version) for version in spec.versions.specific]
        config.version_policy.specific.versions[:] = versions
    elif spec.versions.latest:
        config.version_policy.latest.num_versions = spec.versions.latest
    else:
        config.version_policy.all.SetInParent()


def _complete_tensors(config: pb.ModelConfig, metadata: ModelMetadata) -> None:
    """Replace both signatures by the engine's, keeping what else the file says of a tensor."""
    first = 1 if metadata.max_batch_size else 0
    inputs = {entry.name: entry for entry in config.input}
    outputs = {entry.name: entry for entry in config.output}
    full_inputs = [
        _tensor(inputs.get(spec.name, pb.ModelInput()), spec, first) for spec in metadata.inputs
    ]
    full_outputs = [
        _tensor(outputs.get(spec.name, pb.ModelOutput()), spec, first) for spec in metadata.outputs
    ]
    del config.input[:]
    del config.output[:]
    config.input.extend(full_inputs)
    config.output.extend(full_outputs)


def _tensor(declared: _Entry, spec: TensorSpec, first: int) -> _Entry:
    """Return a declaration with the engine's name, type and shape; `first` skips the batch axis."""
    entry = type(declared)()
    entry.CopyFrom(declared)
    entry.ClearField("dims")
    found = type(declared)(
        name=spec.name, data_type=DATA_TYPES[spec.datatype], dims=spec.shape[first:]
    )
    entry.MergeFrom(found)
    return entry


def _complete_instances(config: pb.ModelConfig, spec: ModelSpec, metadata: ModelMetadata) -> None:
    """Write out what the file leaves to defaults: one group, one instance, the device in use."""
    if not config.instance_group:
        config.instance_group.add(name=spec.name, count=spec.instances)
    first = 0  # the group's first instance, in the order of spec.devices
    for group in config.instance_group:
        group.count = group.count or 1
        device = spec.engine_of(first).device
        kind, _, gpu = (metadata.device if device == AUTO else device).partition(":")
        first += group.count * max(1, len(group.gpus))
        if kind != CPU:
            group.kind = pb.ModelInstanceGroup.KIND_GPU
            group.gpus[:] = list(group.gpus) or [int(gpu or 0)]
        elif group.kind == pb.ModelInstanceGroup.KIND_AUTO:
            group.kind = pb.ModelInstanceGroup.KIND_CPU


def _add_answers(config: pb.ModelConfig, spec: ModelSpec, metadata: ModelMetadata) -> None:
    """Add what the engine turned out to be, and where it runs."""
    for key in [key for key in config.parameters if key.startswith(ANSWER_PREFIX)]:
        del config.parameters[key]
    answers = {
        "engine": metadata.engine,
        "device": ",".join(dict.fromkeys(spec.devices)) or metadata.device,
        "providers": ",".join(metadata.providers),
        "fallback": metadata.fallback,
        "buckets": ",".join(map(str, metadata.buckets)),
        "precision": metadata.precision,
    }
    for name, answer in answers.items():
        if answer:
            config.parameters[ANSWER_PREFIX + name].string_value = answer


def _document(config: pb.ModelConfig, version: str) -> ModelConfigDocument:
    return ModelConfigDocument(
        name=config.name,
        version=version,
        wire=config.SerializeToString(deterministic=True),
        json=json.dumps(_object(config), allow_nan=False),
    )


def _object(message: Message) -> dict[str, object]:
    """Return a message as proto JSON with the proto file's names, but integers are numbers.

    Every field is there except sub-messages that are not set. Proto JSON would write 64-bit
    integers, such as `dims`, as strings; Triton answers numbers, and callers compute with them.
    """
    out: dict[str, object] = {}
    field: Any  # Any: each implementation of protobuf has a descriptor class of its own
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value: Any = getattr(message, field.name)  # Any: of the field's type
        if (item := map_values(field)) is not None:
            out[field.name] = {str(key): _value(item, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            out[field.name] = [_value(field, item) for item in value]
        else:
            out[field.name] = _value(field, value)
    return out


def _value(field: FieldDescriptor, value: Any) -> object:  # Any: of the field's type
    if isinstance(value, Message):
        return _object(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    return value
