"""Declared inputs and outputs: Triton's data types and dims to TensorSpecs, and the names back.

Knows which data types the protocol has and what a dimension may be; whether a declaration fits the
model file is the engine's to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from engines.base import TensorSpec
from engines.tensors import BYTES
from gateway.model_config.fields import FieldError
from gateway.pb import model_config_pb2 as pb

# Protocol datatype -> name in Triton's enum: they differ by a prefix and in one word.
DATA_TYPES: Final[Mapping[str, str]] = {
    BYTES if value.name == "TYPE_STRING" else value.name.removeprefix("TYPE_"): value.name
    for value in pb.DataType.DESCRIPTOR.values
    if value.number != pb.TYPE_INVALID
}
_PROTOCOL_NAMES: Final[Mapping[int, str]] = {
    pb.DataType.Value(name): datatype for datatype, name in DATA_TYPES.items()
}


def declared_tensors(
    kind: str, entries: Iterable[pb.ModelInput | pb.ModelOutput], *, has_batch_axis: bool
) -> tuple[TensorSpec, ...]:
    """Return the declared tensors of one side; `kind` is input or output, for the sentences.

    Shapes are the file's dims: without the batch axis where the model has one.

    Raises:
        FieldError: a name, data type or dimension that cannot be.
    """
    specs: list[TensorSpec] = []
    for number, entry in enumerate(entries):
        at = f"{kind}[{number}]"
        if not entry.name:
            raise FieldError(f"{at}.name", "is missing")
        if any(entry.name == spec.name for spec in specs):
            raise FieldError(f"{at}.name", f"{entry.name!r} is declared twice")
        if not entry.dims and not has_batch_axis:
            raise FieldError(f"{at}.dims", f"the shape of {entry.name!r} is missing")
        for position, size in enumerate(entry.dims):
            if size < 1 and size != -1:
                sentence = f"{size} is neither a size (>= 1) nor -1, which varies"
                raise FieldError(f"{at}.dims[{position}]", sentence)
        datatype = datatype_of(f"{at}.data_type", entry.data_type)
        specs.append(TensorSpec(name=entry.name, datatype=datatype, shape=tuple(entry.dims)))
    return tuple(specs)


def datatype_of(location: str, data_type: int) -> str:
    """Return the protocol name of a data type.

    Raises:
        FieldError: it is missing, or a number that the enum does not have.
    """
    if data_type == pb.TYPE_INVALID:
        raise FieldError(location, "is missing")
    if data_type not in _PROTOCOL_NAMES:
        raise FieldError(location, f"{data_type} is no data type")
    return _PROTOCOL_NAMES[data_type]
