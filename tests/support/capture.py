"""What is kept of records, as tests choose it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.tensors import Raw
from gateway.prediction_log.capture.policy import KEEP, NamePolicy, Privacy, Rules, Treatment
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.record import Reduced
from gateway.prediction_log_config import CaptureConfig, NameConfig, Over, PredictionLogConfig

NAME = "digits"
PLENTY = 1 << 20


@dataclass
class XorKey:
    """Hides bytes from the eye, so that tests see what was sealed with which context."""

    contexts: list[bytes] = field(default_factory=list)

    def seal(self, data: Raw, context: bytes, /) -> Reduced:
        """Flip all bits."""
        self.contexts.append(context)
        return Reduced(kind="seal", data=bytes(b ^ 0xFF for b in data), key_id=b"key 1")


@dataclass
class Treatments:
    """Privacy by a table: treatments by tensor, all others kept, text as well."""

    by_tensor: Mapping[str, Treatment] = field(default_factory=dict)
    key: XorKey | None = None
    asked: list[tuple[str, str, tuple[int, ...], bool]] = field(default_factory=list)
    tagged: list[str] = field(default_factory=list)

    def rules(self, name: str, /) -> Rules:
        """Return the same rules for each name."""
        return self

    def treatment(
        self, tensor: str, datatype: str, shape: tuple[int, ...], is_input: bool
    ) -> Treatment:
        """Look it up."""
        self.asked.append((tensor, datatype, shape, is_input))
        return self.by_tensor.get(tensor, KEEP)

    def tag(self, subject: str, /) -> bytes:
        """Return the subject, padded: tests see whose it is."""
        self.tagged.append(subject)
        return subject.encode().ljust(16, b".")[:16]

    def sealing_key(self, tag: bytes, /) -> XorKey | None:
        """Return the one key there is."""
        return self.key


def policy_of(
    capture: CaptureConfig | None = None,
    *,
    settings: NameConfig | None = None,
    privacy: Privacy | None = None,
    references: References | None = None,
) -> NamePolicy:
    """Return the policy of `NAME`; where no privacy is given, text is dropped."""
    config = PredictionLogConfig(
        capture=capture or CaptureConfig(), names={NAME: settings or NameConfig()}
    )
    return NamePolicy(NAME, config, privacy=privacy, references=references)


def keeping(max_bytes: int = PLENTY, over: Over = "truncate") -> NamePolicy:
    """Return a policy that keeps everything up to a size, text as well."""
    return policy_of(CaptureConfig(max_bytes=max_bytes, over=over), privacy=Treatments())
