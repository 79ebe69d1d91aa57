"""`sluice log erase`: destroys what the prediction log holds of one data subject.

Exit codes: 0 nothing of the subject is left within reach, 1 something is (it is said what; run it
again), 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import redis

from gateway import config as configuration
from gateway.cli.log_client import absent
from gateway.config import Config
from gateway.config_fields import ConfigError
from gateway.prediction_log.erasure import receipt
from gateway.prediction_log.erasure.eraser import Eraser, Outcome
from gateway.prediction_log.erasure.lock import AnotherRuns
from gateway.prediction_log.erasure.receipt import Body, Receipt
from gateway.prediction_log.erasure.request import Request
from gateway.prediction_log.erasure.spools import Spools
from gateway.prediction_log.privacy.keyring import Keyring
from gateway.redis_client import blocking_client_of

_DEFAULT_CONFIG = Path("sluice.toml")
_DEFAULT_TIMEOUT_S = 120.0
_COMMAND_TIMEOUT_S = 60.0
"""Longest wait for one answer of Redis."""

_Commands = Any  # argparse's own type of a set of commands is private


def add_parser(readers: _Commands) -> None:
    """Add `erase` to the commands of `sluice log`."""
    erase = readers.add_parser(
        "erase",
        help="destroy what the log holds of a data subject",
        description="Destroys every record of a data subject, its sealing keys and its files: in "
        "Redis and Redis' own files, and in the spools of all gateways.",
    )
    erase.set_defaults(run=run)
    erase.add_argument(
        "--subject", required=True, metavar="VALUE", help="as requests say it; -: read from stdin"
    )
    erase.add_argument(
        "--name", action="append", default=[], help="only this route or model; may be repeated"
    )
    erase.add_argument("--config", type=Path, default=_DEFAULT_CONFIG, metavar="FILE")
    erase.add_argument("--redis", metavar="URL", help="default: [redis] url of the configuration")
    erase.add_argument(
        "--spool",
        type=Path,
        metavar="DIR",
        help="spools of gateways that do not run; default: the configured folder",
    )
    erase.add_argument(
        "--gone",
        action="append",
        default=[],
        metavar="REPLICA",
        help="a gateway whose disk does not exist any more; may be repeated",
    )
    erase.add_argument("--receipt", type=Path, metavar="FILE", help="write the signed receipt here")
    erase.add_argument("--dry-run", action="store_true", help="only count what is in the streams")
    erase.add_argument(
        "--timeout",
        type=float,
        default=_DEFAULT_TIMEOUT_S,
        metavar="S",
        help="longest wait for gateways, and for Redis' files (default: %(default)g)",
    )
    erase.add_argument("--json", action="store_true", help="print the receipt as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Erase a subject; print what was done."""
    try:
        config = configuration.load(arguments.config, os.environ)
        keyring = _keyring(config, arguments.config.parent)
        url = _url(arguments, config)
    except ConfigError as exc:
        return _refused(f"{arguments.config}: {exc}")
    subject = sys.stdin.readline().rstrip("\n") if arguments.subject == "-" else arguments.subject
    if not subject:
        return _refused("--subject: it is empty")
    target: Path | None = arguments.receipt
    if target is not None and not target.parent.is_dir():
        return _refused(f"--receipt: {target.parent} is not a folder")
    if target is not None and not _is_writable(target):
        return _refused(f"--receipt: {target} cannot be written")
    folder = arguments.spool or arguments.config.parent / config.prediction_log.spool.directory
    if arguments.spool is not None and not folder.is_dir():
        return _refused(f"--spool: {folder} is not a folder")
    request = Request(
        tags=keyring.tags(subject),
        names=arguments.name,
        gone=arguments.gone,
        timeout_s=arguments.timeout,
    )
    try:
        keys_url = config.prediction_log.privacy.keys_url or url
        clients = (
            blocking_client_of(url, timeout_s=_COMMAND_TIMEOUT_S),
            blocking_client_of(keys_url, timeout_s=_COMMAND_TIMEOUT_S),
        )
    except ValueError as exc:
        return _refused(f"--redis: {exc}")
    try:
        with closing(clients[0]) as client, closing(clients[1]) as others:
            for sentence in absent(client, arguments.name):
                _say(sentence)
            is_same = config.prediction_log.privacy.keys_url in ("", url)
            spools = Spools(config.prediction_log, folder)
            eraser = Eraser(
                client, request, keys=client if is_same else others, spools=spools, say=_say
            )
            if arguments.dry_run:
                return _told_only(eraser.dry_run())
            return _done(eraser.run(), arguments, keyring)
    except (redis.RedisError, AnotherRuns, OSError) as exc:
        # The error names host and port; the URL may hold a password.
        print(f"sluice: not complete, run it again: {exc}", file=sys.stderr)
        return 1


