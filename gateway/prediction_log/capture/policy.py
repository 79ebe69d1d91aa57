"""What is kept of the records of one public name: decided once, and kept as values.

A record is weighed first (sampling.py). Of each tensor of a record that is kept, privacy decides
before size does: a tensor that is dropped or sealed is never reduced, and one that is changed is
judged by what the change left. A decision depends on a tensor's name, datatype, shape and size
alone, so it is made once per form (`NamePolicy.plan`).

Knows the settings and what it asks of privacy (the Protocols below); knows no key and no file.
Without privacy the default holds all the same: numbers are kept, text is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol

import msgspec

from engines.tensors import BYTES, DATATYPES, Raw
from gateway.memo import Memo
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.capture.sampling import Sampler, WholeShare
from gateway.prediction_log.record import Reduced
from gateway.prediction_log_config import NameConfig, Over, PredictionLogConfig

_COLUMNS_DIGEST_BYTES: Final = 8
_MAX_FORMS: Final = 1_024
# A change may be a keyed hash per element, 4 us each: more of them than this would be felt by the
# requests beside it. Numbers are mostly rounded, which costs next to nothing.
_MAX_CHANGED_TEXTS: Final = 64
_MAX_CHANGED_NUMBERS: Final = 1_024

Change = Callable[[Raw], tuple[str, tuple[int, ...], Raw]]
"""Returns datatype, shape and bytes of what stands for the bytes given; callable in any thread."""


class Treatment(Protocol):
    """What privacy makes of the tensors of one form."""

    @property
    def is_dropped(self) -> bool:
        """Nothing but name, datatype and shape is kept."""

    @property
    def change(self) -> Change | None:
        """Applied first; None: the bytes are kept as they are."""

    @property
    def is_sealed(self) -> bool:
        """What is left is encrypted with the subject's key; dropped where there is no subject."""


class Rules(Protocol):
    """The rules of one public name."""

    def treatment(
        self, tensor: str, datatype: str, shape: tuple[int, ...], is_input: bool
    ) -> Treatment:
        """Return what becomes of the tensors of a form; the answer is kept."""


class SealingKey(Protocol):
    """The key of one data subject; usable in any thread."""

    def seal(self, data: Raw, context: bytes, /) -> Reduced:
        """Encrypt; the context (a record's id and a tensor's name) is needed to open it again."""


class Privacy(Protocol):
    """Whose data it is, and what may be kept of it. Used on the event loop's thread."""

    def rules(self, name: str, /) -> Rules:
        """Return the rules of a public name."""

    def tag(self, subject: str, /) -> bytes:
        """Return the 16 bytes that stand for a data subject."""

    def sealing_key(self, tag: bytes, /) -> SealingKey | None:
        """Return a subject's key, made if need be; None: there is none to be had."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A treatment without change or seal."""

    is_dropped: bool = False
    change: Change | None = None
    is_sealed: bool = False


KEEP: Final = Plain()
DROP: Final = Plain(is_dropped=True)


