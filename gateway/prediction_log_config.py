"""The [prediction_log] sections of sluice.toml: how safe, how much, what of it, and for how long.

Shapes and their checks only; docs/prediction-log.md tells what they do.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from gateway.config_fields import (
    ConfigError,
    Name,
    NonNegative,
    Positive,
    Seconds,
    Section,
    Share,
)

Over = Literal["full", "truncate", "statistics", "thumbnail", "reference"]
"""What is kept of a tensor over `max_bytes`."""
FeatureAction = Literal["keep", "drop", "hash", "seal"]
_KEY_SOURCES = ("header:", "parameter:", "input:")


class SpoolConfig(Section, frozen=True):
    """The segment files that records are appended to before they are shipped to Redis."""

    directory: str = "spool"
    """Folder, relative to the configuration file; each replica has a folder of its own in it."""
    segment_bytes: Annotated[int, Meta(ge=65_536)] = 64 << 20
    """Size of one segment file, allocated before it is needed."""
    max_bytes: Annotated[int, Meta(ge=131_072)] = 8 << 30
    """Most bytes of all segments; over it `on_full` applies."""
    min_free_bytes: NonNegative = 256 << 20
    """The file system is left this much; below it `on_full` applies."""
    fsync_ms: Positive = 10
    """Durability disk: longest wait for others to share an fdatasync with."""
    retain_s: NonNegative = 900
    """Shipped segments are kept this long, to be sent again to a Redis that forgot."""
    retain_bytes: NonNegative = 1 << 30
    """Most bytes of shipped segments kept."""


class RetentionConfig(Section, frozen=True):
    """How long records stand in Redis. Applied with every write, and once a minute."""

    for_s: NonNegative = 604_800
    """Older entries are trimmed; 0: not by time."""
    max_entries: Positive = 1_000_000
    """Most entries per stream, approximately."""
    max_bytes: NonNegative = 0
    """Most bytes of records per stream, estimated from their mean size; 0: not by bytes."""
    max_big_entries: Positive = 1_000
    """Most entries of a stream of whole large tensors, approximately."""
    respect_groups: list[str] = []
    """Consumer groups whose unread entries are kept beyond the two limits above."""
    grace_s: NonNegative = 3_600
    """How much longer they are kept for those groups."""


class SamplingConfig(Section, frozen=True):
    """Which answers are logged. Errors always are."""

    share: Share = 1.0
    """Share of the answers, chosen by a hash of the request id; the weight is in each record."""
    slower_than_ms: NonNegative = 0
    """Answers that took longer are always logged; 0: none is logged for that."""


class CaptureConfig(Section, frozen=True):
    """What is kept of large tensors."""

    max_bytes: NonNegative = 8_192
    """A tensor up to this size is kept whole."""
    over: Over = "statistics"
    """What is kept of a larger one: all of it, its first max_bytes, statistics and a hash, those
    and a thumbnail, or those and a file."""
    full_share: Share = 0.0
    """Share of the records with larger tensors that are also written whole, to the big stream."""
    references: str = "references"
    """Folder of the files of `over = "reference"`, relative to the spool's folder."""
    references_max_bytes: Positive = 8 << 30
    """Most bytes of those files; the oldest are deleted."""
    queue_bytes: Positive = 256 << 20
    """Most bytes of tensors that wait to be reduced; over it they are recorded as skipped."""


class PrivacyConfig(Section, frozen=True):
    """Whose data it is, and the keys that hide it."""

    subject: str = ""
    """Where a request names its data subject: header:NAME, parameter:NAME or input:NAME; empty:
    records carry no subject."""
    key_file: str = ""
    """File of the keys of subjects' tags and of hashed features, relative to the configuration
    file: one `id hex-key` per line, the last one in use. `sluice log rotate-key` adds one."""
    master_key_file: str = ""
    """File of 32 random bytes in hex, which wraps the subjects' own keys; needed to seal."""
    keys_url: str = ""
    """The Redis that keeps the wrapped keys; empty: the one of [redis]."""


class FeatureRule(Section, frozen=True):
    """What becomes of a feature: exactly one of the two fields."""

    action: FeatureAction | None = None
    """keep, drop, hash (a keyed hash in its place) or seal (encrypted with the subject's key)."""
    bucket: Annotated[float, Meta(gt=0)] | None = None
    """Numbers are rounded down to a multiple of this."""


class NameConfig(Section, frozen=True):
    """What is different for one public name (a route or a model)."""

    sampling: SamplingConfig | None = None
    """Absent: that of [prediction_log.sampling]."""
    capture: dict[str, Over] = {}
    """What is kept of a tensor over max_bytes, by the tensor's name."""
    columns: dict[str, list[str]] = {}
    """Names of the last axis of a tensor, by the tensor's name: for readers and for the rules."""
    features: dict[str, FeatureAction | FeatureRule] = {}
    """By tensor, or `tensor.column`: keep, drop, hash, seal, or {bucket = 5}. Without a rule
    numbers are kept and text (BYTES) is dropped."""


