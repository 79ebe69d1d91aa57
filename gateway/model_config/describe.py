"""A served version's configuration as clients are told it: the file's, completed by the engine.

Knows what tritonclient and perf_analyzer read of it: every field of the JSON form is present even
at its default, `dims` leave the batch axis out where there is one, and `dynamic_batching` is there
exactly when requests are joined, or the file has it. Pure: no file is read.
"""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from engines.base import ModelMetadata, ModelSpec, TensorSpec
from engines.repository import batch_policy
from gateway.model_config.document import ModelConfigDocument
from gateway.model_config.fields import map_values
from gateway.model_config.placement import CPU
from gateway.model_config.read import ConfiguredSpec
from gateway.model_config.tensors import DATA_TYPES
from gateway.pb import model_config_pb2 as pb

_Entry = TypeVar("_Entry", pb.ModelInput, pb.ModelOutput)

_WIDE: Final = frozenset({FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64})


def describe(spec: ModelSpec, metadata: ModelMetadata, version: str) -> ModelConfigDocument:
    """Return the configuration that is in force for a loaded version."""
    config = pb.ModelConfig()
    if isinstance(spec, ConfiguredSpec):
        config.ParseFromString(spec.source)
    config.name = spec.name
    config.platform = metadata.platform
    config.backend = spec.backend
    config.default_model_filename = spec.filename
    config.max_batch_size = metadata.max_batch_size
    _complete_versions(config, spec)
    _complete_tensors(config, metadata)
    _complete_instances(config, spec)
    if batch_policy(spec, metadata).dynamic:
        config.dynamic_batching.SetInParent()
    return _document(config, version)


def describe_route(route_name: str, document: ModelConfigDocument) -> ModelConfigDocument:
    """Return a version's configuration under the name of a route, which is a model to clients."""
    config = pb.ModelConfig.FromString(document.wire)
    config.name = route_name
    return _document(config, document.version)


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
    entry.name = spec.name
    entry.data_type = pb.DataType.ValueType(DATA_TYPES[spec.datatype])
    entry.dims[:] = spec.shape[first:]
    return entry


def _complete_instances(config: pb.ModelConfig, spec: ModelSpec) -> None:
    """Write out what the file leaves to defaults: one group, one instance, the device in use."""
    if not config.instance_group:
        config.instance_group.add(name=spec.name, count=spec.instances)
    kind, _, gpu = spec.engine.device.partition(":")
    for group in config.instance_group:
        group.count = group.count or 1
        if kind != CPU:
            group.kind = pb.ModelInstanceGroup.KIND_GPU
            group.gpus[:] = [int(gpu or 0)]
        elif group.kind == pb.ModelInstanceGroup.KIND_AUTO:
            group.kind = pb.ModelInstanceGroup.KIND_CPU


def _document(config: pb.ModelConfig, version: str) -> ModelConfigDocument:
    fields = json_format.MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _write_integers(config.DESCRIPTOR, fields)
    return ModelConfigDocument(
        name=config.name,
        version=version,
        wire=config.SerializeToString(deterministic=True),
        json=json.dumps(fields),
    )


def _write_integers(message: Descriptor, fields: dict[str, Any]) -> None:
    """Turn the strings that proto JSON makes of 64-bit integers into numbers, in place, as Triton.

    Any: the object's values are what proto JSON makes of the message's fields.
    """
    for name, value in fields.items():
        field = message.fields_by_name[name]
        inner = (map_values(field) or field).message_type
        if field.cpp_type in _WIDE:
            fields[name] = [int(v) for v in value] if isinstance(value, list) else int(value)
        elif inner is not None:
            is_map = map_values(field) is not None
            for item in value.values() if is_map else value if field.is_repeated else [value]:
                _write_integers(inner, item)
