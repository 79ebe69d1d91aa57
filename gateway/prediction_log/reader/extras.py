"""The optional packages of readers, pandas and pyarrow: imported here, when they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import msgspec
import numpy as np

from engines.tensors import Array
from gateway.prediction_log.reader.columns import CATEGORIES
from gateway.prediction_log.reader.labels import LABEL

EXTRA: Final = "sluice-gateway[reader]"


class MissingExtra(ImportError):
    """pandas or pyarrow is wanted and not installed."""

    def __init__(self, module: str) -> None:
        super().__init__(f"this needs {module}: pip install '{EXTRA}'")


def extra(module: str) -> Any:  # Any: a module that is no dependency
    """Import an optional module.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as exc:
        raise MissingExtra(module.partition(".")[0]) from exc


def to_arrow(columns: Mapping[str, Array]) -> Any:  # Any: pyarrow is no dependency
    """Return columns as a pyarrow Table.

    Absent text is null; absent numbers stay NaN, as they are in the columns.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    arrow = extra("pyarrow")
    return arrow.table({name: _column(arrow, name, column) for name, column in columns.items()})


def _column(arrow: Any, name: str, column: Array) -> Any:  # Any: as above
    if column.dtype != object:
        return arrow.array(column)
    if name == LABEL:  # text, or JSON values of any shape
        return arrow.array([_json(value) for value in column.tolist()], type=arrow.string())
    if not set(map(type, column)) <= {str, type(None)}:  # a tensor changed from numbers to text
        column = np.array([_text(value) for value in column.tolist()], object)
    texts = arrow.array(column, type=arrow.string())
    return texts.dictionary_encode() if name in CATEGORIES else texts


def _text(value: object) -> str | None:
    return None if value is None or value != value else str(value)


def _json(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
