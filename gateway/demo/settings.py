"""The demo's sluice.toml, and who among made-up users its route gives to which variant."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway import config as configuration
from gateway.config import Config
from gateway.config_fields import ConfigError
from gateway.demo.screen import DemoFailed
from router.policy import CompiledRoute

CONFIG_NAME: Final = "sluice.toml"
_USERS_TRIED: Final = 1_000
_TEMPLATE: Final = """\
# Written by `sluice demo` at each start.
[server]
http = "127.0.0.1:8000"
grpc = "127.0.0.1:8001"
metrics = "127.0.0.1:8002"
admin = "127.0.0.1:8003"

[models]
repository = "models"

[redis]
url = @URL@

[routes.digits]
key = ["header:x-user-id"]

[routes.digits.variants]
stable = { model = "digits", version = "1", weight = 90 }
canary = { model = "digits", version = "2", weight = 10 }
"""


def write(directory: Path, redis_url: str) -> Path:
    """Write the configuration; only its owner may read it, as the URL may hold a password."""
    path = directory / CONFIG_NAME
    path.unlink(missing_ok=True)
    # A JSON string is a TOML basic string, if its characters are left as they are.
    text = _TEMPLATE.replace("@URL@", json.dumps(redis_url, ensure_ascii=False))
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    return path


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Return the configuration as the gateway will see it, overrides included.

    Raises:
        DemoFailed: an override is wrong, or takes away what the demo shows.
    """
    try:
        config = configuration.load(path, environ)
    except ConfigError as exc:
        raise DemoFailed(f"{path}, with the overrides of the environment: {exc}") from exc
    if config.redis is None or not config.prediction_log.enabled:
        raise DemoFailed("the environment turns the prediction log off, which the demo shows")
    return config


def users(compiled: CompiledRoute) -> dict[str, str]:
    """Return the first of user-1, user-2, ... whom a route gives to each variant with traffic."""
    wanted = {variant.name for variant in compiled.route.variants if variant.slots}
    found: dict[str, str] = {}
    for number in range(1, _USERS_TRIED):
        user = f"user-{number}"
        decision = compiled.decide(user.encode(), _never_drawn)
        found.setdefault(decision.variant.name, user)
        if found.keys() >= wanted:
            break
    return found


def _never_drawn() -> float:
    """Stand in for randomness: a request with a key draws nothing."""
    raise AssertionError("a request with a key drew a number")