def _keyring(config: Config, base: Path) -> Keyring:
    key_file = config.prediction_log.privacy.key_file
    if not key_file:
        path = "$.prediction_log.privacy.key_file"
        raise ConfigError(path, "without it records have no subject to find them by")
    return Keyring.load(base / key_file)


def _url(arguments: argparse.Namespace, config: Config) -> str:
    if arguments.redis:
        return str(arguments.redis)
    if config.redis is None:
        raise ConfigError("$.redis", "there is no [redis] section (or give --redis URL)")
    return config.redis.url


def _done(outcome: Outcome, arguments: argparse.Namespace, keyring: Keyring) -> int:
    written = receipt.signed(_body(outcome, arguments.name), keyring)
    document = receipt.to_json(written)
    is_kept = arguments.receipt is None or _kept(arguments.receipt, document)
    if arguments.json or not is_kept:
        sys.stdout.write(document.decode())
    else:
        _print(written)
    for sentence in outcome.left:
        print(f"sluice: left: {sentence}", file=sys.stderr)
    if not outcome.is_complete:
        print("sluice: not complete, run it again", file=sys.stderr)
    return 0 if outcome.is_complete and is_kept else 1


def _is_writable(target: Path) -> bool:
    return os.access(target if target.exists() else target.parent, os.W_OK) and not target.is_dir()


def _kept(target: Path, document: bytes) -> bool:
    """Write the receipt. What was erased is erased also if this fails, so nothing is raised."""
    try:
        target.write_bytes(document)
    except OSError as exc:
        _say(f"erased, but --receipt {target} cannot be written: {exc.strerror}; keep this:")
        return False
    return True


def _body(outcome: Outcome, names: list[str]) -> Body:
    return Body(
        erasure=outcome.erasure,
        begun=receipt.time_text(outcome.begun_ms),
        ended=receipt.time_text(outcome.ended_ms),
        is_complete=outcome.is_complete,
        left=outcome.left,
        names=sorted(names),
        counts=receipt.Counts(
            requests=outcome.requests,
            records={str(kind): count for kind, count in sorted(outcome.records.items())},
            spooled=outcome.spooled,
            sealing_keys=outcome.sealing_keys,
            files=outcome.files,
            streams_rebuilt=outcome.streams_rebuilt,
        ),
        replicas=receipt.Replicas(
            acknowledged=len(outcome.acknowledged),
            done_here=len(outcome.done_here),
            declared_gone=len(outcome.gone),
        ),
        servers=[
            receipt.Server(
                append_only_s=server.append_only_s,
                snapshot_s=server.snapshot_s,
                replicas=server.replicas,
            )
            for server in outcome.servers
        ],
    )


def _print(written: Receipt) -> None:
    counts, replicas = written.body.counts, written.body.replicas
    records = ", ".join(f"{count} {kind}" for kind, count in counts.records.items()) or "none"
    print(f"erasure {written.body.erasure}")
    print(f"requests found: {counts.requests}")
    print(f"records destroyed in streams: {records}; {counts.streams_rebuilt} streams rebuilt")
    print(f"records destroyed in spools that nobody runs: {counts.spooled}")
    print(f"sealing keys destroyed: {counts.sealing_keys}; files deleted: {counts.files}")
    print(
        f"gateways: {replicas.acknowledged} did their part, {replicas.done_here} were done here, "
        f"{replicas.declared_gone} are said to be gone"
    )
    followers = sum(server.replicas for server in written.body.servers)
    if followers:
        print(f"note: {followers} Redis replicas keep files of their own; rewrite those too")
    print(f"receipt: sha256 {written.sha256}, signed with key {written.key}")


def _told_only(outcome: Outcome) -> int:
    records = ", ".join(f"{n} {kind}" for kind, n in sorted(outcome.records.items())) or "none"
    print(f"in streams, found by the subject's tags and the request ids: {records}")
    return 0


def _say(sentence: str) -> None:
    print(f"sluice: {sentence}", file=sys.stderr, flush=True)


def _refused(sentence: str) -> int:
    print(f"sluice: {sentence}", file=sys.stderr)
    return 2
