"""Samples from records of the prediction log: the inputs that models were really asked.

Only records that have every input whole count. Of a tensor over `[prediction_log.capture]
max_bytes` the log keeps statistics, of which no input can be made again; what privacy rules drop,
hash or seal is not there either. Why records do not count is counted, and told if none is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from engines.tensors import DATATYPES, Array
from gateway.prediction_log.record import LoggedPrediction, LoggedTensor, MalformedRecord, Reduced
from gateway.quantize.faults import WrongInput
from gateway.quantize.graphs import Port, Signature
from gateway.quantize.samples import Sample, check_port, fits, is_finite

WHY: Final = {
    "trunc": "keep only the start of",
    "stat": "keep only statistics of",
    "thumb": "keep only statistics of",
    "ref": "keep only statistics of",
    "skipped": "keep only statistics of",
    "seal": "have sealed",
    "erased": "no longer have",
    "lost": "no longer have",
}
DROPPED: Final = "were told by privacy rules to drop"
ADVICE: Final = (
    "tensors over [prediction_log.capture] max_bytes are not kept whole: raise it, set full_share "
    "for whole copies of some records, or give rows with --calibration"
)


@dataclass(slots=True)
class Logged:
    """What records give."""

    samples: list[Sample] = field(default_factory=list)
    why_not: Counter[str] = field(default_factory=Counter)
    """Why the others do not count, as in: 12 records {why}."""

    def sentence(self) -> str:
        """Return why there is no sample."""
        if not self.why_not:
            return "there is no record in it"
        causes = [f"{count} {why}" for why, count in self.why_not.most_common(3)]
        told = f"none of {self.why_not.total()} records has its inputs whole: {', '.join(causes)}"
        return f"{told}; {ADVICE}" if any("keep only" in cause for cause in causes) else told


def from_records(records: Iterable[LoggedPrediction], signature: Signature) -> Logged:
    """Return what records give for a model of this signature.

    Raises:
        WrongInput: an input is of a datatype that is not read.
    """
    for port in signature.inputs:
        check_port(port)
    logged = Logged()
    for record in records:
        found = _sample(record, signature.inputs)
        if isinstance(found, str):
            logged.why_not[found] += 1
        else:
            logged.samples.append(found)
    return logged


def checked(logged: Logged, name: str) -> list[Sample]:
    """Return the samples of a name.

    Raises:
        WrongInput: there is none.
    """
    if not logged.samples:
        raise WrongInput(f"the log of {name!r}: {logged.sentence()}")
    return logged.samples


def _sample(record: LoggedPrediction, inputs: Sequence[Port]) -> Sample | str:
    """Return the inputs of a record, or why they cannot be used."""
    if record.error:
        return "ended in an error"
    found: Sample = {}
    for port in inputs:
        tensor = record.inputs.get(port.name)
        if tensor is None:
            return f"have no input {port.name!r}"
        array = _array(tensor, port)
        if isinstance(array, str):
            return array
        found[port.name] = array
    return found


def _array(tensor: LoggedTensor, port: Port) -> Array | str:
    if not tensor.is_whole:
        payload = tensor.payload
        kind = WHY.get(payload.kind, DROPPED) if isinstance(payload, Reduced) else DROPPED
        return f"{kind} {port.name!r}"
    if tensor.datatype != port.datatype or not fits(tensor.shape, port):
        return f"have another datatype or shape than {port}"
    try:
        array = tensor.array()
    except MalformedRecord:
        return f"have broken bytes for {port.name!r}"
    if not is_finite(array):
        return f"have values of {port.name!r} that are not finite"
    return np.ascontiguousarray(array, DATATYPES[port.datatype].dtype)
