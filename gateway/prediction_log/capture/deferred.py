"""A record with tensors that are too much work for the event loop, and that work.

The record is a list of pieces, which joined are its blob; a tensor still to be worked on is one
piece. So the record can be written three times without being encoded anew: as it would be found if
the process ended now (`intent`), as it is when the work was refused (`skipped`), and finished.

Threads: made on the event loop, finished in any one thread; shares nothing but bytes that nobody
changes, keys that are made for it, and the folder of references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from engines.tensors import Raw, Tensor
from gateway.prediction_log.capture.policy import Plan, SealingKey, seal_context
from gateway.prediction_log.capture.reduction import SKIPPED, reduce_tensor
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.record import Reduced

HEAD_PIECES: Final = 3
"""How many of a record's pieces stand before its tensors."""
_encode: Final = msgspec.msgpack.Encoder().encode
_Pieces = tuple[Raw, ...]


class Finished(NamedTuple):
    """What became of a deferred record."""

    blob: bytes
    whole: bytes | None
    """The same with all tensors whole, for the stream of whole records."""


def whole_form(name: str, datatype: str, shape: tuple[int, ...], size_bytes: int) -> bytes:
    """Encode what stands before a tensor's bytes: its name, and an array of three."""
    array = b"\x93" + _encode(datatype) + _encode(shape)
    return _encode(name) + array + b"\xc6" + size_bytes.to_bytes(4, "big")


def other_form(
    name: str, datatype: str, shape: tuple[int, ...], payload: Reduced | None = None
) -> bytes:
    """Encode a tensor that is not kept whole."""
    return _encode(name) + b"\x93" + _encode(datatype) + _encode(shape) + _encode(payload)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One tensor that is not written as it is."""

    tensor: Tensor
    plan: Plan
    request_id: bytes
    key: SealingKey | None
    limit_bytes: int
    references: References | None

    def carry_out(self) -> tuple[_Pieces, _Pieces]:
        """Return the tensor's pieces as the record has them, and as a whole record has them."""
        name, datatype, shape, data = self.tensor
        treatment, over = self.plan.treatment, self.plan.over
        if treatment.change is not None:
            datatype, shape, data = treatment.change(data)
        if treatment.is_sealed:
            sealed: Reduced | None = None
            if self.key is not None:
                sealed = self.key.seal(data, seal_context(self.request_id, name))
            form = other_form(name, datatype, shape, sealed)
            return (form,), (form,)
        size = len(data)
        whole = (whole_form(name, datatype, shape, size), data)
        if size <= self.limit_bytes or over == "full":
            return whole, whole
        treated = Tensor(name, datatype, shape, data)
        reduced = reduce_tensor(
            treated, over, limit_bytes=self.limit_bytes, references=self.references
        )
        return (other_form(name, datatype, shape, reduced),), whole


@dataclass(slots=True, eq=False)
class Deferred:
    """A record that is not finished."""

    intent: bytes
    """The record without the tensors that are worked on: they are `lost`."""
    held_bytes: int
    """Bytes of those tensors: what waiting for the work keeps in memory."""
    pieces: Sequence[Raw]
    works: Mapping[int, Work]
    """By their place in `pieces`."""
    head_of_whole: Callable[[int], bytes] | None
    """Encodes what stands before the tensors of the whole record, given its sequence number."""
    whole_seq: int = 0
    """The whole record's number in its own stream; whoever gives numbers sets it before the work is
    done."""

    @property
    def wants_whole(self) -> bool:
        """Whether finishing also makes the whole record."""
        return self.head_of_whole is not None

    def finish(self) -> Finished:
        """Do the work; raises what a tensor that contradicts itself raises."""
        reduced: dict[int, _Pieces] = {}
        whole: dict[int, _Pieces] = {}
        for place, work in self.works.items():
            reduced[place], whole[place] = work.carry_out()
        blob = _join(self.pieces, reduced)
        if self.head_of_whole is None:
            return Finished(blob, None)
        head = (self.head_of_whole(self.whole_seq),)
        whole |= dict.fromkeys(range(HEAD_PIECES), ()) | {0: head}
        return Finished(blob, _join(self.pieces, whole))

    def skipped(self) -> bytes:
        """Return the record as it is when there was no room for the work."""
        forms: dict[int, _Pieces] = {}
        for place, work in self.works.items():
            name, datatype, shape, _ = work.tensor
            forms[place] = (other_form(name, datatype, shape, SKIPPED),)
        return _join(self.pieces, forms)


def _join(pieces: Sequence[Raw], others: Mapping[int, _Pieces]) -> bytes:
    """Join pieces, some of them replaced."""
    return b"".join(
        part for place, piece in enumerate(pieces) for part in others.get(place, (piece,))
    )
