"""What becomes of each tensor of a public name: kept, dropped, hashed, rounded, or sealed.

Knows the rules of one name's settings; knows no records. Rules fail closed: what a rule cannot be
applied to (a bucket of text, columns of a tensor that has another number of them) is dropped, which
is logged once per tensor.

The cases, for a tensor of some name, first match first:
1. a rule of the tensor: drop, keep, seal, hash (its elements become 32 hex characters each, as
   BYTES), bucket (its numbers are rounded down);
2. no rule, and it is BYTES: dropped;
3. no rule, and it is the input that names the data subject: dropped;
4. no rule: kept.
Rules of its columns are applied first, to what is not dropped: drop blanks the column, bucket
rounds it.

Cost: for an ordinary tensor nothing, since its treatment is looked up per form; for one with a rule
a copy and 2 to 5 us of numpy, or 1.5 us per element whose hash is not remembered.
Threads: a change may be called from any.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from engines.tensors import BYTES, DATATYPES, Raw, decode_bytes, encode_bytes
from gateway.config_fields import ConfigError
from gateway.prediction_log.privacy.columns import blank, floor_to, writable
from gateway.prediction_log.privacy.keyring import Keyring
from gateway.prediction_log_config import FeatureRule, NameConfig

Change = Callable[[Raw], tuple[str, tuple[int, ...], Raw]]
"""Takes a tensor's raw elements; returns datatype, shape and elements as they are written."""
Step = Callable[[Raw], Raw]
"""One rule's work on raw elements of a known form: same datatype, same shape."""

MAX_HASHED_ELEMENTS: Final = 4_096
"""A tensor of more elements is dropped where it would be hashed: it has no use as pseudonyms."""
_HASH_LENGTH: Final = (32).to_bytes(4, "little")
_KEEP: Final = FeatureRule(action="keep")
_DROP: Final = FeatureRule(action="drop")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Treatment:
    """What to do with the tensors of one form, in this order."""

    is_dropped: bool = False
    change: Change | None = None
    """To be applied first; None: nothing is changed."""
    is_sealed: bool = False
    """What the change left is encrypted with the subject's key; dropped where nobody is named."""


KEEP: Final = Treatment()
DROP: Final = Treatment(is_dropped=True)
SEAL: Final = Treatment(is_sealed=True)


