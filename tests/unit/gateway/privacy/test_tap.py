"""The tap: a configuration and its files, put together, and used by the record encoder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engines.tensors import Tensor, decode_bytes, encode_bytes
from gateway.config_fields import ConfigError
from gateway.prediction_log.capture import policy
from gateway.prediction_log.capture.policy import NamePolicy, seal_context
from gateway.prediction_log.encoder import RecordEncoder
from gateway.prediction_log.privacy.seal import cipher, unwrap
from gateway.prediction_log.privacy.tap import Privacy
from gateway.prediction_log.record import Origin, PredictionRecord, Reduced, decode
from gateway.prediction_log_config import FeatureRule, NameConfig, PredictionLogConfig
from gateway.request import InferRequest
from tests.support.privacy import MASTER_KEY, SECOND_KEY, settings_of, tap_of, write_keys

NAMES = {
    "digits": NameConfig(
        columns={"x": ["age", "income"]},
        features={"x.age": FeatureRule(bucket=10), "mail": "hash", "note": "seal", "y": "keep"},
    )
}
RID = bytes(range(16))


def record_of(subject: str) -> PredictionRecord:
    inputs = (
        Tensor("x", "FP32", (1, 2), np.array([37, 5], "<f4").tobytes()),
        Tensor("mail", "BYTES", (1,), encode_bytes([b"alice@example.org"])),
        Tensor("note", "BYTES", (1,), encode_bytes([b"very private"])),
        Tensor("free", "BYTES", (1,), encode_bytes([b"who knows"])),
    )
    outputs = (Tensor("y", "BYTES", (1,), encode_bytes([b"seven"])),)
    return PredictionRecord(
        Origin(name="digits"), RID, 1, 200, inputs=inputs, outputs=outputs, subject=subject
    )


def encoded(privacy: Privacy, config: PredictionLogConfig, subject: str) -> bytes:
    # The tap is what capture asks for, which mypy checks here.
    asked: policy.Privacy = privacy
    encoder = RecordEncoder(worker="w", policy=NamePolicy("digits", config, privacy=asked))
    blob = encoder.encode(record_of(subject), 1)
    assert isinstance(blob, bytes)
    return blob


def test_a_record_holds_what_the_rules_leave_and_the_subjects_tag(tmp_path: Path) -> None:
    config, blobs = settings_of(NAMES), list[bytes]()
    privacy = tap_of(tmp_path, config, on_new_key=lambda tag, key_id, blob: blobs.append(blob))
    blob = encoded(privacy, config, "alice")
    for raw in (b"alice", b"very private", b"who knows"):
        assert raw not in blob
    logged = decode(blob)
    assert logged.subject == privacy.tag("alice")
    assert logged.inputs["x"].array().tolist() == [[30, 5]]
    assert len(decode_bytes(logged.inputs["mail"].data)[0]) == 32
    assert logged.inputs["free"].payload is None
    assert logged.outputs["y"].array().tolist() == [b"seven"]
    sealed = logged.inputs["note"].payload
    assert isinstance(sealed, Reduced)
    key = unwrap(blobs[0], cipher(MASTER_KEY))
    assert len(blobs) == 1
    assert key.open(sealed.data, seal_context(RID, "note")) == encode_bytes([b"very private"])


def test_what_would_be_sealed_is_dropped_where_nobody_is_named(tmp_path: Path) -> None:
    config, blobs = settings_of(NAMES), list[bytes]()
    privacy = tap_of(tmp_path, config, on_new_key=lambda tag, key_id, blob: blobs.append(blob))
    logged = decode(encoded(privacy, config, ""))
    assert logged.subject == b""
    assert logged.inputs["note"].payload is None
    assert not blobs


def test_without_privacy_settings_nobody_is_named_and_text_is_dropped(tmp_path: Path) -> None:
    config = PredictionLogConfig()
    privacy = Privacy.build(config, tmp_path, on_new_key=lambda *_: None)
    request = InferRequest("digits", header=lambda name: "alice")
    assert privacy.subject_of(request) == ""
    assert privacy.tag("alice") == b""
    assert privacy.sealing_key(b"t" * 16) is None
    assert privacy.rules("any").treatment("s", "BYTES", (1,), True).is_dropped
    assert not privacy.rules("any").treatment("x", "FP32", (1,), True).is_dropped
    assert not privacy.reload_if_changed()
    assert privacy.key_blobs() == []
    privacy.forget(b"t" * 16)


def test_the_subject_comes_from_where_the_configuration_says(tmp_path: Path) -> None:
    privacy = tap_of(tmp_path, settings_of())
    request = InferRequest("digits", header={"x-customer": "alice"}.get)
    assert privacy.subject_of(request) == "alice"
    assert privacy.tag("") == b""
    assert privacy.sealing_key(b"") is None


def test_a_name_without_settings_drops_the_input_that_names_the_subject(tmp_path: Path) -> None:
    privacy = tap_of(tmp_path, settings_of(subject="input:who"))
    assert privacy.rules("any").treatment("who", "INT64", (1,), True).is_dropped


def test_a_changed_key_file_is_taken_over(tmp_path: Path) -> None:
    privacy = tap_of(tmp_path, settings_of())
    path = write_keys(tmp_path / "keys", f"0 {'00' * 16}", f"1 {SECOND_KEY}")
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))
    assert privacy.reload_if_changed()
    assert privacy.tag("alice")[0] == 1


def test_after_an_erasure_a_subject_gets_another_key(tmp_path: Path) -> None:
    made: list[bytes] = []
    privacy = tap_of(
        tmp_path, settings_of(), on_new_key=lambda tag, key_id, blob: made.append(key_id)
    )
    tag = privacy.tag("alice")
    privacy.sealing_key(tag)
    privacy.sealing_key(tag)
    assert len(made) == len(privacy.key_blobs()) == 1
    privacy.forget(tag)
    privacy.sealing_key(tag)
    assert len(set(made)) == 2


@pytest.mark.parametrize("absent", ["keys", "master"])
def test_a_file_that_is_absent_is_refused_by_name(tmp_path: Path, absent: str) -> None:
    tap_of(tmp_path, settings_of())
    (tmp_path / absent).unlink()
    with pytest.raises(ConfigError) as refusal:
        Privacy.build(settings_of(), tmp_path, on_new_key=lambda *_: None)
    assert refusal.value.path == str(tmp_path / absent)
