"""The bytes of entries to documents, sorted by what they are; what is none is counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from gateway.prediction_log.record import (
    CODEC_AUDIT,
    CODEC_LABEL,
    CODEC_MSGPACK,
    KEYS,
    LoggedAudit,
    LoggedLabel,
    LoggedPrediction,
)

_prediction: Final = msgspec.msgpack.Decoder(LoggedPrediction).decode
_audit: Final = msgspec.msgpack.Decoder(LoggedAudit).decode
_label: Final = msgspec.msgpack.Decoder(LoggedLabel).decode
_PREDICTION, _AUDIT, _LABEL = CODEC_MSGPACK[0], CODEC_AUDIT[0], CODEC_LABEL[0]


class Numbered(msgspec.Struct, frozen=True, rename=KEYS):
    """What every prediction and label has; read alone it costs a third."""

    worker: str
    seq: int


_numbered: Final = msgspec.msgpack.Decoder(Numbered).decode


class Documents:
    """The documents of some entries, each sort in the order of the entries."""

    __slots__ = ("audits", "labels", "predictions", "unreadable")

    def __init__(self) -> None:
        self.predictions: list[LoggedPrediction] = []
        self.audits: list[LoggedAudit] = []
        self.labels: list[LoggedLabel] = []
        self.unreadable = 0

    @classmethod
    def of(cls, blobs: Iterable[bytes]) -> Documents:
        """Decode the blobs of entries."""
        found = cls()
        add, decode = found.predictions.append, _prediction
        for blob in blobs:
            try:
                if blob[0] == _PREDICTION:
                    add(decode(memoryview(blob)[1:]))
                else:
                    found._add_other(blob)
            except (msgspec.DecodeError, IndexError):
                found.unreadable += 1
        return found

    def _add_other(self, blob: bytes) -> None:
        if blob[0] == _AUDIT:
            self.audits.append(_audit(memoryview(blob)[1:]))
        elif blob[0] == _LABEL:
            self.labels.append(_label(memoryview(blob)[1:]))
        else:
            self.unreadable += 1


def audits_of(blobs: Iterable[bytes]) -> list[LoggedAudit]:
    """Decode the audits among the blobs of entries, and nothing else."""
    return Documents.of(blob for blob in blobs if blob[:1] == CODEC_AUDIT).audits


def numbers_of(blobs: Iterable[bytes]) -> list[Numbered]:
    """Return whose records these are and which, of those that are numbered."""
    found = []
    for blob in blobs:
        if blob[:1] in (CODEC_MSGPACK, CODEC_LABEL):
            try:
                found.append(_numbered(memoryview(blob)[1:]))
            except msgspec.DecodeError:
                continue
    return found
