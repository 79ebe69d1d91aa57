"""Says who would serve a request, and why, without sending one: the same decision, in words.

Pure but for one look at which versions are ready. Nothing is drawn: where a number would be drawn
the answer is the distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.document import percent
from router.policy import REASON_RANDOM, RULE_PREFIX, CompiledRoute, KeyRequired
from router.routes import PRINCIPAL, Route, Variant
from router.rules import Facts

IsReady = Callable[[str, str], bool]
"""Whether a version of a model serves now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that is only talked about."""

    key: str | None = None
    """Taken as the key whatever the route's sources; None: read them."""
    headers: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""
    role: str = ""

    def header(self, name: str) -> str | None:
        """Return a header as a request would have it: one character per byte of UTF-8."""
        lower = {key.lower(): value for key, value in self.headers.items()}
        value = lower.get(name)
        return None if value is None else value.encode().decode("latin-1")


def explain(
    compiled: CompiledRoute, question: Question, is_ready: IsReady
) -> dict[str, Any]:  # Any: JSON
    """Return the decision about a request as JSON."""
    route = compiled.route
    key, source = _key(route, question)
    raw = key.encode() if key else None
    facts = Facts(
        header=question.header,
        tenant=question.tenant,
        roles=frozenset((question.role,)) if question.role else frozenset(),
    )
    answer: dict[str, Any] = {
        "route": route.name,
        "revision": route.revision,
        "key": key,
        "key_source": source,
        "slot": compiled.key_space.slot(raw) if raw else None,
        "hash": f"{compiled.key_space.hash(raw):016x}" if raw else None,
    }
    try:
        decision = compiled.decide(raw, lambda: 0.0, facts)
    except KeyRequired as exc:
        return answer | {"reason": "rejected", "error": str(exc)}
    answer |= {
        "reason": decision.reason,
        "rule": decision.reason.removeprefix(RULE_PREFIX)
        if decision.reason.startswith(RULE_PREFIX)
        else None,
        "override_ignored": decision.override_ignored,
    }
    if decision.reason == REASON_RANDOM:
        shares = {v.name: percent(v.slots) for v in route.variants}
        return answer | {"variant": None, "distribution": shares, "propensity": None}
    return (
        answer
        | _chosen(compiled, decision.variant, raw, is_ready)
        | {"propensity": decision.propensity}
    )


def _chosen(
    compiled: CompiledRoute, variant: Variant, key: bytes | None, is_ready: IsReady
) -> dict[str, Any]:
    """Return who serves: the variant, or the fallback where it cannot."""
    route = compiled.route
    served: Variant | None = variant
    if not is_ready(variant.model, variant.version):
        instead = route.variant(route.fallback.to) if route.fallback else None
        served = instead if instead and is_ready(instead.model, instead.version) else None
    # Without a key a shadow's sample is drawn too: say only what is certain.
    mirrors = compiled.mirrors(variant.name, key, lambda: 1.0 - 2**-53)
    return {
        "variant": variant.name,
        "model": variant.model,
        "version": variant.version,
        "served": served.name if served else None,
        "shadows": [mirror.shadow.name for mirror in mirrors if mirror.is_sampled],
    }


def _key(route: Route, question: Question) -> tuple[str | None, str | None]:
    """Return the key and where it comes from."""
    if question.key:
        return question.key, "query"
    headers = {name.lower(): value for name, value in question.headers.items()}
    for source in route.key:
        if source.kind == PRINCIPAL:  # a question has no caller: say what the key is instead
            continue
        given = headers if source.kind == "header" else question.parameters
        if value := given.get(source.name):
            return value, str(source)
    return None, None
