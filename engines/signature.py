"""Checks a request's tensors against a model's signature, once for every engine and protocol.

Knows shapes and datatypes only. Every refusal names the field, so that a caller can mend it
without reading a server log. `incompatibility` foretells the same for two models: whether one can
take over the requests of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engines.base import ModelMetadata, TensorSpec
from engines.errors import InvalidInput
from engines.tensors import BYTES, Tensor, check_data

ShapeKey = tuple[tuple[int, ...], ...]
_MAX_KINDS: Final = 256
"""Kinds of requests remembered; over it all are forgotten."""


class Signature:
    """The checked form of one version's metadata.

    `order` puts a request's inputs into the model's order and returns how many rows it has;
    `shape_key` tells which requests may share a batch.
    """

    __slots__ = (
        "_admitted",
        "_batched",
        "_max_rows",
        "_model",
        "_only",
        "_outputs",
        "_specs",
        "_varies",
    )

    def __init__(self, model: str, metadata: ModelMetadata) -> None:
        self._model = model
        self._specs = metadata.inputs
        self._outputs = frozenset(spec.name for spec in metadata.outputs)
        self._max_rows = metadata.max_batch_size
        self._batched = metadata.max_batch_size > 0
        first = 1 if self._batched else 0
        self._varies = any(-1 in spec.shape[first:] for spec in metadata.inputs)
        self._only = metadata.inputs[0].name if len(metadata.inputs) == 1 else ""
        if metadata.inputs and metadata.inputs[0].datatype == BYTES:
            self._only = ""
        self._admitted: dict[tuple[str, str, tuple[int, ...], int], tuple[int, ShapeKey]] = {}

    def admit(self, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], int, ShapeKey]:
        """Return the inputs in the model's order, their rows, and their shape key.

        Requests of a kind that was checked before are known by name, datatype, shape and size of
        their only input, and not checked again: of elements of a fixed size there is nothing more
        to check.

        Raises:
            InvalidInput: as `order`.
        """
        if self._only and len(inputs) == 1:
            tensor = inputs[0]
            kind = (tensor[0], tensor[1], tensor[2], len(tensor[3]))
            known = self._admitted.get(kind)
            if known is not None:
                return inputs, known[0], known[1]
            ordered, rows = self.order(inputs)
            if len(self._admitted) >= _MAX_KINDS:
                self._admitted.clear()
            shape_key = self.shape_key(ordered)
            self._admitted[kind] = rows, shape_key
            return ordered, rows, shape_key
        ordered, rows = self.order(inputs)
        return ordered, rows, self.shape_key(ordered)

    def order(self, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
        """Return the inputs in the model's order, and their rows (1 without a batch axis).

        Raises:
            InvalidInput: a name, datatype, shape, byte count or row count that does not fit.
        """
        specs = self._specs
        if len(specs) == 1 and len(inputs) == 1 and inputs[0].name == specs[0].name:
            ordered: tuple[Tensor, ...] = (inputs[0],)
        else:
            ordered = self._by_name(inputs)
        rows = 1
        for position, (spec, tensor) in enumerate(zip(specs, ordered, strict=True)):
            _check_tensor(spec, tensor)
            if self._batched:
                rows = self._check_rows(tensor, rows if position else None)
        return ordered, rows

    def _by_name(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given: dict[str, Tensor] = {}
        for tensor in inputs:
            if tensor.name in given:
                raise InvalidInput(f"input {tensor.name!r} is given twice")
            given[tensor.name] = tensor
        wanted = [spec.name for spec in self._specs]
        for name in given:
            if name not in wanted:
                known = ", ".join(repr(n) for n in wanted)
                raise InvalidInput(f"unexpected input {name!r}: {self._model!r} takes {known}")
        for name in wanted:
            if name not in given:
                raise InvalidInput(f"input {name!r} is missing: {self._model!r} needs it")
        return tuple(given[name] for name in wanted)

    def _check_rows(self, tensor: Tensor, expected: int | None) -> int:
        rows = tensor.shape[0]
        if rows == 0:
            raise InvalidInput(f"input {tensor.name!r}: shape {list(tensor.shape)} has no rows")
        if rows > self._max_rows:
            raise InvalidInput(
                f"input {tensor.name!r}: a batch of {rows} rows is larger than "
                f"max_batch_size {self._max_rows} of {self._model!r}"
            )
        if expected is not None and rows != expected:
            raise InvalidInput(
                f"input {tensor.name!r}: {rows} rows given where the other inputs have {expected}"
            )
        return rows

    def check_outputs(self, requested: Sequence[str]) -> None:
        """Refuse a requested output that the model does not give."""
        for position, name in enumerate(requested):
            if name not in self._outputs:
                known = ", ".join(repr(n) for n in sorted(self._outputs))
                raise InvalidInput(f"unknown output {name!r}: {self._model!r} gives {known}")
            if name in requested[:position]:
                raise InvalidInput(f"output {name!r} is requested twice")

    def shape_key(self, ordered: Sequence[Tensor]) -> ShapeKey:
        """Return equal keys for requests that may share a batch: same dimensions per row."""
        if not self._varies:
            return ()
        return tuple(tensor.shape[1:] for tensor in ordered)


def _check_tensor(spec: TensorSpec, tensor: Tensor) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidInput(
            f"input {tensor.name!r}: datatype {tensor.datatype} given, {spec.datatype} expected"
        )
    shape = tensor.shape
    if len(shape) != len(spec.shape) or any(
        wanted not in (-1, given) for wanted, given in zip(spec.shape, shape, strict=True)
    ):
        raise InvalidInput(
            f"input {tensor.name!r}: shape {list(shape)} given, {list(spec.shape)} expected"
        )
    check_data(tensor)


def incompatibility(reference: ModelMetadata, candidate: ModelMetadata) -> str:
    """Say why callers of one model would notice that another one answers; empty: they would not.

    Compatible means: every request that fits `reference` fits `candidate`, and the answer has every
    output that `reference` gives, with the same datatype and a shape that does not contradict.
    """
    taken = {spec.name: spec for spec in candidate.inputs}
    sent = {spec.name: spec for spec in reference.inputs}
    for name in sent:
        if name not in taken:
            return f"input {name!r} is sent, but not taken"
    for name, spec in taken.items():
        if name not in sent:
            return f"input {name!r} is needed, but not sent"
        if trouble := _input_trouble(reference, sent[name], candidate, spec):
            return trouble
    given = {spec.name: spec for spec in candidate.outputs}
    for spec in reference.outputs:
        if trouble := _output_trouble(spec, given.get(spec.name)):
            return trouble
    return _rows_trouble(reference, candidate)


def _input_trouble(
    reference: ModelMetadata, sent: TensorSpec, candidate: ModelMetadata, taken: TensorSpec
) -> str:
    """Compare one input of both models; `sent` is the reference's."""
    if taken.datatype != sent.datatype:
        return f"input {sent.name!r}: {sent.datatype} is sent, {taken.datatype} is taken"
    shape = sent.shape
    if reference.max_batch_size == 1:
        shape = (1, *shape[1:])
    if len(taken.shape) != len(shape) or any(
        wanted not in (-1, given) for wanted, given in zip(taken.shape, shape, strict=True)
    ):
        return f"input {sent.name!r}: shape {list(shape)} is sent, {list(taken.shape)} is taken"
    if candidate.max_batch_size:
        rows = reference.max_batch_size or shape[0]
        if not 1 <= rows <= candidate.max_batch_size:
            many = "any number of" if rows == -1 else f"up to {rows}"
            return (
                f"input {sent.name!r}: {many} rows are sent, "
                f"1 to {candidate.max_batch_size} are taken"
            )
    return ""


def _output_trouble(expected: TensorSpec, given: TensorSpec | None) -> str:
    """Compare one output that callers of the reference expect; -1 goes with anything."""
    name = expected.name
    if given is None:
        return f"output {name!r} is expected, but not given"
    if given.datatype != expected.datatype:
        return f"output {name!r}: {expected.datatype} is expected, {given.datatype} is given"
    if len(given.shape) != len(expected.shape) or any(
        a != b and -1 not in (a, b) for a, b in zip(given.shape, expected.shape, strict=True)
    ):
        return (
            f"output {name!r}: shape {list(expected.shape)} is expected, "
            f"{list(given.shape)} is given"
        )
    return ""


def _rows_trouble(reference: ModelMetadata, candidate: ModelMetadata) -> str:
    """A batch axis makes all inputs of a request agree on their rows; without one they need not."""
    if candidate.max_batch_size and not reference.max_batch_size and reference.inputs:
        first, *others = reference.inputs
        for spec in others:
            if spec.shape[0] != first.shape[0]:
                return (
                    f"input {spec.name!r}: {spec.shape[0]} rows are sent where input "
                    f"{first.name!r} has {first.shape[0]}, and equally many are taken"
                )
    return ""