class FeedbackConfig(Section, frozen=True):
    """Ground truth that callers send back."""

    enabled: bool = True
    """false: feedback is refused."""
    horizon_s: Positive = 2_592_000
    """Feedback on a request older than this is refused as too late."""
    require_principal: bool = False
    """true: only callers with an API key of [principals] may send it."""


class PredictionLogConfig(Section, frozen=True):
    """The prediction log: how records are kept safe, and how they are sent to Redis."""

    enabled: bool = True
    """false: serve without a log even where there is a [redis] section."""
    durability: Literal["memory", "process", "disk"] = "process"
    """What an answered request's record outlives: nothing (a bounded buffer), a kill -9 of the
    gateway (written to a file before the answer leaves), or a loss of power (synced as well)."""
    append: Literal["loop", "thread"] = "loop"
    """Who writes the file: the event loop itself, or a thread for which the answers wait."""
    on_full: Literal["drop_new", "drop_oldest_segment", "block"] = "drop_new"
    """What happens when the spool is full: new records are dropped, or the oldest unsent ones, or
    answers wait for at most `block_max_ms`; all of it is counted."""
    block_max_ms: Positive = 100
    """Longest wait of an answer for room, with `on_full = "block"`."""
    buffer_records: Positive = 65_536
    """Most records in memory: of durability memory, and those on their way to a thread."""
    buffer_bytes: Positive = 256 << 20
    """Most bytes of the same."""
    batch_records: Annotated[int, Meta(ge=1, le=512)] = 256
    """Most records per write to Redis."""
    linger_ms: NonNegative = 20
    """Longest wait for such a write to fill."""
    timeout_s: Annotated[float, Meta(gt=0)] = 2.0
    """Longest wait for Redis to answer one write."""
    replay_factor: Annotated[float, Meta(ge=1)] = 5.0
    """After an outage records are sent at most this many times as fast as they come in, and at
    least 10,000 per second."""
    audit_s: Annotated[float, Meta(gt=0)] = 60.0
    """How often the counts are written into the stream."""
    shutdown_s: Seconds = 5.0
    """Longest wait at stop for what is spooled to be sent; the next start sends the rest."""
    spool: SpoolConfig = SpoolConfig()
    retention: RetentionConfig = RetentionConfig()
    sampling: SamplingConfig = SamplingConfig()
    capture: CaptureConfig = CaptureConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    names: dict[Name, NameConfig] = {}


def check(config: PredictionLogConfig, path: str = "$.prediction_log") -> None:
    """Refuse what contradicts itself.

    Raises:
        ConfigError: with the path of the field at fault.
    """
    privacy = config.privacy
    if privacy.subject:
        kind = next((k for k in _KEY_SOURCES if privacy.subject.startswith(k)), "")
        if not kind or not privacy.subject.removeprefix(kind):
            sentence = "it is none of header:NAME, parameter:NAME, input:NAME"
            raise ConfigError(f"{path}.privacy.subject", sentence)
        if not privacy.key_file:
            raise ConfigError(f"{path}.privacy.key_file", "a subject's tag needs a key")
    if config.spool.max_bytes < 2 * config.spool.segment_bytes:
        raise ConfigError(f"{path}.spool.max_bytes", "it has no room for two segments")
    if config.append == "thread" and config.durability == "memory":
        raise ConfigError(f"{path}.append", "durability memory writes no file")
    for name, settings in config.names.items():
        _check_features(settings, privacy, f"{path}.names.{name}.features")


def _check_features(settings: NameConfig, privacy: PrivacyConfig, path: str) -> None:
    for feature, given in settings.features.items():
        at = f"{path}.{feature}"
        rule = given if isinstance(given, FeatureRule) else FeatureRule(action=given)
        if (rule.action is None) == (rule.bucket is None):
            raise ConfigError(at, "it is either an action or a bucket")
        if rule.action == "hash" and not privacy.key_file:
            raise ConfigError(at, "a hash needs privacy.key_file")
        if rule.action == "seal" and not (privacy.master_key_file and privacy.subject):
            raise ConfigError(at, "sealing needs privacy.master_key_file and privacy.subject")
        tensor, _, column = feature.rpartition(".")
        if tensor and tensor in settings.columns:
            if column not in settings.columns[tensor]:
                raise ConfigError(at, f"tensor {tensor!r} has no column {column!r}")
            if rule.action in ("hash", "seal"):
                raise ConfigError(at, f"one column cannot be {rule.action}ed: name the tensor")
