"""`sluice log export`: a window of the prediction log to a Parquet file.

Exit codes: 0 written, 1 it could not be written, 2 the command line or the configuration is wrong.
A window with gaps is written all the same; the gaps are told, and stand in the file's metadata.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import redis

from gateway.cli.log_client import absent, add_source, add_window, configured, with_client
from gateway.cli.route_text import printable
from gateway.config_fields import ConfigError
from gateway.prediction_log.privacy.opener import Opener
from gateway.prediction_log.privacy.seal import Unsealable, read_master_key
from gateway.prediction_log.reader import MissingExtra, StreamKind, What, Window, connect
from gateway.prediction_log.reader.export import export_parquet

if TYPE_CHECKING:
    # Private in argparse, and the only name of what `add_subparsers` returns.
    Readers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(readers: Readers) -> None:
    """Add `export` to the commands of `sluice log`."""
    command = readers.add_parser("export", help="write records to a Parquet file, a row per row")
    command.set_defaults(run=run)
    command.add_argument("name", help="a route or a model")
    command.add_argument("--parquet", type=Path, required=True, metavar="FILE")
    add_source(command)
    add_window(command)
    command.add_argument("--labels", action="store_true", help="join ground truth, where it is")
    command.add_argument(
        "--kind", choices=("live", "shadow", "big"), default="live", help="default: live"
    )
    command.add_argument(
        "--unseal", action="store_true", help="open sealed tensors, with the configured master key"
    )
    command.add_argument("--json", action="store_true", help="tell the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the file; tell how complete it is."""
    try:
        opener = _opener(arguments) if arguments.unseal else None
    except ConfigError as exc:
        print(f"sluice: {arguments.config}: {exc}", file=sys.stderr)
        return 2
    folder = arguments.parquet.parent
    if not folder.is_dir():
        print(f"sluice: --parquet: {folder} is not a folder", file=sys.stderr)
        return 2
    what = What(
        name=arguments.name,
        kind=StreamKind(arguments.kind),
        window=Window.of(arguments.since, arguments.until),
        labels=arguments.labels,
        opener=opener,
    )
    return with_client(arguments, lambda client: _export(client, arguments, what))


def _export(client: redis.Redis, arguments: argparse.Namespace, what: What) -> int:
    path: Path = arguments.parquet
    for sentence in absent(client, [what.name]):
        print(f"sluice: {sentence}", file=sys.stderr)
        return 1
    try:
        exported = export_parquet(client, path, what)
    except (MissingExtra, Unsealable, OSError) as exc:
        print(f"sluice: cannot write {path}: {exc}", file=sys.stderr)
        return 1
    if arguments.json:
        document = {"file": str(path), "rows": exported.rows}
        document |= {"completeness": exported.completeness.document()}
        print(msgspec.json.encode(document).decode())
    else:
        told = exported.completeness.text().splitlines()
        print(f"{path}: {exported.rows:,} rows", *map(printable, told), sep="\n")
    return 0


def _opener(arguments: argparse.Namespace) -> Opener:
    config, url = configured(arguments)
    privacy = config.prediction_log.privacy
    if not privacy.master_key_file:
        raise ConfigError(
            "$.prediction_log.privacy.master_key_file", "without it nothing is sealed"
        )
    key = read_master_key(arguments.config.parent / privacy.master_key_file)
    return Opener(connect(privacy.keys_url or arguments.redis or url), key)
