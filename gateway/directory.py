"""Who answers to a public name: the route's split, a pinned version, or the model of that name.

Knows the route table and the repository; knows no protocol. The rules, in order:

  name has a route, no version   the route decides (reasons of router/policy.py); if the variant
                                 cannot serve, the route's fallback does (reason fallback)
  name has a route, version N    the version N that the route's variants name, if it is one model's;
                                 else version N of the model of that name (reason version)
  name is a model, no version    its highest version that is ready (reason model)
  name is a model, version N     that version (reason version)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from engines.errors import InvalidInput, UnknownModel, VersionNotReady
from engines.repository import Repository
from engines.served import ServedVersion, VersionState
from gateway.errors import UnknownName
from gateway.principals import Principal, Principals
from gateway.request import InferRequest, ParameterValue, Serving
from router.policy import CompiledRoute, KeyRequired
from router.routes import Route, Variant
from router.rules import NOBODY, Facts
from router.table import RouteTable

READY: Final = VersionState.READY
REASON_VERSION = "version"
REASON_MODEL = "model"
REASON_FALLBACK = "fallback"


class Target:
    """The version that is to serve a request, and how it was chosen.

    One object stands for all requests of which the same is true, for as long as it is: whoever
    keeps something per choice keeps it per target. Compared by identity.
    """

    __slots__ = (
        "assigned",
        "assigned_by",
        "is_watched",
        "propensity",
        "reason",
        "revision",
        "route",
        "served",
        "serving",
        "split",
        "variant",
    )

    def __init__(  # noqa: PLR0913 - one argument per field
        self,
        served: ServedVersion,
        route: str,
        variant: str,
        revision: int,
        reason: str,
        propensity: float = 1.0,
        assigned: str = "",
        split: CompiledRoute | None = None,
        assigned_by: str = "",
    ) -> None:
        self.served = served
        self.route = route
        """Empty where no route was involved."""
        self.variant = variant
        """The variant that serves."""
        self.revision = revision
        self.reason = reason
        self.propensity = propensity
        """Probability of the assignment; 1 where nothing was drawn."""
        self.assigned = assigned
        """The variant that the split chose; another one serves where it cannot."""
        self.split = split
        """The snapshot that chose; None where nothing was split."""
        self.assigned_by = assigned_by
        """Why the split chose `assigned`: as `reason`, also where the fallback serves."""
        self.is_watched = split is not None and split.is_watched
        self.serving = Serving(variant, assigned if assigned != variant else "", revision, reason)
        """What the caller is told of it."""


_MAX_TARGETS: Final = 4096
"""Targets kept for requests to come; over it all are forgotten and made again."""


class Directory:
    """Resolves public names. Reads one route snapshot per call."""

    def __init__(
        self,
        *,
        routes: RouteTable,
        repository: Repository,
        principals: Principals,
        draw: Callable[[], float],
    ) -> None:
        self.routes = routes
        self.repository = repository
        self._principals = principals
        self._draw = draw
        self._targets: dict[tuple[str, str, str], Target] = {}
        self.overrides_ignored: dict[str, int] = {}
        """By route: requests that asked for a variant without being a tester's."""

    def knows(self, name: str) -> bool:
        """Whether a route or a model has this name."""
        return name in self.routes.snapshot or self.repository.has_model(name)

    def resolve(self, request: InferRequest) -> tuple[Target, bytes | None]:
        """Return the version to serve a request, and the request's sticky key.

        Raises:
            UnknownName: nothing answers to the name or version.
            VersionNotReady: no version that could serve is ready.
            InvalidInput: the route wants a key, and there is none.
        """
        compiled = self.routes.snapshot.get(request.name)
        if compiled is None or request.version:
            return self._pinned(request.name, request.version, compiled), None
        route = compiled.route
        who = self._principals.identify(request.header) if compiled.asks_who else None
        key = read_key(route, request, who) if route.key else None
        facts = facts_of(request, who) if compiled.has_rules else NOBODY
        try:
            decision = compiled.decide(key, self._draw, facts)
        except KeyRequired as exc:
            raise InvalidInput(str(exc)) from None
        if decision.override_ignored:
            ignored = self.overrides_ignored
            ignored[route.name] = ignored.get(route.name, 0) + 1
        assigned, reason = decision.variant, decision.reason
        target = self._targets.get((route.name, assigned.name, reason))
        if (
            target is not None
            and target.split is compiled
            and target.reason == reason  # not a fallback's, which is looked up anew
            and target.served.state is READY
        ):
            # A copy that is replaced is retired in the same step: a ready one is the one in force.
            return target, key
        return self._split_target(compiled, assigned, reason, decision.propensity), key

    def _split_target(
        self, compiled: CompiledRoute, assigned: Variant, reason: str, propensity: float
    ) -> Target:
        """Return the target of a decision that no kept one stands for."""
        route = compiled.route
        served = self._ready(assigned)
        variant, why = assigned.name, reason
        if served is None:
            served, variant, why = self._fall_back(route, assigned, reason)
        kept = self._targets.get((route.name, assigned.name, reason))
        if (
            kept is not None
            and kept.split is compiled
            and kept.served is served
            and kept.variant == variant
        ):
            return kept
        target = Target(
            served,
            route.name,
            variant,
            route.revision,
            why,
            propensity,
            assigned.name,
            compiled,
            reason,
        )
        return self._keep((route.name, assigned.name, reason), target)

    def _keep(self, key: tuple[str, str, str], target: Target) -> Target:
        if len(self._targets) >= _MAX_TARGETS:
            self._targets.clear()
        self._targets[key] = target
        return target

    def _ready(self, variant: Variant) -> ServedVersion | None:
        """Return a variant's version if it serves now."""
        try:
            served = self.repository.get(variant.model, variant.version)
        except UnknownModel:
            return None
        return served if served.is_ready else None

    def _fall_back(
        self, route: Route, assigned: Variant, reason: str
    ) -> tuple[ServedVersion, str, str]:
        """Return who serves instead of a variant that cannot.

        Without a fallback that can: the version itself, which says why it is not ready when its
        batcher is asked for; so the failure is counted and logged as that of its variant.
        """
        if route.fallback is not None:
            instead = route.variant(route.fallback.to)
            served = self._ready(instead)
            if served is not None:
                return served, instead.name, REASON_FALLBACK
        try:
            served = self.repository.get(assigned.model, assigned.version)
        except UnknownModel as exc:
            model, version = assigned.model, assigned.version
            raise VersionNotReady(model=model, version=version, why=str(exc)) from None
        return served, assigned.name, reason

    def _pinned(self, name: str, version: str, compiled: CompiledRoute | None) -> Target:
        variant, route, revision, reason = "", "", 0, REASON_VERSION
        if compiled is not None:
            served, variant = self._version_of_route(compiled.route, version)
            route, revision = name, compiled.route.revision
        elif version:
            served = self._get(name, version)
        elif self.repository.has_model(name):
            served, reason = self.repository.highest_ready(name), REASON_MODEL
        else:
            raise nobody(name)
        key = (name, version, "")
        target = self._targets.get(key)
        if (
            target is not None
            and target.served is served
            and target.route == route
            and target.revision == revision
            and target.variant == variant
        ):
            return target
        target = Target(served, route, variant, revision, reason, assigned=variant)
        return self._keep(key, target)

    def _version_of_route(self, route: Route, version: str) -> tuple[ServedVersion, str]:
        """Return what ``/versions/N`` means on a route, and the variant if exactly one names it."""
        arms = [variant for variant in route.variants if variant.version == version]
        models = {variant.model for variant in arms}
        if len(models) == 1:
            return self._get(models.pop(), version), arms[0].name if len(arms) == 1 else ""
        if self.repository.has_model(route.name):
            return self._get(route.name, version), ""
        if arms:
            named = ", ".join(sorted(f"{arm.name} ({arm.model})" for arm in arms))
            raise UnknownName(
                f"version {version!r} of route {route.name!r} is ambiguous: "
                f"it is that of the variants {named}"
            )
        known = ", ".join(sorted({variant.version for variant in route.variants}, key=int))
        raise UnknownName(
            f"route {route.name!r} has no variant of version {version!r} (it has {known}), "
            f"and there is no model of that name"
        )

    def _get(self, model: str, version: str) -> ServedVersion:
        if not self.repository.has_model(model):
            raise nobody(model)
        try:
            return self.repository.get(model, version)
        except UnknownModel as exc:
            raise UnknownName(str(exc)) from None

    def representative(self, name: str, version: str = "") -> ServedVersion:
        """Return the version whose signature stands for a name: a route's heaviest variant's.

        Raises:
            UnknownName, VersionNotReady: as `resolve`.
        """
        compiled = self.routes.snapshot.get(name)
        if compiled is None or version:
            return self._pinned(name, version, compiled).served
        heaviest = compiled.route.heaviest
        return self._get(heaviest.model, heaviest.version)

    def versions(self, name: str) -> list[str]:
        """Return the versions a name reaches, ascending: a route's, or a model's ready ones."""
        compiled = self.routes.snapshot.get(name)
        if compiled is not None:
            return sorted({variant.version for variant in compiled.route.variants}, key=int)
        return [served.version for served in self.repository.ready_versions(name)]

    def is_ready(self, name: str, version: str = "") -> bool:
        """Whether a request would be served now; a route needs its fallback, or each variant that
        gets traffic.

        Raises:
            UnknownName: nothing answers to the name or version.
        """
        compiled = self.routes.snapshot.get(name)
        if version:
            return self._pinned(name, version, compiled).served.is_ready
        if compiled is None:
            if not self.repository.has_model(name):
                raise nobody(name)
            return bool(self.repository.ready_versions(name))
        route = compiled.route
        if route.fallback and self._ready(route.variant(route.fallback.to)) is not None:
            return True
        return all(self._ready(variant) is not None for variant in route.variants if variant.slots)


def nobody(name: str) -> UnknownName:
    """Return the error for a name that nothing answers to."""
    return UnknownName(f"no route and no model is named {name!r}")


def facts_of(request: InferRequest, who: Principal | None) -> Facts:
    """Return what a route's rules may ask of a request."""
    if who is None:
        return Facts(header=request.header)
    return Facts(header=request.header, tenant=who.tenant, roles=who.roles)


def read_key(route: Route, request: InferRequest, who: Principal | None) -> bytes | None:
    """Return the request's key for a route: the first source that is present and not empty.

    Header values are taken byte for byte; parameters and the principal's name as UTF-8 text.
    """
    for source in route.key:
        if source.kind == "header":
            header = request.header(source.name)
            key = header.encode("latin-1", "replace") if header else b""
        elif source.kind == "parameter":
            key = _parameter_key(request.parameters, source.name)
        else:
            key = who.name.encode() if who else b""
        if key:
            return key
    return None


def _parameter_key(parameters: Mapping[str, ParameterValue], name: str) -> bytes:
    value = parameters.get(name)
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return str(value).encode()
