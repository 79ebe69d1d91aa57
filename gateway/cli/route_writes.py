"""`sluice route` commands that change routes.

A change says which revision it changes: the one that the command line names, or the one that the
gateway names when asked just before. A change that somebody else made in between is reported, and
never overwritten or retried. Only abort and restore have no such condition.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from gateway.cli import route_input, route_reads
from gateway.cli import route_tables as tables
from gateway.cli.admin_client import NotThere, Reply, RevisionMoved, Write
from gateway.cli.route_documents import RouteDocument, Written, etag_of
from gateway.cli.route_session import Exit, Session, Stop
from gateway.cli.route_wait import Clock, Waited, wait

DIFF_REASON: Final = "sluice route diff"
"""A dry run leaves no trace, but every write wants a reason."""
_CLOCK: Final = Clock(now_s=time.monotonic, sleep=time.sleep)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The revision that a change starts from."""

    etag: str
    revision: int
    is_demanded: bool
    """The command line named it."""


def set_weight(session: Session, arguments: argparse.Namespace) -> int:
    """Change weights."""
    weights = route_input.weights(arguments.weights)
    body: dict[str, object] = {"weights": weights}
    if arguments.take_from is not None:
        body["take_from"] = arguments.take_from
    return _verb(session, arguments, "setWeights", body)


def promote(session: Session, arguments: argparse.Namespace) -> int:
    """Make a variant's version the stable one."""
    body = {} if arguments.variant is None else {"variant": arguments.variant}
    return _verb(session, arguments, "promote", body)


def undo(session: Session, arguments: argparse.Namespace) -> int:
    """Go back to an earlier revision."""
    body = {} if arguments.to_revision is None else {"to_revision": arguments.to_revision}
    return _verb(session, arguments, "undo", body)


def abort(session: Session, arguments: argparse.Namespace) -> int:
    """Send all traffic to the stable variant, whatever the route's state."""
    return _change(session, arguments, arguments.name, _write(arguments, "POST", "abort"))


def restore(session: Session, arguments: argparse.Namespace) -> int:
    """Write what the replica serves into the store."""
    return _change(session, arguments, arguments.name, _write(arguments, "POST", "restore"))


def delete(session: Session, arguments: argparse.Namespace) -> int:
    """Take a route out of force."""
    # A route that is gone has no convergence to look at: the gateway itself waits.
    write = _write(arguments, "DELETE", wait_s=arguments.wait)
    base = _base(session, arguments, arguments.name)
    reply = _send(session, arguments.name, _on(write, base), base)
    text = tables.written(reply.value, base.revision)
    if not arguments.dry_run:
        text += f"\n(sluice route undo {arguments.name} brings it back)"
    session.show(reply, text)
    if reply.value.laggards:
        raise Stop(Exit.NOT_CONVERGED, f"not gone yet on {', '.join(reply.value.laggards)}")
    return Exit.DONE


def apply(session: Session, arguments: argparse.Namespace) -> int:
    """Create or replace a route from a file."""
    name, document = route_input.read_document(arguments.file)
    base = _base_or_none(session, arguments, name)
    write = _on(_write(arguments, "PUT", body=document), base)
    return _change(session, arguments, name, write, base)


def diff(session: Session, arguments: argparse.Namespace) -> int:
    """Show what differs between two revisions, or between a file and what is in force."""
    numbers = (arguments.first, arguments.second)
    if arguments.file is None:
        if arguments.name is None or None in numbers:
            raise Stop(Exit.USAGE, "give a route and two revisions, or -f FILE")
        return route_reads.difference(session, arguments.name, *numbers)
    if arguments.name is not None:
        raise Stop(Exit.USAGE, "give a route and two revisions, or -f FILE; not both")
    name, document = route_input.read_document(arguments.file)
    base = _base_or_none(session, arguments, name)
    write = Write(method="PUT", reason=DIFF_REASON, body=document, flags=("dry_run",))
    reply = _send(session, name, _on(write, base), base)
    session.show(reply, tables.written(reply.value, base.revision if base else None))
    return Exit.DONE


def _verb(
    session: Session, arguments: argparse.Namespace, verb: str, body: Mapping[str, object]
) -> int:
    """Send a verb that names the revision which it changes."""
    write = _write(arguments, "POST", verb, body)
    base = _base(session, arguments, arguments.name)
    return _change(session, arguments, arguments.name, _on(write, base), base)


