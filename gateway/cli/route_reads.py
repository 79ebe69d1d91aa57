"""`sluice route` commands that change nothing."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Final, TypeVar

from gateway.cli import route_tables as tables
from gateway.cli.admin_client import AdminError, GatewayFailed, Reply, Unreachable
from gateway.cli.route_session import Exit, Session
from gateway.cli.route_text import printable
from gateway.cli.route_view import RoutePage, page

_T = TypeVar("_T")
_REDRAW: Final = "\x1b[H\x1b[2J"
"""Cursor home, clear."""


def list_routes(session: Session, _: argparse.Namespace) -> int:
    """Show a line per route."""
    reply = session.client.routes()
    session.show(reply, tables.routes(reply.value, session.style))
    return Exit.DONE


def get(session: Session, arguments: argparse.Namespace) -> int:
    """Show one route; with --watch again and again."""
    if arguments.watch:
        return _watch(session, arguments.name, arguments.interval)
    print(_page(session, arguments.name), flush=True)
    return Exit.DONE


def _page(session: Session, name: str) -> str:
    reply = session.client.route(name)
    if session.is_json:
        return reply.text
    route = RoutePage(
        document=reply.value,
        statistics=_known(lambda: session.client.statistics(name)),
        convergence=_known(lambda: session.client.convergence(name)),
    )
    return page(route, session.style)


def _known(ask: Callable[[], Reply[_T]]) -> _T | str:
    """Return an answer, or why there is none: a store that is down hides only its part."""
    try:
        return ask().value
    except AdminError as exc:
        return str(exc)


def _watch(session: Session, name: str, interval_s: float) -> int:
    """Show a route whenever it looks different, until Ctrl-C or until the route is gone."""
    shown, trouble = "", ""
    while True:
        try:
            text, error = _page(session, name), ""
        except (Unreachable, GatewayFailed) as exc:
            text, error = shown, printable(str(exc))
        if error and error != trouble:
            session.warn(f"{error}; trying again")
        if text != shown or (trouble and not error):
            _draw(session, text)
        shown, trouble = text, error
        time.sleep(interval_s)


def _draw(session: Session, text: str) -> None:
    if session.is_json:
        print(text, flush=True)
    elif sys.stdout.isatty():
        print(_REDRAW + text, flush=True)
    else:
        print(f"{text}\n", flush=True)


def explain(session: Session, arguments: argparse.Namespace) -> int:
    """Say who would serve a request, and why."""
    question = {f"header.{name}": value for name, value in arguments.header}
    question |= {f"parameter.{name}": value for name, value in arguments.parameter}
    facts = {"key": arguments.key, "tenant": arguments.tenant, "role": arguments.role}
    question |= {name: value for name, value in facts.items() if value is not None}
    reply = session.client.explain(arguments.name, question)
    session.show(reply, tables.explanation(reply.value))
    return Exit.DONE


def history(session: Session, arguments: argparse.Namespace) -> int:
    """Show a line per revision."""
    reply = session.client.history(arguments.name, arguments.limit)
    session.show(reply, tables.history(reply.value, session.style))
    return Exit.DONE


def difference(session: Session, name: str, first: int, second: int) -> int:
    """Show what differs between two revisions."""
    reply = session.client.difference(name, first, second)
    session.show(reply, tables.difference(name, reply.value))
    return Exit.DONE


def convergence(session: Session, arguments: argparse.Namespace) -> int:
    """Show which replicas have the newest revision."""
    reply = session.client.convergence(arguments.name)
    session.show(reply, tables.convergence(reply.value, session.style))
    return Exit.DONE if reply.value.converged else Exit.NOT_CONVERGED


def audit(session: Session, arguments: argparse.Namespace) -> int:
    """Show who changed what."""
    facts = {"route": arguments.name, "since": arguments.since, "actor": arguments.by}
    wanted = {name: value for name, value in facts.items() if value is not None}
    reply = session.client.audit(wanted)
    session.show(reply, tables.audit(reply.value, session.style))
    return Exit.DONE
