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


def idle_rules(config: Config, root: Path) -> list[str]:
    """Return what of [prediction_log.names] may be a slip of the pen: a rule that hides nothing.

    It is no error: a route may be made later, and a tensor's name may have a dot.
    """
    found = []
    for name, settings in config.prediction_log.names.items():
        at = f"$.prediction_log.names.{name}"
        if name not in config.routes and not (root / name).is_dir():
            found.append(f"{at}: there is no such route in the file, and no such model in {root}")
        for feature in settings.features:
            tensor, _, column = feature.rpartition(".")
            if tensor and tensor not in settings.columns:
                found.append(
                    f"{at}.features.{feature}: a tensor of this name; for the column {column!r} of "
                    f"{tensor!r} name its columns in {at}.columns"
                )
    return found


def check(arguments: argparse.Namespace) -> int:
    """Check a configuration and the models' ones; print what is wrong with them."""
    from gateway.cli.model_checks import look_through

    try:
        config, root = read(arguments.config)
    except ConfigError as exc:
        print(f"sluice: {arguments.config}: {exc}", file=sys.stderr)
        return 2
    models = look_through(config, arguments.config, root)
    if not models.faults:
        routes = ", ".join(config.routes) or "none"
        print(f"{arguments.config} is good: models in {root}, routes: {routes}")
    rules = [f"{arguments.config}: note: {note}" for note in idle_rules(config, root)]
    for line in (*models.faults, *rules, *models.notes):
        print(f"sluice: {line}", file=sys.stderr)
    return 2 if models.faults else 0


def serve(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    try:
        config, root = read(arguments.config)
    except ConfigError as exc:
        print(f"sluice: {arguments.config}: {exc}", file=sys.stderr)
        return 2
    logs.configure()
    for note in idle_rules(config, root):
        logging.getLogger(__name__).warning("a rule may hide nothing", extra={"rule": note})
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
