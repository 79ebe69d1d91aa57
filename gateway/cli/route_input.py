"""Reads what people type and the files that they apply: texts in, values or a sentence out."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tomllib
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

from gateway.cli.route_documents import Json
from gateway.cli.route_session import Exit, Stop

STANDARD_INPUT: Final = "-"
_ETAG: Final = re.compile(r'"?g(\d{1,15})-(\d{1,15})"?')


def weight(text: str) -> tuple[str, Decimal]:
    """Read VARIANT=PERCENT; what may not be weighed so is for the gateway to say."""
    name, _, share = text.partition("=")
    try:
        found = Decimal(share)
    except InvalidOperation:
        found = Decimal("NaN")
    if not name or not found.is_finite():
        raise argparse.ArgumentTypeError(f"{text!r} is not VARIANT=PERCENT, such as canary=20")
    return name, found


def pair(text: str) -> tuple[str, str]:
    """Read NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def etag(text: str) -> tuple[int, int]:
    """Read an ETag, with or without its quotes, as generation and revision."""
    found = _ETAG.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no ETag of a route, such as g1-42")
    return int(found[1]), int(found[2])


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def limit_s(text: str) -> float:
    """Read a number of seconds; 0 is not one."""
    found = span_s(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time at all")
    return found


def span_s(text: str) -> float:
    """Read a number of seconds from 0 on."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return found


def reason(given: str | None) -> str:
    """Return why a change is made; asks where there is somebody to ask.

    Raises:
        Stop: nobody says why.
    """
    text = given
    if text is None:
        if not sys.stdin.isatty():
            raise Stop(Exit.USAGE, "say why: --reason TEXT")
        # Not input(), which would prompt on standard output.
        print("reason: ", end="", file=sys.stderr, flush=True)
        text = sys.stdin.readline()
    text = text.strip()
    if not text:
        raise Stop(Exit.USAGE, "say why: --reason TEXT")
    if not text.isprintable():
        raise Stop(Exit.USAGE, "--reason: a reason is one line of printable text")
    return text


def read_document(file: str) -> tuple[str, dict[str, Json]]:
    """Return the name and the document in a file; - is standard input, as JSON.

    Raises:
        Stop: it cannot be read, or is no route document.
    """
    try:
        raw = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
    except OSError as exc:
        raise Stop(Exit.USAGE, f"cannot read {file}: {exc.strerror}") from None
    label = "standard input" if file == STANDARD_INPUT else file
    try:
        document = _decode(file, raw.decode())
    except (ValueError, RecursionError) as exc:
        raise Stop(Exit.INVALID, f"{label}: {exc}") from None
    name = document.get("name") if isinstance(document, dict) else None
    if not isinstance(name, str) or not name:
        raise Stop(Exit.INVALID, f"{label} is no route document: it has no 'name'")
    return name, document


def _decode(file: str, text: str) -> Json:
    is_json = file == STANDARD_INPUT or file.endswith(".json") or text.lstrip().startswith("{")
    if not is_json:
        return tomllib.loads(text, parse_float=Decimal)
    return json.loads(text, parse_float=Decimal, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Refuse a key that is there twice: of two weights JSON readers silently take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} is there twice")
    return found


def weights(pairs: list[tuple[str, Decimal]]) -> dict[str, Decimal]:
    """Return weights by variant.

    Raises:
        Stop: a variant is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Stop(Exit.USAGE, "a variant is named twice")
    return found
