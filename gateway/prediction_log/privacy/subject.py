"""Whose data a request holds: where the request names its data subject.

Knows the three places that `privacy.subject` can name, and nothing of keys and tags. A request is
of one subject: a tensor that names several names none, and the record is treated like one whose
subject is not known (what is to be sealed is dropped). The first such request is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from engines.tensors import BYTES, DATATYPES, Raw, Tensor
from gateway.config_fields import ConfigError
from gateway.request import InferRequest

SubjectOf = Callable[[InferRequest], str]
"""Returns the subject of a request as the caller wrote it, or "" where it names none."""
_HEADER: Final = "header:"
_PARAMETER: Final = "parameter:"
_INPUT: Final = "input:"
_WRITTEN_HEADERS: Final = frozenset({"x-request-id"})
_LENGTH_BYTES: Final = 4

_log = logging.getLogger(__name__)


def subject_finder(source: str, path: str = "$.prediction_log.privacy.subject") -> SubjectOf:
    """Return the function for a `privacy.subject`; for "" one that finds nobody.

    Raises:
        ConfigError: the place would put the raw subject into the records.
    """
    if source.startswith(_HEADER):
        name = source.removeprefix(_HEADER).lower()
        if name in _WRITTEN_HEADERS:
            raise ConfigError(path, f"{name} is written into the records as it is")
        return _of_header(name)
    if source.startswith(_PARAMETER):
        return _of_parameter(source.removeprefix(_PARAMETER))
    if source.startswith(_INPUT):
        return _of_input(source.removeprefix(_INPUT))
    return _nobody


def subject_input(source: str) -> str:
    """Return the name of the tensor that names the subject, or "" where none does."""
    return source.removeprefix(_INPUT) if source.startswith(_INPUT) else ""


def _nobody(request: InferRequest) -> str:
    return ""


def _of_header(name: str) -> SubjectOf:
    def find(request: InferRequest) -> str:
        value = request.header(name)
        if not value:
            return ""
        return value if value.isascii() else _from_wire(value)

    return find


def _from_wire(value: str) -> str:
    """Return header bytes as the text that a parameter or a tensor would have."""
    return value.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


def _of_parameter(name: str) -> SubjectOf:
    def find(request: InferRequest) -> str:
        value = request.parameters.get(name, "")
        return value if type(value) is str else str(value)

    return find


def _of_input(name: str) -> SubjectOf:
    has_told = False

    def find(request: InferRequest) -> str:
        nonlocal has_told
        for tensor in request.inputs:
            if tensor.name == name:
                subject = _element(tensor)
                if subject is None and not has_told:
                    has_told = True
                    _log.warning("a request for %s is of several subjects", request.name)
                return subject or ""
        return ""

    return find


def _element(tensor: Tensor) -> str | None:
    """Return what all elements of a tensor say, "" if it has none, None if they differ."""
    data = tensor.data
    size = DATATYPES[tensor.datatype].item_bytes if tensor.datatype in DATATYPES else 0
    if tensor.datatype == BYTES:
        size = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if not size or len(data) < size:
        return ""
    first = bytes(data[:size])
    if len(data) != size and not _repeats(first, data):
        return None
    if tensor.datatype == BYTES:
        return first[_LENGTH_BYTES:].decode("utf-8", "surrogateescape")
    return str(Tensor(tensor.name, tensor.datatype, (1,), first).array()[0])


def _repeats(first: bytes, data: Raw) -> bool:
    count, rest = divmod(len(data), len(first))
    return not rest and first * count == data
