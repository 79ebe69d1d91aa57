"""Keyed pseudonyms: the file of keys, tags of data subjects, hashes of features.

Knows nothing of requests and records. A pseudonym is 16 bytes: the number of the key that made it,
then 15 bytes of an HMAC-SHA256 over its domain and the value. Tags and hashes are of two domains,
so that the hash of a feature cannot be looked up among the tags. Signatures (of an erasure's
receipt) are of a third.

The file has a line `id hex-key` per key; `#` begins a comment; the last key is in use. Keys that
are not in use stay in the file for as long as their pseudonyms are to be found again: a key that is
removed is destroyed, and what it made can no longer be linked to anybody, nor be erased by name.

Memory: memos of what recurs, bounded in entries and in the bytes of one. Threads: `tag` and `hash`
may be called from any; a memo and the key that filled it are replaced together, so a hash of the
old key is never found under the new one. Two threads in one memo can lose entries, no more.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from gateway.config_fields import ConfigError
from gateway.memo import Memo

TAG_BYTES: Final = 16
MAX_KEYS: Final = 256
_MIN_KEY_BYTES: Final = 16
_NEW_KEY_BYTES: Final = 32
_KEPT_BYTES: Final = TAG_BYTES - 1
_MAX_MEMO_ENTRIES: Final = 8_192
_MAX_MEMO_VALUE_BYTES: Final = 256
_SUBJECT: Final = b"subject\0"
_FEATURE: Final = b"feature\0"
_DOCUMENT: Final = b"document\0"
_OTHERS: Final = 0o077

_log = logging.getLogger(__name__)


class Key(NamedTuple):
    """One line of the file."""

    number: int
    secret: bytes

    def pseudonym(self, domain: bytes, value: bytes) -> bytes:
        """Return the 16 bytes that stand for a value."""
        digest = hmac.digest(self.secret, domain + value, "sha256")
        return bytes((self.number,)) + digest[:_KEPT_BYTES]


class _InUse:
    """The key in use, and what it has made lately."""

    __slots__ = ("hashes", "key", "tags")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.tags: Memo[str, bytes] = Memo(_MAX_MEMO_ENTRIES)
        self.hashes: Memo[bytes, bytes] = Memo(_MAX_MEMO_ENTRIES)


class Keyring:
    """The keys of one file.

    Use `Keyring.load`. What the file says later is taken over by `reload_if_changed`, if it can be
    read as a whole; otherwise the keys stay as they are, which is logged once per change.
    """

    def __init__(self, path: Path, keys: list[Key], seen: tuple[int, ...]) -> None:
        self._path = path
        self._keys = keys
        self._seen = seen
        self._in_use = _InUse(keys[-1])

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """Read a file of keys. Blocking.

        Raises:
            ConfigError: there is no such file, or a line of it is no key; with file and line.
        """
        seen = _stamp(path)
        keys = read_keys(path)
        warn_if_open(path)
        return cls(path, keys, seen)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the keys, the one in use last."""
        return [key.number for key in self._keys]

    def tag(self, subject: str) -> bytes:
        """Return the tag of a data subject by the key in use."""
        in_use = self._in_use
        known = in_use.tags.recent.get(subject) or in_use.tags.get(subject)
        if known is not None:
            return known
        tag = in_use.key.pseudonym(_SUBJECT, _as_bytes(subject))
        if len(subject) <= _MAX_MEMO_VALUE_BYTES:
            in_use.tags.put(subject, tag)
        return tag

    def tags(self, subject: str) -> list[bytes]:
        """Return all tags that records of a data subject may have: one per key, newest first."""
        value = _as_bytes(subject)
        return [key.pseudonym(_SUBJECT, value) for key in reversed(self._keys)]

    def hashes(self, values: list[bytes]) -> list[bytes]:
        """Return the pseudonyms of feature values in hex, all by one key: 32 characters each."""
        in_use = self._in_use
        memo, key = in_use.hashes, in_use.key
        made = []
        for value in values:
            known = memo.get(value)
            if known is None:
                known = key.pseudonym(_FEATURE, value).hex().encode()
                if len(value) <= _MAX_MEMO_VALUE_BYTES:
                    memo.put(value, known)
            made.append(known)
        return made

    def sign(self, document: bytes) -> tuple[int, bytes]:
        """Return the number of the key in use, and the 32 bytes that show it signed a document."""
        key = self._in_use.key
        return key.number, _signature(key, document)

    def verify(self, document: bytes, number: int, signature: bytes) -> bool:
        """Whether a document was signed by the key of a number that is still in the file."""
        key = next((key for key in self._keys if key.number == number), None)
        return key is not None and hmac.compare_digest(_signature(key, document), signature)

    def reload_if_changed(self) -> bool:
        """Read the file again if it is another than before; return whether the keys changed.

        Blocking, for the time of one stat where nothing changed.
        """
        try:
            seen, trouble = _stamp(self._path), None
        except ConfigError as exc:
            seen, trouble = (), exc
        if seen == self._seen:
            return False
        self._seen = seen  # what follows is told once per change, however often this is called
        try:
            if trouble is not None:
                raise trouble
            keys = read_keys(self._path)
            self._check_change(keys)
        except ConfigError as exc:
            _log.error("the keys stay as they were: %s", exc)
            return False
        if keys == self._keys:
            return False
        return self._take(keys)

    def _take(self, keys: list[Key]) -> bool:
        destroyed = {key.number for key in self._keys} - {key.number for key in keys}
        if destroyed:
            _log.warning("keys destroyed, their tags are unlinkable now: %s", sorted(destroyed))
        if keys[-1] != self._in_use.key:
            _log.info("key %d is in use now", keys[-1].number)
            self._in_use = _InUse(keys[-1])
        self._keys = keys
        return True

    def _check_change(self, keys: list[Key]) -> None:
        before = {key.number: key.secret for key in self._keys}
        for key in keys:
            if before.get(key.number, key.secret) != key.secret:
                sentence = f"key {key.number} is another than before: a new key needs a new id"
                raise ConfigError(str(self._path), sentence)


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file in its order, at least one. Blocking.

    Raises:
        ConfigError: with file and line; the sentence never holds a key.
    """
    keys: list[Key] = []
    numbers: set[int] = set()
    for line_number, line in enumerate(_read(path).splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        at = f"{path}:{line_number}"
        key = _parse(text, at)
        if key.number in numbers:
            raise ConfigError(at, f"a second key with the id {key.number}")
        numbers.add(key.number)
        keys.append(key)
    if not keys:
        raise ConfigError(str(path), "it has no key; `sluice log new-keys` makes one")
    return keys


def rotate(path: Path) -> int:
    """Append a new random key to a file and return its number: it is in use from now on. Blocking.

    The file is appended to, not replaced: owner, mode and mount stay as they are. Two rotations at
    the same time are done one after the other.

    Raises:
        ConfigError: the file is no file of keys, or is full.
        OSError: it cannot be written.
    """
    with _locked(path) as descriptor:
        numbers = [key.number for key in read_keys(path)]
        number = _next_number(path, numbers)
        end = os.fstat(descriptor).st_size
        is_open_line = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
        line = (b"\n" if is_open_line else b"") + new_line(number)
        _append_whole(descriptor, line, end)
    return number


def create(path: Path) -> bool:
    """Make a file with one key, readable for its owner alone; False if it is there. Blocking."""
    head = b"# Keys of the prediction log's pseudonyms: `id hex-key`. The last one is in use.\n"
    return create_secret(path, head + new_line(0))


def create_secret(path: Path, content: bytes) -> bool:
    """Write a file that only its owner can read; False if there is one already. Blocking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()  # half a key would be worse than none
        raise
    return True


