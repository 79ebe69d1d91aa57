"""What the commands that read the prediction log have in common: Redis, and moments."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import redis

from gateway import config as configuration
from gateway.config import Config
from gateway.config_fields import ConfigError
from gateway.prediction_log import reader

DEFAULT_CONFIG: Final = Path("sluice.toml")
MOMENT_HELP: Final = (
    "2026-03-01T12:00 (UTC unless it says otherwise), seconds since the epoch, 15m, 2h or 7d ago, "
    "or the id of an entry"
)
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_ENTRY_ID: Final = re.compile(r"\(?\d+-\d+")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def add_source(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say which Redis."""
    command.add_argument("--redis", metavar="URL", help="default: [redis] url of the configuration")
    command.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")


def add_window(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say from when on, and until when."""
    command.add_argument("--since", type=moment, metavar="WHEN", help=MOMENT_HELP)
    command.add_argument("--until", type=moment, metavar="WHEN", help="the same; default: now")


def moment(text: str) -> reader.When:
    """Read a moment of the command line.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    ago = _AGO.fullmatch(text)
    if ago:
        return time.time() - float(ago[1]) * _UNIT_S[ago[2]]
    if _ENTRY_ID.fullmatch(text):
        return text
    try:
        return float(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no moment: {MOMENT_HELP}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def with_client(arguments: argparse.Namespace, use: Callable[[redis.Redis], int]) -> int:
    """Connect, run a command with the client, and say what went wrong; return the exit code."""
    try:
        url = arguments.redis or configured(arguments)[1]
    except ConfigError as exc:
        print(f"sluice: {arguments.config}: {exc} (or give --redis URL)", file=sys.stderr)
        return 2
    try:
        client = reader.connect(url)
    except ValueError as exc:
        print(f"sluice: --redis: {exc}", file=sys.stderr)
        return 2
    try:
        return use(client)
    except redis.RedisError as exc:
        # The error names host and port; the URL may hold a password.
        print(f"sluice: cannot read the prediction log: {exc}", file=sys.stderr)
        return 1
    finally:
        client.close()


def absent(client: redis.Redis, names: Iterable[str]) -> list[str]:
    """Return a sentence for each of these names that has nothing in the log."""
    known = reader.known_names(client)
    there = ", ".join(known) or "no name at all"
    return [
        f"the log has nothing of {name!r}; it has {there}" for name in names if name not in known
    ]


def configured(arguments: argparse.Namespace) -> tuple[Config, str]:
    """Return the configuration and the URL of its Redis.

    Raises:
        ConfigError: it is wrong, or has no Redis.
    """
    config = configuration.load(arguments.config, os.environ)
    if config.redis is None:
        raise ConfigError("$.redis", "there is no [redis] section, so there is no prediction log")
    return config, config.redis.url
