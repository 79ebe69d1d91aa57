"""`sluice serve`, `sluice check` and `sluice demo`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from gateway import config as configuration
from gateway import logs, tls
from gateway.config import Config
from gateway.config_fields import ConfigError
from gateway.event_loop import run_loop
from gateway.prediction_log.privacy.tap import Privacy
from gateway.prediction_log.spool.lock import SpoolInUse
from gateway.route_control.file_store import StoreLocked
from gateway.sockets import AddressInUse


def read(path: Path) -> tuple[Config, Path]:
    """Return the configuration and the model repository's folder, both checked with their files.

    Raises:
        ConfigError: with the path of the field.
    """
    config = configuration.load(path, os.environ)
    if config.server.tls is not None:
        tls.server_context(config.server.tls, path.parent, ())
    Privacy.build(config.prediction_log, path.parent, on_new_key=lambda *_: None)
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
    try:
        config, root = read(arguments.config)
    except ConfigError as exc:
        print(f"sluice: {arguments.config}: {exc}", file=sys.stderr)
        return 2
    logs.configure()
    # Imported here: `sluice check` and `sluice log` need no engine and no server.
    if config.server.workers > 1:
        from gateway.workers import supervisor

        return supervisor.run(config, root, arguments.config.parent)
    from gateway import app

    try:
        run_loop(app.serve(config, root, arguments.config.parent))
    except (AddressInUse, StoreLocked, SpoolInUse, ConfigError) as exc:
        logging.getLogger(__name__).error("cannot start", extra={"reason": str(exc)})
        return 1
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    from gateway.demo import run

    return run.run(directory=arguments.dir, redis_url=arguments.redis, once=arguments.once)
