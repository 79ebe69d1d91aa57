"""Whatever the configuration: what a rule hides, and who it is about, is in no byte of a record.

A marker stands in the tensors, and another one names the subject; the records are made by the real
encoder, with large tensors reduced and whole records sampled, and searched as bytes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from engines.tensors import Tensor, encode_bytes
from gateway.ids import uuid7
from gateway.prediction_log.capture.policy import NamePolicy
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.encoder import Deferred, RecordEncoder
from gateway.prediction_log.privacy.keyring import Keyring
from gateway.prediction_log.privacy.seal import SubjectKeys
from gateway.prediction_log.privacy.tap import Privacy
from gateway.prediction_log.record import Origin, PredictionRecord, decode
from gateway.prediction_log_config import (
    CaptureConfig,
    FeatureAction,
    FeatureRule,
    NameConfig,
    Over,
    PredictionLogConfig,
    PrivacyConfig,
)
from gateway.request import InferRequest
from tests.support.privacy import MASTER_KEY, NOW_MS, write_keys

MARKER = b"Zq7#mark"
WHO = b"\xc3\xa4W0!-who"  # also in UTF-8
_LIMIT_BYTES = 256

Action = FeatureAction | Literal["bucket", "none", "columns"]


@dataclass(frozen=True)
class Feature:
    """A tensor full of markers, and the rule for it."""

    datatype: str
    action: Action
    elements: int
    is_output: bool

    @property
    def hides(self) -> bool:
        """Whether its marker may not be found."""
        if self.datatype == "BYTES":
            return self.action != "keep"
        return self.action not in ("keep", "none")

    @property
    def bucket(self) -> FeatureRule:
        """A step that matters to the marker, which is about 1e209 as FP64."""
        return FeatureRule(bucket=1e300 if self.datatype == "FP64" else 1_000)

    @property
    def is_small(self) -> bool:
        """Whether it is within the limit, so that it is kept whole."""
        return len(self.tensor("").data) <= _LIMIT_BYTES

    def tensor(self, name: str) -> Tensor:
        marked = encode_bytes([b"<" + MARKER + b">"]) if self.datatype == "BYTES" else MARKER
        items = self.elements if self.datatype != "UINT8" else self.elements * len(MARKER)
        return Tensor(name, self.datatype, (1, items), marked * self.elements)


# Elements of 8 bytes and of 1: the marker is one INT64, an odd one, or eight UINT8.
features = st.builds(
    Feature,
    datatype=st.sampled_from(["BYTES", "INT64", "FP64", "UINT8"]),
    action=st.sampled_from(["none", "keep", "drop", "hash", "seal", "bucket", "columns"]),
    elements=st.sampled_from([1, 2, 40]),
    is_output=st.booleans(),
)


def settings_of(given_: dict[str, Feature]) -> NameConfig:
    columns: dict[str, list[str]] = {}
    rules: dict[str, FeatureAction | FeatureRule] = {}
    for name, feature in given_.items():
        if feature.action == "columns":
            width = feature.tensor(name).shape[-1]
            columns[name] = [str(n) for n in range(width)]
            if feature.datatype == "BYTES":
                rules[name] = "keep"
            rules |= {f"{name}.{n}": feature.bucket if n % 2 else "drop" for n in range(width)}
        elif feature.action == "bucket":
            rules[name] = feature.bucket
        elif feature.action != "none":
            rules[name] = feature.action
    return NameConfig(features=rules, columns=columns)


def everything_of(made: bytes | Deferred, folder: Path) -> list[bytes]:
    """Return all that is written of a record, in any state of it."""
    if isinstance(made, bytes):
        return [made]
    made.whole_seq = 1
    finished = made.finish()
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return [made.intent, made.skipped(), finished.blob, finished.whole or b"", *files]


@given(
    given_=st.lists(features, min_size=1, max_size=4),
    source=st.sampled_from(["", "header:who", "parameter:who", "input:who"]),
    is_number=st.booleans(),
    over=st.sampled_from(["full", "truncate", "statistics", "thumbnail", "reference"]),
    full_share=st.sampled_from([0.0, 1.0]),
    status=st.sampled_from([200, 400]),
)
def test_what_is_hidden_is_in_no_byte_of_the_record(
    given_: list[Feature],
    source: str,
    is_number: bool,
    over: Over,
    full_share: float,
    status: int,
) -> None:
    named = {f"t{n}": feature for n, feature in enumerate(given_)}
    config = PredictionLogConfig(
        privacy=PrivacyConfig(subject=source),
        capture=CaptureConfig(max_bytes=_LIMIT_BYTES, over=over, full_share=full_share),
        names={"digits": settings_of(named)},
    )
    inputs = [f.tensor(name) for name, f in named.items() if not f.is_output]
    outputs = [f.tensor(name) for name, f in named.items() if f.is_output]
    who = Tensor("who", "INT64", (1,), WHO[:8])
    if not is_number:
        who = Tensor("who", "BYTES", (1,), encode_bytes([WHO]))
    if source == "input:who":
        inputs.append(who)
    request = InferRequest(
        "digits",
        header={"who": WHO.decode("latin-1")}.get,
        parameters={"who": WHO.decode()},
        inputs=tuple(inputs),
    )
    blobs: list[bytes] = []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        ring = Keyring.load(write_keys(folder / "keys"))
        keys = SubjectKeys(
            MASTER_KEY, on_new_key=lambda tag, key_id, blob: blobs.append(blob), clock_ms=_now
        )
        privacy = Privacy(config, keyring=ring, keys=keys)
        references = References(folder / "references", max_bytes=1 << 20)
        policy = NamePolicy("digits", config, privacy=privacy, references=references)
        record = PredictionRecord(
            Origin(name="digits"),
            uuid7(NOW_MS, 1),
            NOW_MS * 1_000,
            status,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            subject=privacy.subject_of(request),
        )
        encoder = RecordEncoder(worker="w", policy=policy)
        for seq in (1, 2):  # first of its form, and remembered
            written = everything_of(encoder.encode(record, seq), folder / "references")
            written += blobs
            assert all(WHO not in blob and WHO[:8] not in blob for blob in written)
            if all(feature.hides for feature in given_):
                assert all(MARKER not in blob for blob in written)
            elif over == "full" or all(feature.is_small for feature in given_):
                assert any(MARKER in blob for blob in written)  # so the search does find it
        logged = decode(written[0])
        assert logged.subject == (privacy.tag(record.subject) if source else b"")


def _now() -> int:
    return NOW_MS
