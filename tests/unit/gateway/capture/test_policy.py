"""What is decided per name and form: privacy before size, a name's settings before the general."""

from __future__ import annotations

import json

import pytest

from engines.tensors import BYTES, Raw
from gateway.prediction_log.capture.policy import (
    DROP,
    KEEP,
    Plain,
    Policies,
    Privacy,
    seal_context,
)
from gateway.prediction_log.privacy.features import FeatureRules
from gateway.prediction_log.privacy.tap import Privacy as Tap
from gateway.prediction_log_config import (
    CaptureConfig,
    FeatureRule,
    NameConfig,
    Over,
    PredictionLogConfig,
    SamplingConfig,
)
from tests.support.capture import NAME, Treatments, XorKey, policy_of

LIMIT_BYTES = 100
HASHED = Plain(change=lambda data: (BYTES, (1,), b"hashed"))
SEALED = Plain(is_sealed=True)


def _plans(over: Over, treatment: Plain = KEEP, elements: int = 101) -> tuple[bool, bool, bool]:
    capture = CaptureConfig(max_bytes=LIMIT_BYTES, over=over)
    policy = policy_of(capture, privacy=Treatments({"x": treatment}))
    plan = policy.plan("x", "UINT8", (elements,), elements, True)
    return plan.is_whole, plan.is_large, plan.is_deferred


@pytest.mark.parametrize("over", ["full", "truncate", "statistics", "thumbnail", "reference"])
def test_up_to_the_limit_a_tensor_is_whole_whatever_is_done_with_larger_ones(over: Over) -> None:
    assert _plans(over, elements=100) == (True, False, False)


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("full", (True, False, False)),
        ("truncate", (False, True, False)),
        ("statistics", (False, True, True)),
        ("thumbnail", (False, True, True)),
        ("reference", (False, True, True)),
    ],
)
def test_over_the_limit_what_takes_time_is_deferred(
    over: Over, expected: tuple[bool, bool, bool]
) -> None:
    assert _plans(over) == expected


@pytest.mark.parametrize("over", ["full", "truncate", "statistics", "reference"])
def test_a_dropped_tensor_is_no_work_and_a_large_sealed_one_is_not_reduced(over: Over) -> None:
    assert _plans(over, DROP) == (False, False, False)
    assert _plans(over, SEALED) == (False, False, True)
    assert _plans(over, SEALED, 100) == (False, False, False)


def test_a_change_of_much_is_deferred_and_one_of_little_is_not() -> None:
    policy = policy_of(CaptureConfig(max_bytes=8192), privacy=Treatments({"x": HASHED}))

    def is_deferred(datatype: str, elements: int, size: int) -> bool:
        return policy.plan("x", datatype, (1, elements), size, True).is_deferred

    assert not is_deferred(BYTES, 64, 640)
    assert is_deferred(BYTES, 65, 650)
    assert not is_deferred("FP32", 1_024, 4_096)
    assert is_deferred("FP32", 1_025, 4_100)
    assert is_deferred(BYTES, 1, 8_193)


def test_privacy_is_asked_once_per_form_whatever_the_size() -> None:
    privacy = Treatments()
    policy = policy_of(privacy=privacy)
    for size in (7, 8, 9):
        for is_input in (True, False):
            policy.plan("t", BYTES, (1,), size, is_input)
    assert privacy.asked == [("t", BYTES, (1,), True), ("t", BYTES, (1,), False)]


def test_a_names_settings_go_before_the_general_ones() -> None:
    config = PredictionLogConfig(
        sampling=SamplingConfig(share=0.5),
        capture=CaptureConfig(over="truncate"),
        names={
            NAME: NameConfig(
                sampling=SamplingConfig(slower_than_ms=3), capture={"image": "thumbnail"}
            )
        },
    )
    policies = Policies(config, privacy=None)
    here, elsewhere = policies.of(NAME), policies.of("other")
    assert here.sampler.weigh(bytes(16), 200, 3_001) == (1.0, "slow")
    assert elsewhere.sampler.share == 0.5
    for policy, expected in ((here, "thumbnail"), (elsewhere, "truncate")):
        assert policy.plan("image", "FP32", (1,), 9_999, True).over == expected
        assert policy.plan("x", "FP32", (1,), 9_999, True).over == "truncate"
    assert policies.of(NAME) is here


def test_columns_of_one_name_have_one_digest_in_any_order() -> None:
    there = policy_of(settings=NameConfig(columns={"b": ["1"], "a": ["x", "y"]}))
    here = policy_of(settings=NameConfig(columns={"a": ["x", "y"], "b": ["1"]}))
    other = policy_of(settings=NameConfig(columns={"a": ["y", "x"], "b": ["1"]}))
    assert here.columns_digest == there.columns_digest != other.columns_digest
    assert json.loads(here.columns_json) == {"a": ["x", "y"], "b": ["1"]}
    assert policy_of().columns_digest == b""


def test_nobodys_records_have_neither_tag_nor_key() -> None:
    privacy = Treatments(key=XorKey())
    assert policy_of(privacy=privacy).sealing_key("") is None
    assert policy_of(privacy=privacy).sealing_key("ada") is privacy.key
    assert (policy_of().sealing_key("ada"), policy_of().tag("ada")) == (None, b"")


def test_what_is_sealed_is_bound_to_its_record_and_its_name() -> None:
    assert seal_context(b"0123456789abcdef", "größe") == b"0123456789abcdef" + "größe".encode()


def test_the_privacy_of_a_configuration_is_what_a_policy_asks() -> None:
    settings = NameConfig(
        features={"note": "keep", "age": FeatureRule(bucket=5), "mail": "drop"},
    )
    config = PredictionLogConfig(names={NAME: settings})
    privacy: Privacy = Tap(config, keyring=None, keys=None)
    policy = Policies(config, privacy=privacy).of(NAME)
    assert isinstance(privacy.rules(NAME), FeatureRules)
    assert policy.plan("note", BYTES, (1,), 9, True).is_whole
    assert policy.plan("mail", BYTES, (1,), 9, True).treatment.is_dropped
    assert policy.plan("other", BYTES, (1,), 9, False).treatment.is_dropped
    change = policy.plan("age", "INT32", (2,), 8, True).treatment.change
    assert change is not None
    ages: Raw = (17).to_bytes(4, "little") + (20).to_bytes(4, "little")
    datatype, shape, data = change(ages)
    assert (datatype, shape) == ("INT32", (2,))
    assert bytes(data) == (15).to_bytes(4, "little") + (20).to_bytes(4, "little")
