"""`sluice route`: what operators type. Arguments and help only; the commands are elsewhere.

`route_reads` has those that change nothing, `route_writes` the others, `route_session` the exit
codes.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.cli import route_input, route_reads, route_session, route_writes
from gateway.cli.route_session import Command

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EPILOG: Final = (
    "exit codes: 0 done; 1 the gateway could not be reached or failed; 2 the command line is "
    "wrong; 3 refused as invalid; 4 no such route or revision; 5 conflict: somebody else changed "
    "it, or its state does not allow it; 6 not all replicas have it; 7 not allowed"
)
WAIT_S: Final = 10.0
WATCH_S: Final = 1.0


def add_parser(commands: Commands) -> None:
    """Add `route` and its commands to the command line."""
    route = commands.add_parser(
        "route", help="look at and change who gets which version", epilog=EPILOG
    )
    routes = route.add_subparsers(dest="route_command", required=True, metavar="COMMAND")
    _add_looks(routes, _common())
    _add_questions(routes, _common())
    for add in (_add_set_weight, _add_promote, _add_abort, _add_undo):
        add(routes)
    for add in (_add_apply, _add_delete, _add_restore):
        add(routes)


def _common() -> argparse.ArgumentParser:
    """Return the options of every command."""
    options = argparse.ArgumentParser(add_help=False)
    gateway = options.add_argument_group("gateway")
    gateway.add_argument(
        "--admin",
        metavar="URL",
        help="admin listener; default: SLUICE_ADMIN, else [server] admin of --config",
    )
    gateway.add_argument(
        "--config", type=Path, metavar="FILE", help="default: sluice.toml, if it is there"
    )
    gateway.add_argument(
        "--token", metavar="KEY", help="default: SLUICE_TOKEN, which other users do not see"
    )
    gateway.add_argument(
        "--timeout",
        type=route_input.limit_s,
        metavar="SECONDS",
        help="longest wait for an answer; default: 5, or 60 where versions may have to be loaded",
    )
    options.add_argument("--json", action="store_true", help="print what the API answers")
    options.set_defaults(who=None)
    return options


def _change(*, is_guarded: bool) -> argparse.ArgumentParser:
    """Return the options of a command that changes a route.

    Args:
        is_guarded: the change says which revision it changes.
    """
    options = _common()
    change = options.add_argument_group("change")
    change.add_argument("--reason", metavar="TEXT", help="why; asked for on a terminal")
    change.add_argument("--dry-run", action="store_true", help="show what would change")
    change.add_argument(
        "--wait",
        nargs="?",
        type=route_input.span_s,
        const=WAIT_S,
        metavar="SECONDS",
        help=f"until all replicas have it; default: {WAIT_S:.0f}",
    )
    change.add_argument(
        "--as",
        dest="who",
        metavar="WHO",
        help="for the audit, where the gateway wants no key; default: SLUICE_ACTOR or login name",
    )
    if is_guarded:
        which = change.add_mutually_exclusive_group()
        which.add_argument(
            "--revision",
            type=route_input.positive,
            metavar="N",
            help="refuse unless this is the current revision",
        )
        which.add_argument(
            "--if-match",
            type=route_input.etag,
            metavar="ETAG",
            help="the same, with the generation: g1-42",
        )
    return options


def _add_experiment_options(parser: argparse.ArgumentParser) -> None:
    """Add what a change of a started experiment's weights needs."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--reseed", action="store_true", help="experiment: draw the units anew and start over"
    )
    how.add_argument(
        "--accept-carryover",
        action="store_true",
        help="experiment: go on, and show for ever that the weights were changed",
    )


def _add_looks(routes: Commands, common: argparse.ArgumentParser) -> None:
    listing = routes.add_parser("list", parents=[common], help="a line per route")
    _runs(listing, route_reads.list_routes)

    get = routes.add_parser("get", parents=[common], help="one route: split, numbers, replicas")
    _runs(get, route_reads.get)
    get.add_argument("name", metavar="NAME")
    get.add_argument("-w", "--watch", action="store_true", help="again whenever something changes")
    get.add_argument(
        "--interval",
        type=route_input.limit_s,
        default=WATCH_S,
        metavar="SECONDS",
        help=f"between two looks of --watch; default: {WATCH_S:.0f}",
    )

    history = routes.add_parser("history", parents=[common], help="the revisions, newest first")
    _runs(history, route_reads.history)
    history.add_argument("name", metavar="NAME")
    history.add_argument("--limit", type=route_input.positive, default=50, metavar="N")

    convergence = routes.add_parser(
        "convergence", parents=[common], help="which replicas have the newest revision (6: not all)"
    )
    _runs(convergence, route_reads.convergence)
    convergence.add_argument("name", metavar="NAME")

    audit = routes.add_parser("audit", parents=[common], help="who changed what, and why")
    _runs(audit, route_reads.audit)
    audit.add_argument("name", nargs="?", metavar="NAME", help="default: all routes")
    audit.add_argument("--since", metavar="WHEN", help="24h, 30m, or an instant of RFC 3339")
    audit.add_argument("--actor", dest="by", metavar="WHO", help="only what this one did")


