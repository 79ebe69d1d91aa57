"""The `sluice` command: parses arguments and calls one function per command.

Exit codes: 0 done, 1 it could not be done, 2 the command line or the configuration is wrong.
`sluice route` has more of them: see route_session.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gateway import __version__
from gateway.cli import drift as drift_commands
from gateway.cli import log as log_commands
from gateway.cli import route as route_commands
from gateway.cli import server as server_commands

DEFAULT_CONFIG = Path("sluice.toml")
LATE: Final = {
    "build": "build a plan of an ONNX file, ahead of serving",
    "quantize": "make a quantised version of an ONNX model",
    "doctor": "say what this machine can run, what is missing, and what to install",
}
"""Commands whose modules are imported only where they are named: no other waits for them."""


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    parsed = parser(arguments).parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: that is its right. Keep Python from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def parser(arguments: Sequence[str] = tuple(LATE)) -> argparse.ArgumentParser:
    """Return the argument parser of every command; of the late ones that these name, in full."""
    top = argparse.ArgumentParser(prog="sluice", description="A model-serving gateway.")
    top.add_argument("--version", action="version", version=f"sluice {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the models and routes of a configuration")
    serve.set_defaults(run=server_commands.serve)
    check = commands.add_parser("check", help="check a configuration and exit (0 good, 2 not)")
    check.set_defaults(run=server_commands.check)
    for command in (serve, check):
        command.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")

    log_commands.add_parser(commands)
    route_commands.add_parser(commands)
    drift_commands.add_parser(commands)
    for name, help_text in LATE.items():
        if name in arguments:
            importlib.import_module(f"gateway.cli.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=help_text)

    demo = commands.add_parser("demo", help="train, serve and query a digit classifier")
    demo.set_defaults(run=server_commands.demo)
    demo.add_argument("--redis", metavar="URL", help="use this Redis instead of starting one")
    demo.add_argument("--dir", type=Path, default=Path(".demo"), help="folder for models and logs")
    demo.add_argument("--once", action="store_true", help="stop everything after the first answers")
    return top
