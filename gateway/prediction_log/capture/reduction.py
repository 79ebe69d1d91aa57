"""What is kept of a tensor over the limit: its first bytes, statistics, a picture, or a file.

Pure but for the file. All kinds but the first have a digest of the whole bytes, so a reader can
tell whether two large tensors were the same without having either.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final

from engines.tensors import BYTES, DATATYPES, Raw, Tensor
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.capture.statistics import summarise
from gateway.prediction_log.capture.thumbnail import thumbnail
from gateway.prediction_log.record import Reduced
from gateway.prediction_log_config import Over

TRUNCATED: Final = "trunc"
STATISTICS: Final = "stat"
THUMBNAIL: Final = "thumb"
REFERENCE: Final = "ref"
LOST: Final = Reduced(kind="lost")
"""The process ended before it was reduced."""
SKIPPED: Final = Reduced(kind="skipped")
"""There was no room for it to wait for being reduced."""
_DIGEST_BYTES: Final = 16
_LENGTH: Final = struct.Struct("<I")


def reduce_tensor(
    tensor: Tensor, over: Over, *, limit_bytes: int, references: References | None
) -> Reduced:
    """Return what is kept of a tensor; its bytes fit its shape.

    Args:
        tensor: after privacy.
        over: any but `full`.
        limit_bytes: most bytes of the first elements.
        references: where files go; None: a reference is statistics.
    """
    if over == "truncate":
        end = whole_elements(tensor.datatype, tensor.data, limit_bytes)
        kept = bytes(memoryview(tensor.data)[:end])
        return Reduced(kind=TRUNCATED, kept_bytes=len(kept), data=kept)
    _, datatype, shape, data = tensor
    summary = summarise(datatype, shape, data)
    digest = blake2b(data, digest_size=_DIGEST_BYTES).digest()
    small = thumbnail(datatype, shape, data) if over == "thumbnail" else None
    uri = references.keep(digest, data) if over == "reference" and references is not None else ""
    kind = THUMBNAIL if small is not None else REFERENCE if uri else STATISTICS
    return Reduced(
        kind=kind,
        data=small.data if small is not None else b"",
        digest=digest,
        uri=uri,
        thumb_shape=small.shape if small is not None else (),
        statistics=summary.statistics,
        channels=summary.channels,
        histogram=summary.histogram,
    )


def whole_elements(datatype: str, data: Raw, limit_bytes: int) -> int:
    """Return the end of the last element that lies wholly within the first `limit_bytes`."""
    if datatype != BYTES:
        return limit_bytes - limit_bytes % DATATYPES[datatype].item_bytes
    end = 0
    while end + _LENGTH.size <= limit_bytes:
        following = end + _LENGTH.size + _LENGTH.unpack_from(data, end)[0]
        if following > limit_bytes:
            break
        end = following
    return end
