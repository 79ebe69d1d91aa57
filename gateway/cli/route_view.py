"""The page of one route that `sluice route get` shows: what is asked for, and what happens.

Pure: values in, text out. Observed numbers are those of the replica that was asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.cli.route_documents import (
    Convergence,
    Experiment,
    RouteDocument,
    Rule,
    ShadowStatistics,
    Statistics,
    VariantStatistics,
)
from gateway.cli.route_tables import made_by, replica_line, replicas
from gateway.cli.route_text import (
    NOTHING,
    PLAIN,
    Style,
    as_json,
    percent,
    printable,
    quoted,
    rounded,
    seconds,
    table,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePage:
    """What is known of a route; a text in place of a value says why it is not known."""

    document: RouteDocument
    statistics: Statistics | str
    convergence: Convergence | str


def page(route: RoutePage, style: Style = PLAIN) -> str:
    """Return the page."""
    sections = [
        _head(route.document, style),
        _variants(route.document, route.statistics, style),
        _rules(route.document.rules, style),
        _shadows(route.document, route.statistics, style),
        _experiment(route.statistics, style),
        _replicas(route.convergence, style),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _head(document: RouteDocument, style: Style) -> list[str]:
    keys = ", ".join(document.key)
    without = f"without one: {document.missing_key}" if keys else document.missing_key
    lines = [
        style.bold(f"{document.name}: revision {document.revision}")
        + f", {document.kind}, stable is {document.stable}",
        f"by {made_by(document)}",
        f"key: {keys or 'none'} ({without})",
    ]
    if document.fallback:
        lines.append(f"fallback: {document.fallback.to}, on {', '.join(document.fallback.on)}")
    lines += [
        f"kept warm: {warm.model}/{warm.version} until {seconds(warm.until)}"
        for warm in document.derived.warm
    ]
    if document.emergency:
        who = f"{printable(document.emergency.actor)}: {quoted(document.emergency.reason)}"
        text = f"EMERGENCY ABORT: this replica sends everything to {document.stable} ({who})"
        lines.append(style.warning(text))
    return lines


def _variants(document: RouteDocument, observed: Statistics | str, style: Style) -> list[str]:
    headers = (
        "VARIANT", "MODEL", "WEIGHT", "SHARE", "REQUESTS", "ERRORS", "FALLBACK", "FORCED", "P99 MS",
    )  # fmt: skip
    now = _by_variant(document, observed)
    rows = [
        (name, f"{v.model}/{v.version}", percent(v.weight), *_observed(now.get(name)))
        for name, v in sorted(document.variants.items())
    ]
    lines = table(headers, rows, style, right=headers[2:])
    if isinstance(observed, str):
        lines.append(f"(no numbers: {printable(observed)})")
    else:
        lines.append(f"(observed by the replica that was asked, at revision {document.revision})")
    return lines


def _by_variant(
    document: RouteDocument, observed: Statistics | str
) -> dict[str, VariantStatistics]:
    """Return the numbers of this revision: those of earlier weights say nothing about these."""
    if isinstance(observed, str):
        return {}
    return {row.variant: row for row in observed.variants if row.revision == document.revision}


def _observed(row: VariantStatistics | None) -> tuple[str, ...]:
    if row is None:
        return (NOTHING,) * 6
    share = NOTHING if row.share_percent is None else f"{row.share_percent:.2f} %"
    counts = (row.requests, row.errors, row.fallback, row.forced)
    return (share, *map(str, counts), rounded(row.latency_ms.get("p99")))


def _rules(rules: list[Rule], style: Style) -> list[str]:
    if not rules:
        return []
    headers = ("RULE", "WHEN", "TO", "EXPIRES", "REASON")
    rows = [
        (
            rule.name if rule.enabled else f"{rule.name} (off)",
            _when(rule),
            rule.to,
            seconds(rule.expires or ""),
            rule.reason,
        )
        for rule in rules
    ]
    return table(headers, rows, style)


def _when(rule: Rule) -> str:
    """Return the conditions of a rule, all of which must hold."""
    parts = []
    for what, asked in rule.when.items():
        if what == "header" and isinstance(asked, dict):
            parts += [f"header {name} {_asked(value)}" for name, value in asked.items()]
        else:
            parts.append(f"{what} {_asked(asked)}")
    return " and ".join(parts) or "always"


def _asked(value: object) -> str:
    match value:
        case str():
            return f"= {value}"
        case list():
            return f"in {', '.join(map(str, value))}"
        case {"in": list() as values}:
            return f"in {', '.join(map(str, values))}"
        case {"prefix": str() as prefix}:
            return f"begins with {prefix}"
        case {"present": True}:
            return "is there"
    return as_json(value)


def _shadows(document: RouteDocument, observed: Statistics | str, style: Style) -> list[str]:
    if not document.shadows:
        return []
    headers = ("SHADOW", "MODEL", "SAMPLE", "OF", "ELIGIBLE", "SENT", "IN FLIGHT", "DROPPED")
    counts = {} if isinstance(observed, str) else observed.shadows
    rows = [
        (
            name,
            f"{shadow.model}/{shadow.version}",
            percent(shadow.sample),
            ", ".join(shadow.of) or "all",
            *_accounting(counts.get(name)),
        )
        for name, shadow in sorted(document.shadows.items())
    ]
    return table(headers, rows, style, right=("SAMPLE", "ELIGIBLE", "SENT", "IN FLIGHT"))


def _accounting(counts: ShadowStatistics | None) -> tuple[str, ...]:
    if counts is None:
        return (NOTHING,) * 4
    reasons = sorted(((n, why) for why, n in counts.dropped.items() if n), reverse=True)
    dropped = ", ".join(f"{why} {n}" for n, why in reasons) or "0"
    return (str(counts.eligible), str(counts.sent), str(counts.in_flight), dropped)


def _experiment(observed: Statistics | str, style: Style) -> list[str]:
    if isinstance(observed, str) or observed.experiment is None:
        return []
    return [_units(observed.experiment), *_doubts(observed.experiment, style)]


def _units(experiment: Experiment) -> str:
    units = ", ".join(f"{name} {count}" for name, count in sorted(experiment.units.items()))
    return f"experiment: units {units or 'none yet'}"


def _doubts(experiment: Experiment, style: Style) -> list[str]:
    """Return what makes the results of an experiment doubtful."""
    doubts = []
    if experiment.sample_ratio.mismatch:
        doubts.append("SAMPLE RATIO MISMATCH: the units are not split as the weights say")
    if experiment.carryover:
        at = ", ".join(map(str, experiment.carryover))
        doubts.append(f"carry-over: weights were changed while it ran, at revision {at}")
    return [style.warning(doubt) for doubt in doubts]


def _replicas(found: Convergence | str, style: Style) -> list[str]:
    if isinstance(found, str):
        return [f"replicas: not known ({printable(found)})"]
    behind = [replica_line(replica) for replica in found.live if not replica.converged]
    return [f"replicas: {replicas(found, style)}", *(f"  {line}" for line in behind)]