class FeatureRules:
    """The rules of one public name.

    Args:
        name: it, for messages.
        settings: its features and columns; checked by prediction_log_config.check.
        keyring: needed where a rule is `hash`.
        subject_input: the tensor that names the data subject; empty: none does.

    Raises:
        ConfigError: a rule asks for a hash and there are no keys, or for an infinite bucket.
    """

    def __init__(
        self, name: str, settings: NameConfig, keyring: Keyring | None, subject_input: str = ""
    ) -> None:
        self._name = name
        self._keyring = keyring
        self._columns = settings.columns
        self._subject_input = subject_input
        self._tensors: dict[str, FeatureRule] = {}
        self._column_rules: dict[str, list[tuple[int, FeatureRule]]] = {}
        self._told: set[str] = set()
        for feature, given in settings.features.items():
            rule = given if isinstance(given, FeatureRule) else FeatureRule(action=given)
            self._add(feature, rule)
        self._check(f"$.prediction_log.names.{name}.features")

    def treatment(
        self, tensor: str, datatype: str, shape: tuple[int, ...], is_input: bool
    ) -> Treatment:
        """Return what to do with tensors of a form. To be asked once per form."""
        rule = self._rule_of(tensor, datatype, is_input)
        if rule.action == "drop" or datatype not in DATATYPES:  # of a request that was refused
            return DROP
        if (rule.bucket is not None and datatype == BYTES) or not self._fits(tensor, shape):
            return self._refuse(tensor, datatype, shape)
        steps = self._column_steps(tensor, datatype)
        if rule.bucket is not None:
            steps.append(partial(_floor_all, datatype, rule.bucket))
        if rule.action == "hash":
            if math.prod(shape) > MAX_HASHED_ELEMENTS:
                return self._refuse(tensor, datatype, shape)
            return Treatment(change=self._hashing(datatype, shape, steps))
        is_sealed = rule.action == "seal"
        if not steps:
            return SEAL if is_sealed else KEEP
        return Treatment(change=_Form(datatype, shape, steps), is_sealed=is_sealed)

    def _rule_of(self, tensor: str, datatype: str, is_input: bool) -> FeatureRule:
        rule = self._tensors.get(tensor)
        if rule is not None:
            return rule
        if datatype == BYTES or (is_input and tensor == self._subject_input):
            return _DROP
        return _KEEP

    def _fits(self, tensor: str, shape: tuple[int, ...]) -> bool:
        """Whether the rules of a tensor's columns can be applied to a shape."""
        if tensor not in self._column_rules:
            return True
        return len(shape) > 0 and shape[-1] == len(self._columns[tensor])

    def _column_steps(self, tensor: str, datatype: str) -> list[Step]:
        rules = self._column_rules.get(tensor, [])
        if not rules:
            return []
        width = len(self._columns[tensor])
        dropped = [column for column, rule in rules if rule.action == "drop"]
        floored = [(column, rule.bucket) for column, rule in rules if rule.bucket is not None]
        if datatype == BYTES:
            # Text has no multiples.
            blanked = frozenset(dropped) | {column for column, _ in floored}
            return [partial(_blank_texts, width, blanked)] if blanked else []
        if not dropped and not floored:
            return []
        return [partial(_change_columns, datatype, width, dropped, floored)]

    def _hashing(self, datatype: str, shape: tuple[int, ...], steps: list[Step]) -> Change:
        if self._keyring is None:
            raise RuntimeError("a hash without keys")  # refused at the start, see _check
        return _Form(datatype, shape, steps, self._keyring)

    def _refuse(self, tensor: str, datatype: str, shape: tuple[int, ...]) -> Treatment:
        if tensor not in self._told:
            self._told.add(tensor)
            _log.warning(
                "the rules of %s.%s do not fit %s %s: it is not recorded",
                self._name,
                tensor,
                datatype,
                list(shape),
            )
        return DROP

    def _add(self, feature: str, rule: FeatureRule) -> None:
        tensor, _, column = feature.rpartition(".")
        columns = self._columns.get(tensor, [])
        if tensor and column in columns:
            places = [place for place, name in enumerate(columns) if name == column]
            self._column_rules.setdefault(tensor, []).extend((place, rule) for place in places)
        else:
            self._tensors[feature] = rule

    def _check(self, path: str) -> None:
        rules = [*self._tensors.values(), *(r for rs in self._column_rules.values() for _, r in rs)]
        if any(rule.bucket is not None and not math.isfinite(rule.bucket) for rule in rules):
            raise ConfigError(path, "a bucket is a finite number")
        for tensor, rule in self._tensors.items():
            if rule.action == "hash" and self._keyring is None:
                raise ConfigError(f"{path}.{tensor}", "a hash needs privacy.key_file")


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """A change of the tensors of one form."""

    datatype: str
    shape: tuple[int, ...]
    steps: Sequence[Step]
    keyring: Keyring | None = None
    """The elements that the steps left are hashed with it."""

    def __call__(self, data: Raw) -> tuple[str, tuple[int, ...], Raw]:
        """Apply the change. A refused request's bytes may contradict its shape: nothing is kept."""
        try:
            for step in self.steps:
                data = step(data)
            if self.keyring is None:
                return self.datatype, self.shape, data
            elements = _elements(self.datatype, data)
        except ValueError:
            return self.datatype, (0,), b""
        if len(elements) != math.prod(self.shape):
            return BYTES, (0,), b""
        return BYTES, self.shape, b"".join(map(_HASH_LENGTH.__add__, self.keyring.hashes(elements)))


def _elements(datatype: str, data: Raw) -> list[bytes]:
    if datatype == BYTES:
        return decode_bytes(data)
    size, whole = DATATYPES[datatype].item_bytes, bytes(data)
    if len(whole) % size:
        raise ValueError(f"{len(whole)} bytes are no {datatype} elements")
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _floor_all(datatype: str, step: float, data: Raw) -> Raw:
    elements = writable(data, datatype)[1]
    return floor_to(elements, datatype, step).tobytes()


def _change_columns(
    datatype: str,
    width: int,
    dropped: Sequence[int],
    floored: Sequence[tuple[int, float]],
    data: Raw,
) -> Raw:
    copy, flat = writable(data, datatype)
    table = flat.reshape(-1, width)
    for column in dropped:
        blank(table[:, column], datatype)
    for column, step in floored:
        table[:, column] = floor_to(table[:, column], datatype, step)
    return copy


def _blank_texts(width: int, blanked: frozenset[int], data: Raw) -> Raw:
    elements = decode_bytes(data)
    return encode_bytes(
        b"" if place % width in blanked else element for place, element in enumerate(elements)
    )
