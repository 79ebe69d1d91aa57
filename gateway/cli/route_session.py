"""What every `sluice route` command shares: whom it talks to, how it shows, and its exit codes.

Standard output has what was asked for, and with --json nothing but what the API answered, errors
included. Sentences about trouble go to standard error.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, TextIO

from gateway import config as configuration
from gateway.cli.admin_client import (
    Address,
    AdminClient,
    AdminError,
    Conflicting,
    NotAllowed,
    NotThere,
    Refused,
    Reply,
    WrongAddress,
)
from gateway.cli.route_text import Style, printable
from gateway.config_fields import ConfigError

DEFAULT_CONFIG: Final = Path("sluice.toml")
DEFAULT_ADMIN: Final = "http://127.0.0.1:8003"
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Exit(IntEnum):
    """Exit codes of `sluice route`."""

    DONE = 0
    FAILED = 1
    """The gateway could not be reached, or failed."""
    USAGE = 2
    """The command line or the configuration is wrong."""
    INVALID = 3
    """Refused as invalid."""
    NOT_THERE = 4
    """No such route or revision."""
    CONFLICT = 5
    """The route is not at the revision, or not in the state, that the change needs."""
    NOT_CONVERGED = 6
    """Not all replicas have it, or had it in time."""
    NOT_ALLOWED = 7
    """The gateway does not know the caller, or the caller may not."""


EXIT_CODES: Final[Mapping[type[AdminError], Exit]] = {
    Refused: Exit.INVALID,
    NotThere: Exit.NOT_THERE,
    Conflicting: Exit.CONFLICT,
    NotAllowed: Exit.NOT_ALLOWED,
}
"""Looked up along the error's ancestry; everything else is FAILED."""


class Stop(Exception):
    """The command ends here: a sentence for people, and what the gateway said, if it did."""

    def __init__(self, code: Exit, sentence: str, body: bytes = b"") -> None:
        super().__init__(sentence)
        self.code = code
        self.body = body


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of a command."""

    client: AdminClient
    is_json: bool
    style: Style

    def show(self, reply: Reply[object], text: str) -> None:
        """Print an answer: as it came, or as text for people."""
        print(reply.text if self.is_json else text, flush=True)

    def remark(self, text: str) -> None:
        """Print what is worth knowing beside the answer."""
        print(text, file=sys.stderr if self.is_json else sys.stdout, flush=True)

    def warn(self, text: str) -> None:
        """Print what needs attention."""
        print(f"sluice: {text}", file=sys.stderr, flush=True)


Command = Callable[[Session, argparse.Namespace], int]


def run(command: Command, arguments: argparse.Namespace) -> int:
    """Run a command against the gateway that the arguments name; return its exit code."""
    try:
        return command(_open(arguments), arguments)
    except Stop as exc:
        return _end(exc.code, [str(exc)], exc.body if arguments.json else b"")
    except AdminError as exc:
        lines = [printable(str(exc))]
        if isinstance(exc, Refused) and exc.faults:
            lines = ["refused:"]
            lines += [f"  {_pointer(f.pointer)}: {printable(f.detail)}" for f in exc.faults]
        return _end(exit_code(exc), lines, exc.body if arguments.json else b"")
    except UnicodeEncodeError:
        return _end(Exit.USAGE, ["what is to be sent has bytes that are no Unicode text"], b"")


def exit_code(error: AdminError) -> Exit:
    """Return the exit code of an error."""
    for kind in type(error).__mro__:
        if kind in EXIT_CODES:
            return EXIT_CODES[kind]
    return Exit.FAILED


def _pointer(pointer: str) -> str:
    return printable(pointer) or "(the whole document)"


def _end(code: Exit, lines: list[str], body: bytes) -> int:
    if body:
        print(body.decode(errors="replace"), flush=True)
    print("sluice: " + "\n".join(lines), file=sys.stderr)
    return code


def _open(arguments: argparse.Namespace) -> Session:
    try:
        address = Address.parse(_admin_url(arguments, os.environ))
    except WrongAddress as exc:
        raise Stop(Exit.USAGE, f"--admin: {exc}") from None
    token = arguments.token or os.environ.get("SLUICE_TOKEN", "")
    if not (token.isascii() and token.isprintable()):
        raise Stop(Exit.USAGE, "--token: a token is printable ASCII")
    client = AdminClient(
        address, token=token, actor=_actor(arguments, os.environ), timeout_s=arguments.timeout
    )
    is_coloured = wants_colours(sys.stdout, os.environ)
    return Session(client=client, is_json=arguments.json, style=Style(is_coloured=is_coloured))


def wants_colours(out: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a stream is a terminal whose user has not asked for plain text."""
    is_plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
    return out.isatty() and not is_plain


def _admin_url(arguments: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """Return the admin API's address: argument, environment, configuration, default."""
    if given := arguments.admin or environ.get("SLUICE_ADMIN"):
        return str(given)
    path = arguments.config or DEFAULT_CONFIG
    if arguments.config is None and not path.exists():
        return DEFAULT_ADMIN
    try:
        text = configuration.load(path, environ).server.admin
        host, port = configuration.address(text, path="$.server.admin")
    except ConfigError as exc:
        raise Stop(Exit.USAGE, f"{path}: {exc} (or give --admin URL)") from None
    # What listens everywhere is reached on this machine.
    return str(Address(host=_ANYWHERE.get(host, host), port=port))


def _actor(arguments: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """Return who acts, for the audit of a gateway that authenticates nobody; empty: not known."""
    if actor := arguments.who or environ.get("SLUICE_ACTOR"):
        if not str(actor).isprintable():
            raise Stop(Exit.USAGE, "--as: a name is printable text")
        return str(actor)
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return ""
