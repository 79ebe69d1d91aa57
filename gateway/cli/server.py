"""`sluice serve`, `sluice check` and `sluice demo`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from pathlib import Path

from gateway import config as configuration
from gateway import logs
from gateway.config import Config, ConfigError
from gateway.route_control.file_store import StoreLocked
from gateway.sockets import AddressInUse


def read(path: Path) -> tuple[Config, Path]:
    """Return the checked configuration and the model repository's folder; raises ConfigError."""
    config = configuration.load(path, os.environ)
    return config, configuration.check_targets(config, path.parent)


def check(arguments: argparse.Namespace) -> int:
    """Check a configuration; print what is wrong with it."""
    try:
        config, root = read(arguments.config)
    except ConfigError as exc:
        print(f"sluice: {arguments.config}: {exc}", file=sys.stderr)
        return 2
    routes = ", ".join(config.routes) or "none"
    print(f"{arguments.config} is good: models in {root}, routes: {routes}")
    return 0


def serve(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    # Imported here: `sluice check` and `sluice log` need no engine and no server.
    from gateway import app

    try:
        config, root = read(arguments.config)
    except ConfigError as exc:
        print(f"sluice: {arguments.config}: {exc}", file=sys.stderr)
        return 2
    logs.configure()
    try:
        run_loop(app.serve(config, root, arguments.config.parent))
    except (AddressInUse, StoreLocked) as exc:
        logging.getLogger(__name__).error("cannot start", extra={"reason": str(exc)})
        return 1
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    from gateway.demo import run

    return run.run(directory=arguments.dir, redis_url=arguments.redis, once=arguments.once)


def run_loop(main: Coroutine[object, object, None]) -> None:
    """Run a coroutine on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
