"""A prediction record for a person (a line) and for a program (a JSON object)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec
import numpy as np

from gateway.ids import as_text
from gateway.prediction_log.record import LoggedPrediction, LoggedTensor, MalformedRecord, Reduced

VALUES_SHOWN: Final = 6
"""Elements of each tensor on a line."""
CHARACTERS_SHOWN: Final = 24
"""Of each BYTES element on a line."""


def render_line(prediction: LoggedPrediction) -> str:
    """Return one line for a person: when, what, who answered and how, first values in and out.

    The line of a shadow names the request that it copies in the place of the inputs.
    """
    who = f"{prediction.model}/{prediction.version}" if prediction.model else "-"
    question = _summary(prediction.inputs)
    if prediction.is_shadow:
        question = f"copy of {as_text(prediction.parent_rid)}"
    outcome = prediction.error or _summary(prediction.outputs)
    words = [
        time_text(prediction.ts_us),
        prediction.name,
        who,
        prediction.served or prediction.variant or "-",
        prediction.reason or "-",
        str(prediction.status),
        f"{prediction.total_us / 1e3:.1f}ms",
        as_text(prediction.rid),
        f"{question} -> {outcome}",
    ]
    return printable(" ".join(words))


def render_json(prediction: LoggedPrediction) -> str:
    """Return one JSON object on one line, with every value that was kept; NaN becomes null."""
    document = msgspec.structs.asdict(prediction)
    document |= {
        "time": time_text(prediction.ts_us),
        "rid": as_text(prediction.rid),
        "artefact": prediction.artefact.hex(),
        "parent_rid": as_text(prediction.parent_rid) if prediction.parent_rid else "",
        "subject": prediction.subject.hex(),
        "columns": prediction.columns.hex(),
        "inputs": {name: _tensor_json(tensor) for name, tensor in prediction.inputs.items()},
        "outputs": {name: _tensor_json(tensor) for name, tensor in prediction.outputs.items()},
    }
    return msgspec.json.encode(document).decode()


def time_text(ts_us: int) -> str:
    """Return microseconds since the epoch as a time of day, UTC, to the millisecond."""
    seconds, us = divmod(ts_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{us // 1_000:03d}Z"


def printable(line: str) -> str:
    """Escape what a terminal would act upon: names and BYTES come from callers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _summary(tensors: Mapping[str, LoggedTensor]) -> str:
    return ", ".join(_tensor_line(name, tensor) for name, tensor in tensors.items()) or "-"


def _tensor_line(name: str, tensor: LoggedTensor) -> str:
    head = f"{name} {tensor.datatype}{list(tensor.shape)}"
    kept = _kept(tensor)
    if kept not in ("whole", "trunc"):
        return f"{head} ({kept})"
    try:
        values = _values(tensor, VALUES_SHOWN)
    except MalformedRecord:
        return f"{head} (unreadable)"
    shown = [f"{v:.4g}" if isinstance(v, float) else str(v)[:CHARACTERS_SHOWN] for v in values]
    if math.prod(tensor.shape) > len(values):
        shown.append("…")
    return " ".join((head, *shown))


def _tensor_json(tensor: LoggedTensor) -> dict[str, object]:
    kept = _kept(tensor)
    values: list[object] | None = None
    if kept in ("whole", "trunc"):
        try:
            values = _values(tensor, None)
        except MalformedRecord:
            kept = "unreadable"
    document: dict[str, object] = {
        "datatype": tensor.datatype,
        "shape": tensor.shape,
        "is_whole": tensor.is_whole,
        "values": values,
    }
    if isinstance(tensor.payload, Reduced):
        known = {"statistics": tensor.payload.statistics, "digest": tensor.payload.digest.hex()}
        document |= {name: value for name, value in known.items() if value}
    return document if kept == "whole" else document | {"kept": kept}


def _kept(tensor: LoggedTensor) -> str:
    """Return what was kept: whole, redacted, or a kind of Reduced."""
    if isinstance(tensor.payload, Reduced):
        return tensor.payload.kind
    return "redacted" if tensor.payload is None else "whole"


def _values(tensor: LoggedTensor, limit: int | None) -> list[object]:
    """Return the first elements, row-major, as Python values; BYTES as text."""
    flat = tensor.array().reshape(-1)[:limit]
    if tensor.datatype == "BF16":  # the upper half of an FP32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    values: list[object] = flat.tolist()
    return [v.decode(errors="backslashreplace") if isinstance(v, bytes) else v for v in values]
