"""The rows of a window or a reference: which columns are judged, which rows count, which are right.

Columns are named as the reader of the prediction log names them: `in.<tensor>...` are features,
`out.<tensor>...` outputs, `status` and `weight` say what their names say. Other tables may use the
bare names of features. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from gateway.drift import column, statistics
from gateway.drift.column import Values
from gateway.drift.concept import Rate
from gateway.drift.statistics import Flags, Floats

Columns = Mapping[str, Values]
"""One array per column, all of one length."""

IN: Final = "in."
OUT: Final = "out."
LABEL: Final = "label"
"""Ground truth, where it has come."""
FIRST_ERROR: Final = 400
_IDENTIFIERS: Final = (".digest", ".uri")
"""What a reader says about tensors that are kept elsewhere: different in every row."""


class DriftError(Exception):
    """Drift cannot be judged; the sentence says why."""


class Side(StrEnum):
    """Whether a column goes into the model or comes out of it."""

    FEATURE = "feature"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """How answers are held against labels."""

    predicted: str = ""
    """Output column that a label is compared with; empty: the only one that is a category."""
    tolerance: float = 0.0
    """Numbers are right up to this distance."""


def length(columns: Columns) -> int:
    """Return the number of rows."""
    return next((len(values) for values in columns.values()), 0)


def weights_of(columns: Columns) -> Floats:
    """Return the sampling weight of each row; rows without one count once."""
    if "weight" not in columns:
        return np.ones(length(columns))
    found = column.numbers(columns["weight"])
    found[np.isnan(found) | (found <= 0)] = 1.0
    return found


def answered(columns: Columns) -> dict[str, Values]:
    """Return the rows of requests that were answered: errors have no outputs to judge."""
    if "status" not in columns:
        return dict(columns)
    is_error = _is_error(columns)
    return (
        {name: values[~is_error] for name, values in columns.items()}
        if is_error.any()
        else {**columns}
    )


def error_rate(columns: Columns) -> tuple[Rate, int, int] | None:
    """Return how often requests were answered with an error; with the counts of those and of all.

    Every error is logged, whatever the sampling: so their number is known, and the weights of the
    others say how many requests there were. None: the table does not know statuses.
    """
    if "status" not in columns:
        return None
    is_first = np.ones(length(columns), np.bool_)
    if "row" in columns:
        is_first = columns["row"] == 0
    is_error = _is_error(columns)[is_first]
    weights = weights_of(columns)[is_first]
    if not len(weights):
        return None
    of_errors = weights[is_error]
    scale = float(of_errors.sum() / np.square(of_errors).sum()) if len(of_errors) else 1.0
    share = float(of_errors.sum() / weights.sum())
    rate = Rate(share=share, size=float(weights.sum()) * min(1.0, scale))
    return rate, int(is_error.sum()), len(weights)


def _is_error(columns: Columns) -> Flags:
    return np.asarray(column.numbers(columns["status"]) >= FIRST_ERROR, np.bool_)


def judged(columns: Iterable[str]) -> list[str]:
    """Return the columns that are named as features or outputs."""
    return [
        name for name in columns if name.startswith((IN, OUT)) and not name.endswith(_IDENTIFIERS)
    ]


def match(wanted: Iterable[str], present: Iterable[str]) -> dict[str, str]:
    """Return which of a window's columns is which of the reference's.

    A bare name is that of an input tensor, else of one of an input's columns if only one has it,
    else the same of the outputs. What is not found is left out.
    """
    here = judged(present)
    found = {}
    for name in wanted:
        if name in here:
            found[name] = name
            continue
        for prefix in (IN, OUT):
            if prefix + name in here:
                found[name] = prefix + name
                break
            same = [c for c in here if c.startswith(prefix) and c.endswith("." + name)]
            if len(same) == 1:
                found[name] = same[0]
                break
    return found


def side_of(name: str) -> Side:
    """Return the side of a column by its name."""
    return Side.OUTPUT if name.startswith(OUT) else Side.FEATURE


def wrong_answers(columns: Columns, truth: Truth) -> tuple[Floats, Floats]:
    """Return 1 for each labelled row whose answer is wrong and 0 where it is right, and weights.

    Raises:
        DriftError: it is not clear which column a label is compared with.
    """
    nothing = np.zeros(0), np.zeros(0)
    if LABEL not in columns or not length(columns):
        return nothing
    labels = column.texts(columns[LABEL])
    has_label = column.present_flags(labels)
    if not has_label.any():
        return nothing
    predicted = columns[predicted_column(columns, truth)][has_label]
    labels, raw = labels[has_label], columns[LABEL][has_label]
    is_right = np.asarray(column.texts(predicted) == labels, np.bool_)
    if truth.tolerance > 0:
        with np.errstate(invalid="ignore"):
            gaps = np.abs(column.numbers(predicted) - column.numbers(raw))
        is_right |= gaps <= truth.tolerance
    return (~is_right).astype(np.float64), weights_of(columns)[has_label]


def predicted_column(columns: Columns, truth: Truth) -> str:
    """Return the name of the column that labels are compared with.

    Raises:
        DriftError: none is named, and there is none or more than one that it may be.
    """
    if truth.predicted:
        found = match([truth.predicted], columns)
        if truth.predicted not in found:
            raise DriftError(f"there is no column {truth.predicted!r} to compare labels with")
        return found[truth.predicted]
    outputs = [name for name in judged(columns) if name.startswith(OUT)]
    likely = [name for name in outputs if columns[name].dtype.kind not in "fM"]
    likely = likely or ([outputs[0]] if len(outputs) == 1 else [])
    if len(likely) != 1:
        raise DriftError(
            "it is not clear which output labels are compared with; name one of "
            + (", ".join(outputs[:8]) or "(there is none)")
        )
    return likely[0]


def label_rate(columns: Columns, truth: Truth) -> Rate | None:
    """Return how often labelled answers are wrong; None: there are no labels.

    Raises:
        DriftError: it is not clear which column a label is compared with.
    """
    wrong, weights = wrong_answers(columns, truth)
    if not len(wrong):
        return None
    return Rate(
        share=float(np.average(wrong, weights=weights)), size=statistics.effective_size(weights)
    )
