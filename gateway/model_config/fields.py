"""What becomes of each field of a config.pbtxt: honoured, refused, or ignored with a warning.

The tables are the whole policy. A field that is in neither is ignored, and a file that sets it is
told so; nothing is ignored in silence. Refused are the fields whose absence would change answers
or skip a check of the model, as opposed to its speed. Paths are dotted field names without
indices; the values of a map follow its name directly.

Knows the shape of a protobuf message, not the meaning of any field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

HONOURED: Final[frozenset[str]] = frozenset(
    {
        "name",
        "platform",
        "backend",
        "default_model_filename",
        "max_batch_size",
        "version_policy.latest.num_versions",
        "version_policy.all",
        "version_policy.specific.versions",
        "input.name",
        "input.data_type",
        "input.dims",
        "output.name",
        "output.data_type",
        "output.dims",
        "instance_group.name",
        "instance_group.kind",
        "instance_group.count",
        "instance_group.gpus",
        "dynamic_batching.preferred_batch_size",
        "dynamic_batching.max_queue_delay_microseconds",
        "dynamic_batching.priority_levels",
        "dynamic_batching.default_priority_level",
        "dynamic_batching.default_queue_policy.timeout_action",
        "dynamic_batching.default_queue_policy.default_timeout_microseconds",
        "dynamic_batching.default_queue_policy.allow_timeout_override",
        "dynamic_batching.default_queue_policy.max_queue_size",
        "model_warmup.name",
        "model_warmup.batch_size",
        "model_warmup.count",
        "model_warmup.inputs.data_type",
        "model_warmup.inputs.dims",
        "model_warmup.inputs.zero_data",
        "model_warmup.inputs.random_data",
        "parameters.string_value",
        "optimization.cuda.graphs",
        "optimization.cuda.graph_spec.batch_size",
        "optimization.execution_accelerators.gpu_execution_accelerator.name",
        "optimization.execution_accelerators.gpu_execution_accelerator.parameters",
    }
)

_RESHAPE: Final = (
    "reshaping is not supported; declare the model's own shape in dims (with a batch axis, no dims "
    "at all stand for one value per row), or leave the tensor undeclared"
)
_RAGGED: Final = "ragged batching is not supported; requests of different shapes run separately"
_SHAPE_TENSOR: Final = "shape tensors are not supported"
_NON_LINEAR: Final = "only the linear tensor format is supported"

REFUSED: Final[Mapping[str, str]] = {
    "sequence_batching": (
        "sequence batching is not supported; requests of one sequence would lose their state"
    ),
    "ensemble_scheduling": "ensembles are not supported; call their steps one by one",
    "batch_input": _RAGGED,
    "batch_output": _RAGGED,
    "input.allow_ragged_batch": _RAGGED,
    "input.reshape": _RESHAPE,
    "output.reshape": _RESHAPE,
    "input.is_shape_tensor": _SHAPE_TENSOR,
    "output.is_shape_tensor": _SHAPE_TENSOR,
    "input.is_non_linear_format_io": _NON_LINEAR,
    "output.is_non_linear_format_io": _NON_LINEAR,
    "model_transaction_policy.decoupled": (
        "decoupled models are not supported; every request gets exactly one answer"
    ),
    "model_repository_agents.agents": (
        "repository agents are not supported; what they verify or rewrite would be skipped"
    ),
}


class FieldError(Exception):
    """A field's value cannot be served; `location` is its path with indices."""

    def __init__(self, location: str, sentence: str) -> None:
        super().__init__(f"{location}: {sentence}")


class SetField(NamedTuple):
    """One field that a message sets."""

    path: str
    location: str
    """The path with the indices of repeated fields and the keys of maps."""
    is_leaf: bool
    """A scalar, or a message that sets nothing further."""


def refuse_unsupported(config: Message) -> None:
    """Refuse a message that sets a field which cannot be left out.

    Raises:
        FieldError: with the reason of the table.
    """
    for field in set_fields(config):
        if (sentence := REFUSED.get(field.path)) is not None:
            raise FieldError(field.location, sentence)


def unknown_fields(config: Message) -> set[str]:
    """Return the paths of the fields that the message sets and neither table knows."""
    return {f.path for f in set_fields(config) if f.is_leaf and not _is_known(f.path)}


def _is_known(path: str) -> bool:
    """Whether the path is in the table, or is a message that asks for nothing of what is in it."""
    return path in HONOURED or any(p.startswith(f"{path}.") for p in (*HONOURED, *REFUSED))


def set_fields(message: Message, path: str = "", location: str = "") -> Iterator[SetField]:
    """Yield every field that is set, outermost first."""
    for field, value in message.ListFields():
        inner_path, inner_location = f"{path}{field.name}", f"{location}{field.name}"
        if not _holds_messages(field):
            yield SetField(inner_path, inner_location, True)
            continue
        for index, item in _items(field, value):
            at = f"{inner_location}{index}"
            yield SetField(inner_path, at, not item.ListFields())
            yield from set_fields(item, f"{inner_path}.", f"{at}.")


def map_values(field: FieldDescriptor) -> FieldDescriptor | None:
    """Return the descriptor of a map's values; None if the field is no map."""
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return None
    return entry.fields_by_name["value"]


def _holds_messages(field: FieldDescriptor) -> bool:
    return ((map_values(field) or field).message_type) is not None


def _items(field: FieldDescriptor, value: Any) -> list[tuple[str, Message]]:
    # Any: a message, a list or a map of messages; the descriptor tells which.
    if map_values(field) is not None:
        return [(f"[{key!r}]", value[key]) for key in sorted(value)]
    if field.is_repeated:
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    return [("", value)]
