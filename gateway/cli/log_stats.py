"""`sluice log stats`: what stands in Redis of each name, and how complete it is.

Exit codes: 0 said, 1 Redis cannot be read, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import redis

from gateway.cli.log_client import absent, add_source, add_window, with_client
from gateway.cli.route_text import NOTHING, printable, table
from gateway.prediction_log.reader import overview
from gateway.prediction_log.reader.entries import Window
from gateway.prediction_log.reader.overview import NameState, StreamState
from gateway.prediction_log.reader.show import time_text
from gateway.prediction_log.streams import EntryId

if TYPE_CHECKING:
    # Private in argparse, and the only name of what `add_subparsers` returns.
    Readers = argparse._SubParsersAction[argparse.ArgumentParser]

_STREAMS: Final = ("STREAM", "KIND", "ENTRIES", "FIRST", "LAST", "MEMORY")
_GROUPS: Final = ("GROUP", "STREAM", "CONSUMERS", "PENDING", "LAG")
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024


def add_parser(readers: Readers) -> None:
    """Add `stats` to the commands of `sluice log`."""
    command = readers.add_parser(
        "stats", help="streams, memory, consumer groups, and what is missing, by name"
    )
    command.set_defaults(run=run)
    command.add_argument("name", nargs="*", help="routes or models; default: all")
    add_source(command)
    add_window(command)
    command.add_argument(
        "--fast", action="store_true", help="do not read the records, so do not look for gaps"
    )
    command.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Print the state of each name."""

    def show(client: redis.Redis) -> int:
        for sentence in absent(client, arguments.name):
            print(f"sluice: {sentence}", file=sys.stderr)
        states = overview.look(client, arguments.name or None)
        if not arguments.fast:
            window = Window.of(arguments.since, arguments.until)
            states = [overview.examine(client, state, window) for state in states]
        if arguments.json:
            print(msgspec.json.encode([document(state) for state in states]).decode())
        else:
            print("\n\n".join("\n".join(lines(state)) for state in states) or "no records")
        return 0

    return with_client(arguments, show)


def lines(state: NameState) -> list[str]:
    """Return what is known of a name, for a person."""
    shown = [printable(state.name)]
    if not state.streams:
        return [*shown, "  no records"]
    rows = [_cells(stream) for stream in state.streams]
    shown += _indented(table(_STREAMS, rows, right=("ENTRIES", "MEMORY")))
    groups = [
        (
            group.name,
            stream.key,
            str(group.consumers),
            f"{group.pending:,}",
            NOTHING if group.lag is None else f"{group.lag:,}",
        )
        for stream in state.streams
        for group in stream.groups
    ]
    if groups:
        shown += _indented(table(_GROUPS, groups, right=("CONSUMERS", "PENDING", "LAG")))
    for completeness in state.completeness:
        shown += _indented(printable(line) for line in completeness.text().splitlines())
    return shown


def document(state: NameState) -> dict[str, object]:
    """Return what is known of a name, as JSON values."""
    return {
        "name": state.name,
        "streams": [
            {
                "key": stream.key,
                "kind": str(stream.kind),
                "entries": stream.entries,
                "first": str(stream.first) if stream.first else None,
                "last": str(stream.last) if stream.last else None,
                "memory_bytes": stream.used_bytes,
                "groups": [
                    {
                        "name": group.name,
                        "consumers": group.consumers,
                        "pending": group.pending,
                        "lag": group.lag,
                        "last_delivered": str(group.last_delivered),
                    }
                    for group in stream.groups
                ],
            }
            for stream in state.streams
        ],
        "completeness": [completeness.document() for completeness in state.completeness],
    }


def _cells(stream: StreamState) -> Sequence[str]:
    return (
        stream.key,
        str(stream.kind),
        f"{stream.entries:,}",
        _when(stream.first),
        _when(stream.last),
        _size(stream.used_bytes),
    )


def _when(entry_id: EntryId | None) -> str:
    return "" if entry_id is None else time_text(entry_id.ms * 1_000)


def _size(count: float) -> str:
    for unit in _UNITS:
        if count < _STEP or unit == _UNITS[-1]:
            break
        count /= _STEP
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _indented(shown: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in shown]