def _write(
    arguments: argparse.Namespace,
    method: str,
    verb: str = "",
    body: Mapping[str, object] | None = None,
    wait_s: float | None = None,
) -> Write:
    """Return a write without its condition; asks for the reason before anything is sent."""
    if arguments.dry_run and arguments.wait is not None:
        raise Stop(Exit.USAGE, "--dry-run changes nothing, so there is nothing to --wait for")
    flags = [name for name in ("dry_run", "reseed", "accept_carryover") if name in arguments]
    return Write(
        method=method,
        verb=verb,
        body=body,
        reason=route_input.reason(arguments.reason),
        flags=tuple(name for name in flags if getattr(arguments, name)),
        wait_s=wait_s,
    )


def _on(write: Write, base: Base | None) -> Write:
    """Return a write with its condition: the revision, or that there is none yet."""
    return replace(write, if_match=base.etag if base else "", must_not_exist=base is None)


def _base(session: Session, arguments: argparse.Namespace, name: str) -> Base:
    """Return the revision to change; raises NotThere."""
    if arguments.if_match is not None:
        generation, revision = arguments.if_match
        return Base(etag=etag_of(generation, revision), revision=revision, is_demanded=True)
    generation, revision = _position(session, name, is_undo=arguments.route_command == "undo")
    if arguments.revision is not None:
        revision = arguments.revision
    return Base(
        etag=etag_of(generation, revision),
        revision=revision,
        is_demanded=arguments.revision is not None,
    )


def _position(session: Session, name: str, *, is_undo: bool) -> tuple[int, int]:
    try:
        return session.client.route(name).value.position
    except NotThere:
        if not is_undo:
            raise
        # A deleted route is not shown, but its history is, and an undo brings it back.
        newest = session.client.history(name, limit=1).value.revisions[0]
        return newest.generation, newest.revision


def _base_or_none(session: Session, arguments: argparse.Namespace, name: str) -> Base | None:
    """Return the revision to replace; None if the route is to be created."""
    try:
        return _base(session, arguments, name)
    except NotThere:
        if arguments.revision is not None:
            raise
        return None


def _send(session: Session, name: str, write: Write, base: Base | None) -> Reply[Written]:
    try:
        return session.client.write(name, write)
    except RevisionMoved as exc:
        sentence = conflict(name, base, exc.current)
        raise Stop(Exit.CONFLICT, sentence, exc.body) from None


def conflict(name: str, base: Base | None, current: RouteDocument | None) -> str:
    """Return why a write was refused for the revision that it named: who was there before."""
    if base is None:
        what = "exists by now"
    elif base.is_demanded:
        what = f"is not at revision {base.revision}"
    else:
        what = f"was changed meanwhile: this command read revision {base.revision}"
    if current is None:
        return f"{name} {what}; there is no such route now. Nothing was changed."
    gone = ", deleted" if current.deleted else ""
    return (
        f"{name} {what}\n"
        f"  revision {current.revision}{gone}, by {tables.made_by(current)}\n"
        f"  now: {tables.split_of(current)}\n"
        "Nothing was changed. Look at it, then repeat the command if it is still wanted."
    )


def _change(
    session: Session,
    arguments: argparse.Namespace,
    name: str,
    write: Write,
    base: Base | None = None,
) -> int:
    """Send a write, say what it did, and wait for the replicas if that is wanted."""
    reply = _send(session, name, write, base)
    written = reply.value
    session.show(reply, tables.written(written, base.revision if base else None))
    if written.emergency and not arguments.dry_run:
        session.warn(
            "the store is out of reach: only the replica at "
            f"{session.client.address} was changed; it tells the store when that answers again, "
            "so abort on every other replica that matters"
        )
    if arguments.wait is None:
        return Exit.DONE
    if written.emergency:
        raise Stop(Exit.NOT_CONVERGED, "the other replicas do not have it")
    return _converge(session, name, written.document, arguments.wait)


def _converge(session: Session, name: str, wanted: RouteDocument, limit_s: float) -> int:
    waited = wait(
        lambda left_s: session.client.convergence(name, timeout_s=max(left_s, 0.5)).value,
        wanted,
        limit_s,
        _CLOCK,
    )
    if waited.laggards:
        raise Stop(Exit.NOT_CONVERGED, _behind(wanted, waited))
    everyone = "the only replica has"
    if waited.replicas > 1:
        everyone = f"all {waited.replicas} replicas have"
    session.remark(f"{everyone} revision {wanted.revision}, after {waited.took_s:.1f} s")
    return Exit.DONE


def _behind(wanted: RouteDocument, waited: Waited) -> str:
    head = f"revision {wanted.revision} is not everywhere after {waited.took_s:.1f} s:"
    return "\n".join([head, *(f"  {line}" for line in waited.laggards)])
