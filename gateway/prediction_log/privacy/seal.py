"""Sealing: one random key per data subject, so that destroying the key erases what it sealed.

Knows tags and bytes; knows no Redis and no files but the one of the master key. Two layers of
AES-256-GCM: tensors under the subject's key, that key under the master key. A wrapped key is a
*key blob*, which leaves by a callback before the first record that needs it:

    0x04 | tag (16) | key id (8) | made, ms since the epoch (8, big-endian) | nonce (12) | key (48)

The tag stands in it as it is, so that an erasure finds it in a file.

A blob that is lost on its way (a full disk, a spool that dropped its oldest segment, a Redis that
forgot) would make unreadable whatever its key seals later. `SubjectKeys.blobs` has those that are
still in use, to be handed out again; putting one twice does no harm.

A key is replaced when it is a day old, so that its age says when it last sealed anything: a day
after the records of its first day have gone nobody needs it (key_store.py deletes it).

Invariants. A key is made in one process and used there only; a restart, and a key that fell out of
the cache, make a new one with a new id. So no nonce can come from two places: they are random, and
a key seals far fewer than 2^32 tensors. Raw keys are in memory only.

Cost: 2 us per tensor of 500 bytes, 0.25 ms per 600 KB; 10 us for a subject that is not cached.
The `cryptography` package is imported by the first object made here, not by the module.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from engines.tensors import Raw
from gateway.config_fields import ConfigError
from gateway.prediction_log.privacy.keyring import TAG_BYTES, warn_if_open
from gateway.prediction_log.record import Reduced

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CODEC_KEY: Final = b"\x04"
"""First byte of a key blob."""
KEY_BYTES: Final = 32
SEAL: Final = "seal"
_KEY_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_MAX_SUBJECTS: Final = 16_384
MAX_KEY_AGE_MS: Final = 86_400_000
"""For so long a key seals."""
_HEAD: Final = struct.Struct(f">1s{TAG_BYTES}s{_KEY_ID_BYTES}sQ")
_BLOB_BYTES: Final = _HEAD.size + _NONCE_BYTES + KEY_BYTES + 16
_WRAP: Final = b"sluice subject key\0"

OnNewKey = Callable[[bytes, bytes, bytes], None]
"""Takes tag, key id and key blob."""


class Unsealable(ValueError):
    """Not opened by the key at hand: it is another master key's, or was changed."""


class KeyBlob(NamedTuple):
    """What stands in a key blob."""

    tag: bytes
    key_id: bytes
    made_ms: int
    wrapped: bytes
    """Nonce and encrypted key."""


