"""Who calls: looks an API key up and returns the principal that it belongs to.

Knows the configured digests, never a key. A caller without a key, or with an unknown one, is
nobody; whether that is enough is for the route's rules or the admin listener to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from gateway.config import PrincipalConfig
from gateway.request import HeaderLookup

HEADER: Final = "authorization"
_SCHEME: Final = "bearer "
VIEWER: Final = "viewer"
OPERATOR: Final = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller."""

    name: str
    tenant: str
    roles: frozenset[str]


class Principals:
    """The configured principals by the digest of their key."""

    def __init__(self, configured: Mapping[str, PrincipalConfig]) -> None:
        self._by_digest = {
            settings.key_sha256: Principal(
                name=name, tenant=settings.tenant, roles=frozenset(settings.roles)
            )
            for name, settings in configured.items()
        }

    def identify(self, header: HeaderLookup) -> Principal | None:
        """Return the bearer of the request's key, or None for nobody."""
        if not self._by_digest:
            return None
        value = header(HEADER)
        if value is None or value[: len(_SCHEME)].lower() != _SCHEME:
            return None
        # Blanks only: other white space of latin-1 may be the last byte of a key in UTF-8.
        key = value[len(_SCHEME) :].strip(" \t").encode("latin-1", "replace")
        return self._by_digest.get(sha256(key).hexdigest())
