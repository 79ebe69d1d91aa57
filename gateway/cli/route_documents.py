"""What the admin API answers about routes, as values: the shapes that the command line reads.

Unknown keys are ignored, so that an older command line works with a newer gateway. Percents are
exact decimals, as they were written.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, field

Json = Any  # Any: a JSON value that is only shown


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object; unknown keys are ignored."""


class Variant(_Shape, frozen=True):
    """One arm of a route."""

    model: str
    version: str
    weight: Decimal


class Rule(_Shape, frozen=True):
    """What comes before the weights."""

    name: str
    to: str
    when: dict[str, Json] = {}
    reason: str = ""
    expires: str | None = None
    enabled: bool = True


class Shadow(_Shape, frozen=True):
    """A version that sees a sample of the traffic and answers nobody."""

    model: str
    version: str
    sample: Decimal
    of: list[str] = []


class Fallback(_Shape, frozen=True):
    """Who serves for a variant that cannot."""

    to: str
    on: list[str] = []


class Warm(_Shape, frozen=True):
    """A version without weight that is kept loaded."""

    model: str
    version: str
    until: str


class Derived(_Shape, frozen=True):
    """What the control plane writes."""

    epoch: int = 0
    carryover: list[int] = []
    warm: list[Warm] = []


class Meta(_Shape, frozen=True):
    """Who made a revision, and why."""

    reason: str = ""
    actor: str = ""
    verb: str = ""
    created_at: str = ""
    parent: int | None = None
    digest: str = ""


class Emergency(_Shape, frozen=True):
    """An abort that only the asked replica has carried out."""

    actor: str = ""
    reason: str = ""


class RouteDocument(_Shape, frozen=True):
    """One revision of a route."""

    name: str
    revision: int
    variants: dict[str, Variant]
    generation: int = 1
    kind: str = "rollout"
    key: list[str] = []
    missing_key: str = "random"
    stable: str = ""
    rules: list[Rule] = []
    shadows: dict[str, Shadow] = {}
    fallback: Fallback | None = None
    derived: Derived = Derived()
    meta: Meta = Meta()
    deleted: bool = False
    emergency: Emergency | None = None

    @property
    def position(self) -> tuple[int, int]:
        """Generation and revision: what a higher one replaces."""
        return self.generation, self.revision


class RouteList(_Shape, frozen=True):
    """GET /v1/routes."""

    routes: list[RouteDocument]


class Change(_Shape, frozen=True):
    """One difference between two documents; a side that lacks the field is UNSET."""

    path: str
    before: Json | UnsetType = field(name="from", default=UNSET)
    after: Json | UnsetType = field(name="to", default=UNSET)


class Target(_Shape, frozen=True):
    """A version of a model."""

    model: str
    version: str


class Written(_Shape, frozen=True):
    """The answer to a write."""

    document: RouteDocument
    changed: bool
    moved_share_percent: Decimal
    reversioned_share_percent: Decimal | None = None
    diff: list[Change] = []
    loads: list[Target] = []
    dry_run: bool = False
    emergency: bool = False
    converged: bool | None = None
    laggards: list[str] = []


class HistoryRow(_Shape, frozen=True):
    """One revision of a history."""

    revision: int
    generation: int = 1
    verb: str = ""
    actor: str = ""
    reason: str = ""
    created_at: str = ""
    deleted: bool = False
    weights: dict[str, Decimal] = {}


class History(_Shape, frozen=True):
    """GET /v1/routes/{name}/revisions: the newest first."""

    revisions: list[HistoryRow]


class Difference(_Shape, frozen=True):
    """GET /v1/routes/{name}/revisions/{a}..{b}."""

    first: int = field(name="from")
    second: int = field(name="to")
    moved_share_percent: Decimal
    reversioned_share_percent: Decimal | None = None
    diff: list[Change] = []


class Explanation(_Shape, frozen=True):
    """GET /v1/routes/{name}/explain."""

    route: str
    revision: int
    reason: str
    key: str | None = None
    key_source: str | None = None
    slot: int | None = None
    hash: str | None = None
    rule: str | None = None
    variant: str | None = None
    model: str | None = None
    version: str | None = None
    served: str | None = None
    propensity: float | None = None
    shadows: list[str] = []
    override_ignored: bool = False
    distribution: dict[str, Decimal] | None = None
    error: str = ""


class Replica(_Shape, frozen=True):
    """What one replica last said."""

    replica: str
    revision: int
    generation: int = 1
    digest: str = ""
    pending: str = ""
    age_s: float = 0.0
    live: bool = True
    """Whether that is recent: nobody waits for one that is gone."""
    converged: bool = False


class Convergence(_Shape, frozen=True):
    """GET /v1/routes/{name}/convergence."""

    route: str
    revision: int
    replicas: list[Replica]
    generation: int = 1
    converged: bool = False

    @property
    def live(self) -> list[Replica]:
        """The replicas that count."""
        return [replica for replica in self.replicas if replica.live]


class VariantStatistics(_Shape, frozen=True):
    """What one variant did in one revision, on the asked replica."""

    revision: int
    variant: str
    requests: int = 0
    errors: int = 0
    forced: int = 0
    fallback: int = 0
    share_percent: float | None = None
    latency_ms: dict[str, float | None] = {}


class ShadowStatistics(_Shape, frozen=True):
    """Where the requests went that a shadow was eligible for, on the asked replica."""

    eligible: int = 0
    sent: int = 0
    in_flight: int = 0
    dropped: dict[str, int] = {}


class SampleRatio(_Shape, frozen=True):
    """Whether the units of an experiment are split as its weights say."""

    mismatch: bool = False
    ln_bayes_factor: float | None = None


class Experiment(_Shape, frozen=True):
    """Units of an experiment, over all replicas."""

    units: dict[str, int] = {}
    sample_ratio: SampleRatio = SampleRatio()
    carryover: list[int] = []


class Statistics(_Shape, frozen=True):
    """GET /v1/routes/{name}/stats."""

    variants: list[VariantStatistics] = []
    shadows: dict[str, ShadowStatistics] = {}
    experiment: Experiment | None = None


class AuditEntry(_Shape, frozen=True):
    """One change that somebody made."""

    ts: str
    actor: str
    verb: str
    route: str
    to_revision: int
    from_revision: int | None = None
    auth: str = ""
    source: str = ""
    moved_share_percent: Decimal | None = None
    reason: str = ""


class Audit(_Shape, frozen=True):
    """GET /v1/audit: the oldest first."""

    entries: list[AuditEntry]


class Fault(_Shape, frozen=True):
    """One thing that is wrong with a document."""

    pointer: str = ""
    detail: str = ""


class Refusal(_Shape, frozen=True):
    """The body of every error."""

    error: str = ""
    errors: list[Fault] = []
    current: RouteDocument | None = None


def etag_of(generation: int, revision: int) -> str:
    """Return the ETag of a revision, with its quotes."""
    return f'"g{generation}-{revision}"'
