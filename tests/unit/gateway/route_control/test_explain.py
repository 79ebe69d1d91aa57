"""Explaining a decision: always the one that a request would get, and never a drawn one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.directory import read_key
from gateway.request import InferRequest
from gateway.route_control.explain import Question, explain
from router import document
from router.policy import CompiledRoute, KeyRequired
from router.routes import Route
from router.rules import Facts
from tests.support.replicas import NAME, T0_MS, body, route

HEADER: Final = "x-user-id"
OVERRIDE: Final = {
    "name": "testers",
    "when": {"header": {"x-variant": {"in": ["stable", "canary"]}}, "role": "tester"},
    "to": "$header",
}
TENANT: Final = {"name": "acme", "when": {"tenant": "acme"}, "to": "canary"}
BY_KEY: Final = {"name": "key", "when": {"key": {"in": ["u1", "é"]}}, "to": "canary"}
PREFIX: Final = {"name": "beta", "when": {"header": {"x-region": {"prefix": "ü"}}}, "to": "stable"}


def always(model: str, version: str) -> bool:
    return True


def never(model: str, version: str) -> bool:
    return False


def compiled(canary: float = 30, **fields: Any) -> CompiledRoute:  # Any: JSON
    key = [f"header:{HEADER}", "parameter:user"]
    return CompiledRoute.compile(route(canary, **({"key": key} | fields)), now_ms=T0_MS)


TEXT: Final = st.one_of(
    st.sampled_from(["", "u1", "é", "u2", "acme", "tester", "stable", "canary", "über"]),
    st.text(max_size=8),
)


@given(
    canary=st.sampled_from([0, 0.0001, 30, 100]),
    rules=st.lists(st.sampled_from([OVERRIDE, TENANT, BY_KEY, PREFIX]), unique_by=id),
    missing_key=st.sampled_from(["random", "stable", "reject"]),
    question=st.builds(
        Question,
        headers=st.dictionaries(st.sampled_from([HEADER, "X-Variant", "x-region"]), TEXT),
        parameters=st.dictionaries(st.sampled_from(["user", ""]), TEXT),
        tenant=st.sampled_from(["", "acme", "other"]),
        role=st.sampled_from(["", "tester"]),
    ),
)
def test_explained_is_what_a_request_with_the_same_headers_would_get(
    canary: float,
    rules: list[Any],  # Any: JSON
    missing_key: str,
    question: Question,
) -> None:
    split = compiled(canary, rules=rules, missing_key=missing_key)
    request = _request(question.headers, question.parameters)
    key = read_key(split.route, request, None)
    roles = frozenset((question.role,)) if question.role else frozenset[str]()
    facts = Facts(header=request.header, tenant=question.tenant, roles=roles)
    answer = explain(split, question, always)
    assert answer["key"] == (key.decode() if key else None)
    try:
        decision = split.decide(key, lambda: 0.0, facts)
    except KeyRequired:
        assert answer["reason"] == "rejected"
        return
    assert answer["reason"] == decision.reason
    assert answer["override_ignored"] == decision.override_ignored
    if decision.reason == "random":
        assert answer["variant"] is None
    else:
        assert (answer["variant"], answer["served"]) == (decision.variant.name,) * 2
        assert answer["propensity"] == decision.propensity
        assert answer["version"] == decision.variant.version
    if decision.reason == "slot":
        assert answer["slot"] == decision.slot


def _request(headers: Mapping[str, str], parameters: Mapping[str, str]) -> InferRequest:
    """Return a request as it is decoded: a header has one character per byte of UTF-8."""
    received = {name.lower(): text.encode().decode("latin-1") for name, text in headers.items()}
    return InferRequest(name=NAME, parameters=dict(parameters), header=received.get)


def test_a_key_in_the_question_is_taken_whatever_the_routes_sources() -> None:
    answer = explain(compiled(key=[]), Question(key="user-0", headers={HEADER: "u2"}), always)
    assert (answer["key"], answer["key_source"]) == ("user-0", "query")


def test_the_slot_and_the_hash_are_those_of_the_function_that_is_written_down() -> None:
    answer = explain(compiled(salt="exp1"), Question(key="user-0"), always)
    assert answer["slot"] == 292417
    assert int(answer["hash"], 16) * 1_000_000 >> 64 == 292417
    assert len(answer["hash"]) == 16


def test_the_first_source_that_is_present_is_named() -> None:
    split = compiled()
    given_both = Question(headers={"X-USER-ID": "a"}, parameters={"user": "b"})
    assert explain(split, given_both, always)["key_source"] == f"header:{HEADER}"
    empty = Question(headers={HEADER: ""}, parameters={"user": "b"})
    answer = explain(split, empty, always)
    assert (answer["key"], answer["key_source"]) == ("b", "parameter:user")


def test_a_principal_is_no_parameter_without_a_name() -> None:
    split = compiled(key=["principal", "parameter:user"])
    answer = explain(split, Question(parameters={"": "x", "user": "b"}), always)
    assert (answer["key"], answer["key_source"]) == ("b", "parameter:user")


def test_without_a_key_nothing_is_drawn_the_shares_are_told() -> None:
    answer = explain(compiled(30), Question(), always)
    assert (answer["reason"], answer["variant"], answer["propensity"]) == ("random", None, None)
    assert {k: float(v) for k, v in answer["distribution"].items()} == {"stable": 70, "canary": 30}


def test_a_request_that_would_be_rejected_is_said_to_be_so() -> None:
    answer = explain(compiled(missing_key="reject"), Question(), always)
    assert answer["reason"] == "rejected"
    assert answer["error"] == f"route 'digits' needs a key: header:{HEADER} or parameter:user"
    assert answer["slot"] is None


def test_an_override_by_nobody_is_said_to_be_ignored() -> None:
    split = compiled(rules=[OVERRIDE])
    asked = Question(key="k", headers={"x-variant": "canary"})
    answer = explain(split, asked, always)
    assert (answer["reason"], answer["override_ignored"]) == ("slot", True)
    asked = Question(key="k", headers={"x-variant": "canary"}, role="tester")
    answer = explain(split, asked, always)
    assert (answer["reason"], answer["rule"]) == ("rule:testers", "testers")
    assert (answer["variant"], answer["override_ignored"]) == ("canary", False)


@pytest.mark.parametrize(
    ("is_ready", "fallback", "served"),
    [
        (always, None, "canary"),
        (never, None, None),
        (never, {"to": "stable"}, None),
        (lambda _, version: version == "1", {"to": "stable"}, "stable"),
        (lambda _, version: version == "1", None, None),
    ],
)
def test_a_variant_that_cannot_serve_is_told_apart_from_who_does(
    is_ready: Any,  # Any: a lambda
    fallback: object,
    served: str | None,
) -> None:
    split = compiled(100, fallback=fallback)
    answer = explain(split, Question(key="k"), is_ready)
    assert (answer["variant"], answer["version"], answer["served"]) == ("canary", "2", served)


def test_shadows_are_those_that_would_be_sent_a_copy_for_certain() -> None:
    def shadow(sample: float, *of: str) -> dict[str, object]:
        return {"model": "digits", "version": "3", "sample": sample, "of": list(of)}

    shadows = {
        "all": shadow(100),
        "half": shadow(50),
        "none": shadow(0),
        "other": shadow(100, "canary"),
    }
    split = compiled(0, shadows=shadows, missing_key="stable")
    keyed = [explain(split, Question(key=f"u{n}"), always)["shadows"] for n in range(200)]
    assert all("all" in found and "none" not in found for found in keyed)
    assert all("other" not in found for found in keyed)
    assert 60 < sum("half" in found for found in keyed) < 140
    assert explain(split, Question(), always)["shadows"] == ["all"]


def test_the_answer_is_that_of_the_route_that_is_compiled() -> None:
    changed: Route = document.read(body(0), name=NAME, revision=7)
    answer = explain(CompiledRoute.compile(changed), Question(key="k"), always)
    assert (answer["route"], answer["revision"]) == (NAME, 7)


def test_a_rule_about_a_header_beyond_ascii_holds_as_it_would_for_a_request() -> None:
    split = compiled(0, rules=[PREFIX, OVERRIDE], missing_key="stable")
    answer = explain(split, Question(headers={"X-Region": "über"}), always)
    assert answer["reason"] == "rule:beta"
