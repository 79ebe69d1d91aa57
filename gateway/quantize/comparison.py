"""Parent and child answer the same rows: how far are they apart?

    difference   largest absolute difference of two elements
    relative     that, over the parent's largest absolute value of this output
    agreement    share of equal answers: of an output whose last axis has several elements, those
                 whose largest element is the same one; of whole numbers, truth values and text,
                 those that are equal. A single floating point number has none.

Both run in onnxruntime on this machine's CPU. An INT8 child answers alike on others; an FP16
child, which a CPU computes in FP32 between its conversions, is rounded more by a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from engines.tensors import DATATYPES, Array
from gateway.quantize.faults import CannotQuantize, first_line, package
from gateway.quantize.graphs import Signature
from gateway.quantize.samples import Sample

_ERRORS_ONLY: Final = 3


@dataclass(slots=True)
class Output:
    """How far an output of the child is from its parent's."""

    name: str
    difference: float = 0.0
    largest: float = 0.0
    """Absolute value of the parent's."""
    answers: int = 0
    equal: int = 0
    what: str = ""
    """Which answers are compared: argmax or equal; empty: none."""
    broken: int = 0
    """Elements that are finite in the parent's answers only."""

    @property
    def agreement(self) -> float | None:
        """Share of equal answers; None: there is nothing that could be equal."""
        return self.equal / self.answers if self.what and self.answers else None

    @property
    def relative(self) -> float:
        """The difference over the parent's largest value."""
        return self.difference / self.largest if self.largest else float(self.difference > 0)

    def add(self, ours: Array, theirs: Array) -> None:
        """Take the child's and the parent's answers to one batch into account."""
        if theirs.dtype.kind in "fc":
            self._add_numbers(ours, theirs)
        if theirs.dtype.kind not in "fc" or (theirs.ndim and theirs.shape[-1] > 1):
            self._add_answers(ours, theirs)

    def _add_numbers(self, ours: Array, theirs: Array) -> None:
        if ours.shape != theirs.shape:
            return
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        is_finite = np.isfinite(theirs)
        self.broken += int((is_finite & ~np.isfinite(ours)).sum())
        both = is_finite & np.isfinite(ours)
        apart = np.abs(ours[both] - theirs[both])
        self.difference = max(self.difference, float(apart.max(initial=0)))
        self.largest = max(self.largest, float(np.abs(theirs[is_finite]).max(initial=0)))

    def _add_answers(self, ours: Array, theirs: Array) -> None:
        self.what = "argmax" if theirs.dtype.kind in "fc" else "equal"
        has_same_shape = ours.shape == theirs.shape
        if self.what == "argmax":
            theirs = theirs.argmax(axis=-1)
            ours = ours.argmax(axis=-1) if has_same_shape else ours
        self.answers += theirs.size
        self.equal += int((ours == theirs).sum()) if has_same_shape else 0


class Sessions:
    """Parent and child, loaded.

    Raises:
        CannotQuantize: the child does not load.
    """

    def __init__(self, parent: bytes, child: bytes, signature: Signature) -> None:
        self._parent, self._child = session(parent), session(child)
        self._dtypes = {port.name: DATATYPES[port.datatype].dtype for port in signature.inputs}
        """Of the child's inputs."""

    def compare(self, batches: Sequence[Sample]) -> list[Output]:
        """Run batches of the parent's inputs through both.

        Raises:
            CannotQuantize: one of them cannot run one, or answers with what is no tensor.
        """
        outputs = [Output(value.name) for value in self._parent.get_outputs()]
        for batch in batches:
            cast = {name: array.astype(self._dtypes[name]) for name, array in batch.items()}
            theirs, ours = run(self._parent, batch), run(self._child, cast)
            for output, one, other in zip(outputs, ours, theirs, strict=True):
                output.add(one, other)
        return outputs


def worst(outputs: Sequence[Output]) -> float | None:
    """Return the least agreement of any output; None: no output has one."""
    found = [output.agreement for output in outputs if output.agreement is not None]
    return min(found, default=None)


def check_finite(outputs: Sequence[Output]) -> None:
    """Refuse a child that answers with NaN or infinities where its parent does not.

    Raises:
        CannotQuantize: it does.
    """
    for output in outputs:
        if output.broken:
            raise CannotQuantize(
                f"output {output.name!r} has {output.broken} elements that are not finite where "
                "the parent's are: a value is too large for this precision; --exclude its node"
            )


def session(content: bytes, *, is_optimised: bool = True) -> Any:  # Any: onnxruntime has no types
    """Load a model for the CPU.

    Raises:
        CannotQuantize: it does not load.
    """
    ort = package("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if not is_optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # foreign: a class per cause
        raise CannotQuantize(f"onnxruntime does not load it: {first_line(exc)}") from exc


def run(loaded: Any, batch: Sample) -> list[Array]:  # Any: as above
    """Return all outputs of a session, in its order.

    Raises:
        CannotQuantize: it cannot run these inputs.
    """
    try:
        answers: list[Array] = loaded.run(None, batch)
    except Exception as exc:  # foreign, as above
        raise CannotQuantize(f"onnxruntime does not run it: {first_line(exc)}") from exc
    return answers
