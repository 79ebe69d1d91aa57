"""The tap: every rule about what may be written down, made from the configuration once.

Knows the sections of the configuration and puts keyring, rules and sealing together; capture asks
it per form of a tensor, the pipeline per request for the subject. Its methods are for the event
loop's thread, except where they say otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from gateway.prediction_log.privacy.features import FeatureRules
from gateway.prediction_log.privacy.keyring import Keyring
from gateway.prediction_log.privacy.seal import OnNewKey, SubjectKey, SubjectKeys, read_master_key
from gateway.prediction_log.privacy.subject import SubjectOf, subject_finder, subject_input
from gateway.prediction_log_config import NameConfig, PredictionLogConfig

_NO_SETTINGS = NameConfig()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Privacy:
    """What a configuration says about people.

    Attributes:
        subject_of: returns the data subject that a request names, or "".
    """

    def __init__(
        self,
        config: PredictionLogConfig,
        *,
        keyring: Keyring | None,
        keys: SubjectKeys | None,
    ) -> None:
        """Use `build`, unless the files have been read.

        Raises:
            ConfigError: a rule cannot be kept; with its path.
        """
        source = config.privacy.subject
        self.subject_of: SubjectOf = subject_finder(source)
        self._keyring = keyring
        self._keys = keys
        self._subject_input = subject_input(source)
        self._rules = {name: self._make(name, given) for name, given in config.names.items()}

    @classmethod
    def build(
        cls,
        config: PredictionLogConfig,
        base: Path,
        *,
        on_new_key: OnNewKey,
        clock_ms: Callable[[], int] = _now_ms,
    ) -> Privacy:
        """Read the files that a configuration names, relative to `base`. Blocking.

        `on_new_key` is given each wrapped key, from within `sealing_key`: it has to be written
        before the record that is encoded next.

        Raises:
            ConfigError: a file is absent or not what it should be, with its line; or a rule cannot
                be kept, with its path.
        """
        settings = config.privacy
        keyring = Keyring.load(base / settings.key_file) if settings.key_file else None
        keys = None
        if settings.master_key_file:
            master_key = read_master_key(base / settings.master_key_file)
            keys = SubjectKeys(master_key, on_new_key=on_new_key, clock_ms=clock_ms)
        return cls(config, keyring=keyring, keys=keys)

    def rules(self, name: str) -> FeatureRules:
        """Return the rules of a public name; a name without settings has the defaults."""
        rules = self._rules.get(name)
        return self._make(name, _NO_SETTINGS) if rules is None else rules

    def tag(self, subject: str) -> bytes:
        """Return the 16 bytes that stand for a subject; b"" for nobody. Any thread."""
        if self._keyring is None or not subject:
            return b""
        return self._keyring.tag(subject)

    def sealing_key(self, tag: bytes) -> SubjectKey | None:
        """Return the key of a subject; None for nobody, and where nothing is sealed.

        May call `on_new_key` first. Any thread may seal with what it returns.
        """
        if self._keys is None or not tag:
            return None
        return self._keys.key_of(tag)

    def key_blobs(self) -> list[bytes]:
        """Return the wrapped keys in use: to be written again where they may have been lost."""
        return [] if self._keys is None else self._keys.blobs()

    def forget(self, tag: bytes) -> None:
        """Drop a subject's key from memory, after an erasure."""
        if self._keys is not None:
            self._keys.forget(tag)

    def reload_if_changed(self) -> bool:
        """Take over a key file that was changed; to be called every few seconds. One stat."""
        return self._keyring is not None and self._keyring.reload_if_changed()

    def _make(self, name: str, settings: NameConfig) -> FeatureRules:
        return FeatureRules(name, settings, self._keyring, self._subject_input)