def warn_if_open(path: Path) -> None:
    """Say so if others than its owner can read a file of keys. Blocking."""
    if path.stat().st_mode & _OTHERS:
        _log.warning("others than its owner can read the key file %s", path)


def new_line(number: int) -> bytes:
    """Return a line of the file with a new random key."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return f"{number} {secrets.token_hex(_NEW_KEY_BYTES)}  # {day}\n".encode()


def _parse(text: str, at: str) -> Key:
    number_text, *rest = text.split(None, 1)
    if not (number_text.isascii() and number_text.isdigit() and int(number_text) < MAX_KEYS):
        raise ConfigError(at, f"a line is `id hex-key`, the id from 0 to {MAX_KEYS - 1}")
    try:
        secret = bytes.fromhex(rest[0] if rest else "")
    except ValueError:
        raise ConfigError(at, "the key is not in hex") from None
    if len(secret) < _MIN_KEY_BYTES:
        raise ConfigError(at, f"the key is shorter than {_MIN_KEY_BYTES} bytes")
    return Key(int(number_text), secret)


def _next_number(path: Path, numbers: list[int]) -> int:
    """Return the number after the last one, so that those of destroyed keys come back late."""
    for step in range(1, MAX_KEYS + 1):
        number = (numbers[-1] + step) % MAX_KEYS
        if number not in numbers:
            return number
    raise ConfigError(str(path), f"it has {MAX_KEYS} keys: remove those that are not needed")


def _append_whole(descriptor: int, line: bytes, end: int) -> None:
    """Append at `end`, all or nothing."""
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            raise OSError(f"{written} of {len(line)} bytes of the new key were written")
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        raise _absent(path) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        raise _absent(path) from None
    except OSError as exc:
        raise ConfigError(str(path), f"cannot be read: {exc.strerror}") from exc


def _absent(path: Path) -> ConfigError:
    return ConfigError(str(path), "there is no such file; `sluice log new-keys` makes one")


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes with the file, without reading it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise _absent(path) from None
    except OSError as exc:
        raise ConfigError(str(path), f"cannot be read: {exc.strerror}") from exc
    return status.st_mtime_ns, status.st_size, status.st_ino


def _signature(key: Key, document: bytes) -> bytes:
    return hmac.digest(key.secret, _DOCUMENT + document, "sha256")


def _as_bytes(subject: str) -> bytes:
    # A lone surrogate is no reason to lose a record, or to leave it without its tag.
    return subject.encode("utf-8", "surrogatepass")
