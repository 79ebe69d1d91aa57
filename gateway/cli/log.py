"""`sluice log`: reads the prediction log, and keeps what it knows of people in order.

Commands: tail (here), stats (log_stats.py), export (log_export.py), erase (erase.py), new-keys and
rotate-key (log_keys.py).
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import redis

from gateway.cli import erase, log_export, log_keys, log_stats
from gateway.cli.log_client import absent, add_source, with_client
from gateway.prediction_log import reader

if TYPE_CHECKING:
    # Private in argparse, and the only name of what `add_subparsers` returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: Commands) -> None:
    """Add `log` and its commands to the command line."""
    log = commands.add_parser("log", help="read the prediction log; erase people from it")
    readers = log.add_subparsers(dest="log_command", required=True, metavar="COMMAND")
    _add_tail(readers)
    log_stats.add_parser(readers)
    log_export.add_parser(readers)
    erase.add_parser(readers)
    log_keys.add_parsers(readers)


def tail(arguments: argparse.Namespace) -> int:
    """Print prediction records as they come."""
    render = reader.render_json if arguments.json else reader.render_line

    def show(client: redis.Redis) -> int:
        for sentence in absent(client, arguments.name):
            print(f"sluice: {sentence}", file=sys.stderr)
        for prediction in reader.tail(
            client,
            names=arguments.name or None,
            from_start=arguments.from_start,
            follow=not arguments.no_follow,
            count=arguments.count,
            shadows=arguments.shadows,
        ):
            print(render(prediction), flush=True)
        return 0

    return with_client(arguments, show)


def _add_tail(readers: Commands) -> None:
    command = readers.add_parser("tail", help="print prediction records as they come")
    command.set_defaults(run=tail)
    command.add_argument("name", nargs="*", help="routes or models; default: all")
    add_source(command)
    command.add_argument("--from-start", action="store_true", help="begin with the oldest record")
    command.add_argument("--no-follow", action="store_true", help="stop at the end of the stream")
    command.add_argument("--count", type=int, metavar="N", help="stop after N records")
    command.add_argument("--shadows", action="store_true", help="what shadows answered, instead")
    command.add_argument("--json", action="store_true", help="one JSON object per line")
