"""Key files and what is built from them, for tests of privacy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gateway.prediction_log.privacy.tap import Privacy
from gateway.prediction_log_config import NameConfig, PredictionLogConfig, PrivacyConfig

MASTER_KEY = bytes(range(32))
NOW_MS = 1_767_225_600_000
FIRST_KEY = "00" * 16
SECOND_KEY = "11" * 16


def write_keys(path: Path, *lines: str) -> Path:
    """Write a file of keys; without lines one of one key."""
    path.write_text("\n".join(lines or (f"0 {FIRST_KEY}",)) + "\n")
    path.chmod(0o600)
    return path


def settings_of(
    names: dict[str, NameConfig] | None = None, *, subject: str = "header:x-customer"
) -> PredictionLogConfig:
    """Return a configuration that names both key files."""
    privacy = PrivacyConfig(subject=subject, key_file="keys", master_key_file="master")
    return PredictionLogConfig(privacy=privacy, names=names or {})


def tap_of(
    folder: Path,
    config: PredictionLogConfig,
    *,
    on_new_key: Callable[[bytes, bytes, bytes], None] | None = None,
) -> Privacy:
    """Write the key files into a folder, and build what they and a configuration say."""
    write_keys(folder / "keys")
    (folder / "master").write_text(MASTER_KEY.hex() + "\n")
    return Privacy.build(
        config, folder, on_new_key=on_new_key or (lambda *_: None), clock_ms=lambda: NOW_MS
    )
