"""`sluice log`: reads the prediction log."""

from __future__ import annotations

import argparse
import os
import sys

import redis

from gateway import config as configuration
from gateway.config import ConfigError
from gateway.prediction_log import reader


def tail(arguments: argparse.Namespace) -> int:
    """Print prediction records as they come."""
    try:
        url = arguments.redis or _configured_url(arguments)
    except ConfigError as exc:
        print(f"sluice: {arguments.config}: {exc} (or give --redis URL)", file=sys.stderr)
        return 2
    try:
        client = reader.connect(url)
    except ValueError as exc:
        print(f"sluice: --redis: {exc}", file=sys.stderr)
        return 2
    render = reader.render_json if arguments.json else reader.render_line
    try:
        for prediction in reader.tail(
            client,
            names=arguments.name or None,
            from_start=arguments.from_start,
            follow=not arguments.no_follow,
            count=arguments.count,
            shadows=arguments.shadows,
        ):
            print(render(prediction), flush=True)
    except redis.RedisError as exc:
        # The error names host and port; the URL may hold a password.
        print(f"sluice: cannot read the prediction log: {exc}", file=sys.stderr)
        return 1
    finally:
        client.close()
    return 0


def _configured_url(arguments: argparse.Namespace) -> str:
    config = configuration.load(arguments.config, os.environ)
    if config.redis is None:
        raise ConfigError("$.redis", "there is no [redis] section, so there is no prediction log")
    return config.redis.url
