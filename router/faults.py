"""What is wrong with a route, field by field."""

from __future__ import annotations

from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Where a field is, inside a route's document."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a route."""

    path: Path
    sentence: str

    @property
    def pointer(self) -> str:
        """The field as a JSON pointer (RFC 6901)."""
        parts = (str(part).replace("~", "~0").replace("/", "~1") for part in self.path)
        return "".join(f"/{part}" for part in parts)

    @property
    def dotted(self) -> str:
        """The field as the configuration's errors name it: variants.canary.weight, key[1]."""
        text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.path)
        return text.removeprefix(".")


class RouteError(Exception):
    """A route that cannot be: every fault that was found, at least one."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(f"{f.dotted}: {f.sentence}" for f in faults))
        self.faults = faults