class SubjectKey:
    """One subject's key, as long as it is in memory. Any thread may seal with it."""

    __slots__ = ("_cipher", "blob", "key_id", "made_ms")

    def __init__(self, key: KeyBlob, cipher: AESGCM, blob: bytes) -> None:
        self.key_id = key.key_id
        self.made_ms = key.made_ms
        self.blob = blob
        """The same, wrapped."""
        self._cipher = cipher

    def seal(self, data: Raw, bound_to: bytes) -> Reduced:
        """Encrypt a tensor's elements; it can be opened only with the same `bound_to`."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, data, bound_to)
        return Reduced(kind=SEAL, data=sealed, key_id=self.key_id)

    def open(self, sealed: bytes, bound_to: bytes) -> bytes:
        """Decrypt what `seal` made.

        Raises:
            Unsealable: it was changed, or belongs to another record or tensor.
        """
        return _decrypt(self._cipher, sealed, bound_to, "a sealed tensor")


class SubjectKeys:
    """Makes, keeps and wraps the keys of the subjects that are seen here.

    At most `max_subjects` keys are in memory, the ones used last. Event loop's thread only.
    """

    def __init__(
        self,
        master_key: bytes,
        *,
        on_new_key: OnNewKey,
        clock_ms: Callable[[], int],
        max_subjects: int = _MAX_SUBJECTS,
    ) -> None:
        self._wrapper = cipher(master_key)
        self._cipher_type = type(self._wrapper)
        self._on_new_key = on_new_key
        self._clock_ms = clock_ms
        self._max_subjects = max_subjects
        self._keys: OrderedDict[bytes, SubjectKey] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def key_of(self, tag: bytes) -> SubjectKey:
        """Return the subject's key; a new one is handed to `on_new_key`, wrapped, before that."""
        now_ms = self._clock_ms()
        key = self._keys.get(tag)
        if key is not None and now_ms - key.made_ms < MAX_KEY_AGE_MS:
            self._keys.move_to_end(tag)
            return key
        key = self._make(tag, now_ms)
        self._keys[tag] = key
        self._keys.move_to_end(tag)
        if len(self._keys) > self._max_subjects:
            self._keys.popitem(last=False)
        return key

    def blobs(self) -> list[bytes]:
        """Return the blobs of all keys in memory, which go on being used."""
        return [key.blob for key in self._keys.values()]

    def forget(self, tag: bytes) -> None:
        """Drop a subject's key: what comes after an erasure gets a new one.

        `tag` is the 16 bytes, or the SHA-256 of them, where nobody knows more any longer.
        """
        if len(tag) != sha256().digest_size:
            self._keys.pop(tag, None)
            return
        for known in [known for known in self._keys if sha256(known).digest() == tag]:
            del self._keys[known]

    def _make(self, tag: bytes, now_ms: int) -> SubjectKey:
        raw, key_id = os.urandom(KEY_BYTES), os.urandom(_KEY_ID_BYTES)
        head = _HEAD.pack(CODEC_KEY, tag, key_id, now_ms)
        nonce = os.urandom(_NONCE_BYTES)
        wrapped = nonce + self._wrapper.encrypt(nonce, raw, _WRAP + head)
        blob = head + wrapped
        self._on_new_key(tag, key_id, blob)
        return SubjectKey(KeyBlob(tag, key_id, now_ms, wrapped), self._cipher_type(raw), blob)


def parse_blob(blob: bytes) -> KeyBlob:
    """Return what stands in a key blob.

    Raises:
        Unsealable: it is none.
    """
    if len(blob) != _BLOB_BYTES or not blob.startswith(CODEC_KEY):
        raise Unsealable("no wrapped key")
    _, tag, key_id, made_ms = _HEAD.unpack_from(blob)
    return KeyBlob(tag, key_id, made_ms, blob[_HEAD.size :])


def unwrap(blob: bytes, wrapper: AESGCM) -> SubjectKey:
    """Return the key of a blob; `wrapper` is the cipher of the master key.

    Raises:
        Unsealable: it is none, or of another master key.
    """
    parsed = parse_blob(blob)
    raw = _decrypt(wrapper, parsed.wrapped, _WRAP + blob[: _HEAD.size], "a subject's key")
    return SubjectKey(parsed, type(wrapper)(raw), blob)


def cipher(key: bytes) -> AESGCM:
    """Return AES-256-GCM with a key.

    Raises:
        ConfigError: the package for it is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as exc:
        sentence = "sealing needs the package `cryptography`: pip install cryptography"
        raise ConfigError("$.prediction_log.privacy.master_key_file", sentence) from exc
    return AESGCM(key)


def read_master_key(path: Path) -> bytes:
    """Read the file of the master key: 32 bytes in hex, `#` begins a comment. Blocking.

    Raises:
        ConfigError: with the file; the sentence never holds the key.
    """
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        sentence = "there is no such file; `sluice log new-keys` makes one"
        raise ConfigError(str(path), sentence) from None
    except OSError as exc:
        raise ConfigError(str(path), f"cannot be read: {exc.strerror}") from exc
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    try:
        key = bytes.fromhex("".join(lines))
    except ValueError:
        raise ConfigError(str(path), "the master key is not in hex") from None
    if len(key) != KEY_BYTES:
        raise ConfigError(str(path), f"the master key has {len(key)} bytes, not {KEY_BYTES}")
    warn_if_open(path)
    return key


def _decrypt(opener: AESGCM, sealed: bytes, bound_to: bytes, what: str) -> bytes:
    from cryptography.exceptions import InvalidTag

    if len(sealed) < _NONCE_BYTES:
        raise Unsealable(f"{what} is cut off")
    try:
        return opener.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to)
    except InvalidTag:
        raise Unsealable(f"{what} is not opened by the key at hand") from None
