"""Opens sealed tensors for readers, as long as their subject's key exists.

Knows Redis' hash of keys and the master key; keeps no key between two calls, so that what was
erased meanwhile stays closed. Synchronous: readers are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, cast

import msgspec
import redis

from gateway.prediction_log.capture.policy import seal_context
from gateway.prediction_log.privacy.key_store import KEYS_KEY, key_field
from gateway.prediction_log.privacy.seal import SEAL, SubjectKey, Unsealable, cipher, unwrap
from gateway.prediction_log.record import LoggedPrediction, LoggedTensor, Reduced

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ERASED: Final = "erased"
"""Kind of a payload whose key was destroyed: nobody can open it."""
UNREADABLE: Final = "unreadable"
"""Kind of a payload that its own key does not open: somebody changed or moved it."""
_ERASED: Final = Reduced(kind=ERASED)
_UNREADABLE: Final = Reduced(kind=UNREADABLE)

_log = logging.getLogger(__name__)


class Opener:
    """Unseals records.

    Args:
        client: of the Redis that keeps the keys, with bytes as answers; not closed here.
        master_key: see `seal.read_master_key`.

    Raises:
        ConfigError: the package `cryptography` is not installed.
    """

    def __init__(self, client: redis.Redis, master_key: bytes) -> None:
        self._client = client
        self._wrapper: AESGCM = cipher(master_key)

    def open(self, records: Sequence[LoggedPrediction]) -> list[LoggedPrediction]:
        """Return records with their sealed tensors opened, or erased where the key is gone.

        One call of Redis for all of them. Blocking. A tensor that was tampered with is logged, and
        is `unreadable`: it must not stop whoever reads on behind it.

        Raises:
            Unsealable: the keys were wrapped with another master key.
            RedisError: the keys cannot be read.
        """
        fields = {field for record in records for field in _fields_of(record)}
        if not fields:
            return list(records)
        keys = self._fetch(sorted(fields))
        return [_opened(record, keys) for record in records]

    def _fetch(self, fields: list[str]) -> dict[str, SubjectKey]:
        blobs = cast("list[bytes | None]", self._client.hmget(KEYS_KEY, fields))
        return {
            field: unwrap(blob, self._wrapper)
            for field, blob in zip(fields, blobs, strict=True)
            if blob is not None
        }


def _fields_of(record: LoggedPrediction) -> Iterable[str]:
    for tensors in (record.inputs, record.outputs):
        for tensor in tensors.values():
            payload = tensor.payload
            if isinstance(payload, Reduced) and payload.kind == SEAL:
                yield key_field(record.subject, payload.key_id)


def _opened(record: LoggedPrediction, keys: Mapping[str, SubjectKey]) -> LoggedPrediction:
    if not any(True for _ in _fields_of(record)):
        return record
    return msgspec.structs.replace(
        record,
        inputs={name: _tensor(record, name, it, keys) for name, it in record.inputs.items()},
        outputs={name: _tensor(record, name, it, keys) for name, it in record.outputs.items()},
    )


def _tensor(
    record: LoggedPrediction, name: str, tensor: LoggedTensor, keys: Mapping[str, SubjectKey]
) -> LoggedTensor:
    sealed = tensor.payload
    if not isinstance(sealed, Reduced) or sealed.kind != SEAL:
        return tensor
    key = keys.get(key_field(record.subject, sealed.key_id))
    if key is None:
        return LoggedTensor(tensor.datatype, tensor.shape, _ERASED)
    try:
        data = key.open(sealed.data, seal_context(record.rid, name))
    except Unsealable as exc:
        _log.error("record %s, tensor %r: %s", record.rid.hex(), name, exc)
        return LoggedTensor(tensor.datatype, tensor.shape, _UNREADABLE)
    return LoggedTensor(tensor.datatype, tensor.shape, data)
