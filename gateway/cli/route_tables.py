"""Shows what the admin API answers to people: values in, text out.

Pure: no terminal, no clock, no network. `route_text` has the pieces, `route_view` the page that
`sluice route get` shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from msgspec import UNSET

from gateway.cli.route_documents import (
    Audit,
    AuditEntry,
    Change,
    Convergence,
    Difference,
    Explanation,
    History,
    Replica,
    RouteDocument,
    RouteList,
    Written,
)
from gateway.cli.route_text import (
    NOTHING,
    PLAIN,
    Style,
    as_json,
    percent,
    printable,
    quoted,
    seconds,
    split,
    table,
)

GIVEN: Final = "query"
"""Source of a key that the question itself named."""


def routes(found: RouteList, style: Style = PLAIN) -> str:
    """Return a line per route."""
    if not found.routes:
        return "there are no routes"
    headers = ("ROUTE", "REVISION", "KIND", "SPLIT", "STABLE")
    rows = [
        (r.name, str(r.revision), r.kind, split_of(r), r.stable + _emergency_mark(r))
        for r in found.routes
    ]
    return "\n".join(table(headers, rows, style, right=("REVISION",)))


def _emergency_mark(route: RouteDocument) -> str:
    return " (EMERGENCY ABORT)" if route.emergency else ""


def split_of(route: RouteDocument) -> str:
    """Return the weights of a route, the heaviest first."""
    return split({name: variant.weight for name, variant in route.variants.items()})


def history(found: History, style: Style = PLAIN) -> str:
    """Return a line per revision, the newest first."""
    headers = ("REVISION", "WHEN", "WHO", "VERB", "SPLIT", "REASON")
    rows = [
        (
            str(row.revision),
            seconds(row.created_at),
            row.actor,
            row.verb,
            "(deleted)" if row.deleted else split(row.weights),
            row.reason,
        )
        for row in found.revisions
    ]
    return "\n".join(table(headers, rows, style, right=("REVISION",)))


def audit(found: Audit, style: Style = PLAIN) -> str:
    """Return a line per change, the oldest first."""
    if not found.entries:
        return "nobody changed anything"
    headers = ("WHEN", "ROUTE", "WHO", "VERB", "REVISION", "MOVED", "REASON")
    rows = [
        (
            seconds(entry.ts),
            entry.route,
            _who(entry),
            entry.verb,
            f"{entry.from_revision or NOTHING} -> {entry.to_revision}",
            percent(entry.moved_share_percent),
            entry.reason,
        )
        for entry in found.entries
    ]
    return "\n".join(table(headers, rows, style, right=("MOVED",)))


def _who(entry: AuditEntry) -> str:
    """Return who did it; the address too where nobody vouches for the name."""
    if entry.auth == "none" and entry.source:
        return f"{entry.actor} ({entry.source})"
    return entry.actor


def convergence(found: Convergence, style: Style = PLAIN) -> str:
    """Return how many replicas have the newest revision, and a line per replica."""
    headers = ("REPLICA", "REVISION", "AGE S", "STATE")
    rows = [(r.replica, str(r.revision), f"{r.age_s:.1f}", _state(r)) for r in found.replicas]
    return "\n".join(
        [
            f"{found.route}: {replicas(found, style)}",
            *table(headers, rows, style, right=("REVISION", "AGE S")),
        ]
    )


def replicas(found: Convergence, style: Style = PLAIN) -> str:
    """Return how many replicas have the newest revision."""
    has_it = sum(replica.converged for replica in found.live)
    text = f"{has_it} of {len(found.live)} replicas have revision {found.revision}"
    return style.good(text) if found.converged else style.warning(text)


def _state(replica: Replica) -> str:
    if not replica.live:
        return "not heard of"
    if replica.pending:
        return replica.pending
    return "converged" if replica.converged else "behind"


def replica_line(replica: Replica) -> str:
    """Return where a replica that lags stands."""
    pending = f", {printable(replica.pending)}" if replica.pending else ""
    return (
        f"{printable(replica.replica)}: at revision {replica.revision}{pending}, "
        f"last heard of {replica.age_s:.1f} s ago"
    )


def changes(found: Sequence[Change]) -> list[str]:
    """Return a line per difference: ~ changed, + new, - gone."""
    return [_change(change) for change in found]


def _change(change: Change) -> str:
    path = printable(change.path)
    if change.before is UNSET:
        return f"  + {path}: {as_json(change.after)}"
    if change.after is UNSET:
        return f"  - {path}: {as_json(change.before)}"
    return f"  ~ {path}: {as_json(change.before)} -> {as_json(change.after)}"


def difference(name: str, found: Difference) -> str:
    """Return what differs between two revisions."""
    if not found.diff:
        return f"{name}: revisions {found.first} and {found.second} do not differ"
    moved = moved_share(found.moved_share_percent, found.reversioned_share_percent)
    head = f"{name}: from revision {found.first} to {found.second}, {moved}"
    return "\n".join([head, *changes(found.diff)])


def moved_share(moved: Decimal, reversioned: Decimal | None, verb: str = "moved") -> str:
    """Return how many keys get another variant, and another version where that is not as many."""
    text = f"{verb} {percent(moved)} of the keys"
    if reversioned is None or reversioned == moved:
        return text
    return f"{text} ({percent(reversioned)} get another version)"


def written(answer: Written, before: int | None) -> str:
    """Return what a write did, or would do.

    Args:
        answer: of the gateway.
        before: revision that was changed; None: the one that the answer names as its parent.
    """
    lines = [_headline(answer, before or answer.document.meta.parent), *changes(answer.diff)]
    if answer.loads:
        names = ", ".join(f"{t.model}/{t.version}" for t in answer.loads)
        lines.append(f"  {'would load' if answer.dry_run else 'loaded'}: {names}")
    return "\n".join(lines)


def _headline(answer: Written, before: int | None) -> str:
    what = f"{answer.document.name}: {_outcome_of(answer, before)}"
    if not answer.dry_run:
        return what
    return f"dry run, nothing is changed: {what}"


def _outcome_of(answer: Written, before: int | None) -> str:
    document, revision = answer.document, answer.document.revision
    if not answer.changed:
        return f"unchanged at revision {revision}"
    if answer.emergency:
        return f"all traffic of one replica to {document.stable}"
    if document.deleted:
        return f"revision {before} -> {revision}, deleted"
    if document.meta.verb == "create" or not before:
        return f"created at revision {revision}"
    if document.meta.verb == "restore":
        return f"restored as revision {revision} of generation {document.generation}"
    verb = "would move" if answer.dry_run else "moved"
    moved = moved_share(answer.moved_share_percent, answer.reversioned_share_percent, verb)
    return f"revision {before} -> {revision}, {moved}"


def explanation(found: Explanation) -> str:
    """Return one sentence about who serves a request, then the details."""
    lines = [f"{_subject(found)}: {_outcome(found)}"]
    if found.override_ignored:
        lines.append("  the variant that it asks for is ignored: only testers may choose")
    if found.variant is not None and found.served != found.variant:
        instead = found.served or "nobody: neither it nor a fallback is ready"
        lines.append(f"  {found.variant} is not ready; served by {instead}")
    details = {
        "key from": found.key_source if found.key_source != GIVEN else None,
        "hash": found.hash,
        "propensity": None if found.propensity is None else f"{found.propensity:g}",
        "mirrored to": ", ".join(found.shadows),
    }
    lines += [f"  {what}: {printable(value)}" for what, value in details.items() if value]
    return "\n".join(lines)


def _subject(found: Explanation) -> str:
    if found.key is None:
        return f"a request without a key, at revision {found.revision}"
    if found.slot is None:
        return f"{printable(found.key)}, at revision {found.revision}"
    return f"{printable(found.key)} is in slot {found.slot} of revision {found.revision}"


def _outcome(found: Explanation) -> str:
    if found.distribution is not None:
        return f"drawn for every request: {split(found.distribution)}"
    if found.variant is None:
        return f"{found.reason}, {printable(found.error)}" if found.error else found.reason
    return f"variant {found.variant} ({found.model} {found.version}), {_because(found)}"


def _because(found: Explanation) -> str:
    if found.rule is not None:
        return f"by rule {found.rule}"
    known = {"slot": "by its slot", "no_key": "because it has no key"}
    return known.get(found.reason, f"reason {printable(found.reason)}")


def made_by(document: RouteDocument) -> str:
    """Return who made a revision, when, how and why."""
    meta = document.meta
    actor = printable(meta.actor) or "somebody"
    return f"{actor} at {seconds(meta.created_at)}: {meta.verb}, {quoted(meta.reason)}"