def _add_questions(routes: Commands, common: argparse.ArgumentParser) -> None:
    explain = routes.add_parser(
        "explain", parents=[common], help="who would serve a request, and why; sends none"
    )
    _runs(explain, route_reads.explain)
    explain.add_argument("name", metavar="NAME")
    explain.add_argument("--key", metavar="K", help="instead of the route's own sources")
    for option in ("--header", "--parameter"):
        explain.add_argument(
            option, type=route_input.pair, action="append", default=[], metavar="NAME=VALUE"
        )
    explain.add_argument("--tenant", metavar="T")
    explain.add_argument("--role", metavar="R")

    diff = routes.add_parser(
        "diff", parents=[common], help="two revisions, or a file and what is in force"
    )
    _runs(diff, route_writes.diff)
    diff.add_argument("name", nargs="?", metavar="NAME")
    diff.add_argument("first", nargs="?", type=route_input.positive, metavar="A")
    diff.add_argument("second", nargs="?", type=route_input.positive, metavar="B")
    _add_file(diff, is_required=False)
    diff.set_defaults(revision=None, if_match=None)


def _add_file(parser: argparse.ArgumentParser, *, is_required: bool) -> None:
    parser.add_argument(
        "-f",
        "--file",
        required=is_required,
        metavar="FILE",
        help="a route document with its name, TOML or JSON; - for standard input, JSON",
    )


def _add_set_weight(routes: Commands) -> None:
    parser = routes.add_parser(
        "set-weight", parents=[_change(is_guarded=True)], help="change the split"
    )
    _runs(parser, route_writes.set_weight)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("weights", nargs="+", type=route_input.weight, metavar="VARIANT=PERCENT")
    parser.add_argument(
        "--take-from",
        metavar="VARIANT",
        help="who gives or gets the difference; without it name all variants, to a sum of 100",
    )
    _add_experiment_options(parser)


def _add_promote(routes: Commands) -> None:
    parser = routes.add_parser(
        "promote", parents=[_change(is_guarded=True)], help="make a variant the stable one"
    )
    _runs(parser, route_writes.promote)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--variant", metavar="V", help="needed where there are several")


def _add_abort(routes: Commands) -> None:
    parser = routes.add_parser(
        "abort", parents=[_change(is_guarded=False)], help="all traffic to stable, now"
    )
    _runs(parser, route_writes.abort)
    parser.add_argument("name", metavar="NAME")


def _add_undo(routes: Commands) -> None:
    parser = routes.add_parser(
        "undo", parents=[_change(is_guarded=True)], help="go back to an earlier revision"
    )
    _runs(parser, route_writes.undo)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--to-revision", type=route_input.positive, metavar="N", help="default: the one before"
    )


def _add_apply(routes: Commands) -> None:
    parser = routes.add_parser(
        "apply", parents=[_change(is_guarded=True)], help="create or replace a route from a file"
    )
    _runs(parser, route_writes.apply)
    _add_file(parser, is_required=True)
    _add_experiment_options(parser)


def _add_delete(routes: Commands) -> None:
    parser = routes.add_parser(
        "delete", parents=[_change(is_guarded=True)], help="take a route out of force"
    )
    _runs(parser, route_writes.delete)
    parser.add_argument("name", metavar="NAME")


def _add_restore(routes: Commands) -> None:
    parser = routes.add_parser(
        "restore",
        parents=[_change(is_guarded=False)],
        help="write what the replica serves into a store that lost it",
    )
    _runs(parser, route_writes.restore)
    parser.add_argument("name", metavar="NAME")


def _runs(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.set_defaults(run=partial(route_session.run, command))