class TextDropped:
    """The rules where none are given: text may hold anything, so it is dropped."""

    def treatment(
        self, tensor: str, datatype: str, shape: tuple[int, ...], is_input: bool
    ) -> Treatment:
        """Return what becomes of a tensor: that depends on its datatype alone."""
        is_number = datatype != BYTES and datatype in DATATYPES  # or of a request that was refused
        return KEEP if is_number else DROP


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is done with the tensors of one form."""

    treatment: Treatment
    over: Over
    """What is kept of what is left, if it is over the limit."""
    is_large: bool
    """Its bytes are over the limit, and will be reduced as far as is known before a change."""
    is_deferred: bool
    """Too much work for the event loop."""

    @property
    def is_whole(self) -> bool:
        """Whether the bytes are written as they are."""
        treatment = self.treatment
        is_plain = not (treatment.is_dropped or treatment.is_sealed or treatment.change)
        return is_plain and not self.is_large


def seal_context(request_id: bytes, tensor: str) -> bytes:
    """Return what a sealed tensor is bound to: moved to another record, it does not open."""
    return request_id + tensor.encode()


class NamePolicy:
    """All that is decided for the records of one public name.

    `plan` is asked once per form of a tensor, the rest with every record.
    """

    __slots__ = (
        "_capture",
        "_default_over",
        "_privacy",
        "_rules",
        "_treatments",
        "columns",
        "columns_digest",
        "columns_json",
        "max_bytes",
        "name",
        "references",
        "sampler",
        "whole_share",
    )

    def __init__(
        self,
        name: str,
        config: PredictionLogConfig,
        *,
        privacy: Privacy | None = None,
        references: References | None = None,
    ) -> None:
        settings = config.names.get(name) or NameConfig()
        sampling = settings.sampling or config.sampling
        self.name = name
        self.sampler = Sampler(sampling.share, sampling.slower_than_ms * 1_000)
        self.whole_share = WholeShare(config.capture.full_share)
        self.max_bytes = config.capture.max_bytes
        self.references = references
        self.columns = settings.columns
        """Names of the last axis by tensor; their JSON and its digest, for `schema_key(name)`."""
        self.columns_json = msgspec.json.encode(settings.columns, order="sorted")
        self.columns_digest = _digest(self.columns_json) if settings.columns else b""
        self._capture = settings.capture
        self._default_over = config.capture.over
        self._privacy = privacy
        self._treatments: Memo[tuple[str, str, tuple[int, ...], bool], Treatment] = Memo(_MAX_FORMS)
        self._rules: Rules = privacy.rules(name) if privacy is not None else TextDropped()

    def plan(
        self, tensor: str, datatype: str, shape: tuple[int, ...], size_bytes: int, is_input: bool
    ) -> Plan:
        """Return what is done with the tensors of a form."""
        form = (tensor, datatype, shape, is_input)
        treatment = self._treatments.get(form)
        if treatment is None:
            treatment = self._treatments.put(form, self._rules.treatment(*form))
        over = self._capture.get(tensor, self._default_over)
        if treatment.is_dropped:
            return Plan(treatment, over, is_large=False, is_deferred=False)
        is_over = size_bytes > self.max_bytes
        is_changed = treatment.change is not None
        is_large = is_over and over != "full" and not treatment.is_sealed
        is_deferred = (is_large and over != "truncate") or (is_over and treatment.is_sealed)
        if is_changed:
            limit = _MAX_CHANGED_TEXTS if datatype == BYTES else _MAX_CHANGED_NUMBERS
            is_deferred = is_deferred or is_over or math.prod(shape) > limit
        return Plan(treatment, over, is_large, is_deferred)

    def tag(self, subject: str) -> bytes:
        """Return the tag of a data subject: 16 bytes, or none where nobody's key makes tags."""
        return self._privacy.tag(subject) if self._privacy is not None else b""

    def sealing_key(self, subject: str) -> SealingKey | None:
        """Return the key that a record's sealed tensors need; None: they are dropped."""
        if self._privacy is None or not subject:
            return None
        return self._privacy.sealing_key(self._privacy.tag(subject))


class Policies:
    """The policies of all names. Names must be of a bounded set: each is kept for good."""

    def __init__(
        self,
        config: PredictionLogConfig,
        *,
        privacy: Privacy | None,
        references: References | None = None,
    ) -> None:
        self._config = config
        self._privacy = privacy
        self._references = references
        self._known: dict[str, NamePolicy] = {}

    def of(self, name: str) -> NamePolicy:
        """Return the policy of a name."""
        known = self._known.get(name)
        if known is None:
            made = NamePolicy(
                name, self._config, privacy=self._privacy, references=self._references
            )
            known = self._known[name] = made
        return known


def _digest(columns_json: bytes) -> bytes:
    return blake2b(columns_json, digest_size=_COLUMNS_DIGEST_BYTES).digest()
