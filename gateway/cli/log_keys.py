"""`sluice log new-keys` and `sluice log rotate-key`: the files of keys of the prediction log.

Knows where the configuration says that they are. Keys are never printed.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway import config as configuration
from gateway.config_fields import ConfigError
from gateway.prediction_log.privacy import keyring
from gateway.prediction_log.privacy.seal import KEY_BYTES
from gateway.prediction_log_config import PrivacyConfig

if TYPE_CHECKING:
    # Private in argparse, and the only name of what `add_subparsers` returns.
    Readers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_CONFIG: Final = Path("sluice.toml")


def add_parsers(readers: Readers) -> None:
    """Add the two commands to those of `sluice log`."""
    new = readers.add_parser("new-keys", help="make the key files that are configured and absent")
    new.set_defaults(run=new_keys)
    rotate = readers.add_parser("rotate-key", help="add a key to privacy.key_file, in use at once")
    rotate.set_defaults(run=rotate_key)
    for command in (new, rotate):
        command.add_argument("--config", type=Path, default=_DEFAULT_CONFIG, metavar="FILE")


def new_keys(arguments: argparse.Namespace) -> int:
    """Make the key files that the configuration names; those that exist stay as they are."""
    try:
        settings = _settings(arguments.config)
    except ConfigError as exc:
        return _refused(arguments.config, exc)
    base = arguments.config.parent
    try:
        _tell(base / settings.key_file, keyring.create(base / settings.key_file))
        if settings.master_key_file:
            path = base / settings.master_key_file
            content = f"# Wraps the subjects' keys.\n{secrets.token_hex(KEY_BYTES)}\n"
            _tell(path, keyring.create_secret(path, content.encode()))
    except OSError as exc:
        return _unusable(exc)
    return 0


def rotate_key(arguments: argparse.Namespace) -> int:
    """Add a key to the configured file; gateways that run take it over within seconds."""
    try:
        settings = _settings(arguments.config)
    except ConfigError as exc:
        return _refused(arguments.config, exc)
    path = arguments.config.parent / settings.key_file
    try:
        number = keyring.rotate(path)
    except OSError as exc:
        return _unusable(exc)
    except ConfigError as exc:
        print(f"sluice: {exc}", file=sys.stderr)
        return 1
    print(f"{path}: key {number} is in use now. Keep the others for as long as their records are.")
    return 0


def _settings(config: Path) -> PrivacyConfig:
    settings = configuration.load(config, os.environ).prediction_log.privacy
    if not settings.key_file:
        sentence = "it names no file, so there are no keys"
        raise ConfigError("$.prediction_log.privacy.key_file", sentence)
    return settings


def _refused(config: Path, exc: ConfigError) -> int:
    print(f"sluice: {config}: {exc}", file=sys.stderr)
    return 2


def _unusable(exc: OSError) -> int:
    print(f"sluice: {exc.filename}: {exc.strerror}", file=sys.stderr)
    return 1


def _tell(path: Path, is_new: bool) -> None:
    print(f"{path}: made" if is_new else f"{path}: is there already, and stays as it is")
