"""What the admin API refuses, with which status, and where it points."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.admin import BROKEN, OTHER_INPUTS, Admin, variants

Json = Any  # Any: a JSON document
ABSENT = {"if-none-match": "*"}
GOOD = variants(stable=90, canary=10)
_TARGET = {"model": "digits", "version": "1"}
_NO_TABLE = ("", "/model", "/version", "/weight")
_BETA = {"header": {"x-beta": "yes"}}


def body(**changes: Json) -> Json:
    """Return a good document with some keys changed."""
    return {"variants": GOOD} | changes


def arm(**changes: Json) -> Json:
    """Return a good document with its only variant changed."""
    return {"variants": {"a": {**_TARGET, "weight": 100, **changes}}}


def rule(**changes: Json) -> Json:
    """Return a good rule with some keys changed."""
    return {"name": "beta", "when": _BETA, "to": "canary", **changes}


def when(**conditions: Json) -> Json:
    """Return a document with a rule about these conditions."""
    return body(rules=[rule(when=conditions)])


def shadow(**changes: Json) -> Json:
    """Return a document with a shadow changed."""
    return body(shadows={"s": {**_TARGET, "sample": 10, **changes}})


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ({}, ["/variants"]),
        ({"variants": {}}, ["/variants"]),
        ({"variants": [GOOD]}, ["/variants"]),
        ({"variants": variants(a=99.9)}, ["/variants"]),
        ({"variants": variants(a=50, b=50.0001)}, ["/variants"]),
        ({"variants": {"a": 100}}, [f"/variants/a{k}" for k in _NO_TABLE]),
        (arm(weight=None), ["/variants/a/weight"]),
        (arm(weight="100"), ["/variants/a/weight"]),
        (arm(weight=True), ["/variants/a/weight"]),
        (arm(weight=-1), ["/variants/a/weight"]),
        (arm(weight=10**400), ["/variants/a/weight"]),
        (arm(weight=99.99999), ["/variants/a/weight"]),
        (arm(version=1), ["/variants/a/version"]),
        (arm(version="01"), ["/variants/a/version"]),
        (arm(version="../1"), ["/variants/a/version"]),
        (arm(model="../digits"), ["/variants/a/model"]),
        (arm(wieght=1), ["/variants/a/wieght"]),
        ({"variants": {"a b": {**_TARGET, "weight": 100}}}, ["/variants/a b"]),
        (body(name="another"), ["/name"]),
        (body(kind="canary"), ["/kind"]),
        (body(weigths={}), ["/weigths"]),
        (body(stable="nobody"), ["/stable"]),
        (body(key=["cookie:user", "header:"]), ["/key/0", "/key/1"]),
        (body(key="header:x"), ["/key"]),
        (body(missing_key="drop"), ["/missing_key"]),
        (body(rollback_window_s=-1), ["/rollback_window_s"]),
        (body(rollback_window_s=1.5), ["/rollback_window_s"]),
        (body(fallback={"to": "nobody"}), ["/fallback/to"]),
        (body(fallback={"to": "stable", "on": ["error"]}), ["/fallback/on/0"]),
        (body(rules=[rule(to="nobody")]), ["/rules/0/to"]),
        (body(rules=[rule(), rule(name="again")]), ["/rules/1"]),  # never reached
        (body(rules=[rule(), rule(when={"header": {"x-b": "1"}})]), ["/rules/1/name"]),
        (
            body(rules=[rule(to="$header")]),
            ["/rules/0/when/role", "/rules/0/when/header/x-beta"],
        ),
        (body(rules=[rule(expires="tomorrow")]), ["/rules/0/expires"]),
        (body(rules=[rule(expires="2026-12-01T00:00:00")]), ["/rules/0/expires"]),
        (when(), ["/rules/0/when"]),
        (when(country="de"), ["/rules/0/when/country"]),
        (when(header={"x": {"in": []}}), ["/rules/0/when/header/x/in"]),
        (when(header={"x": {"present": False}}), ["/rules/0/when/header/x/present"]),
        (when(header={"X": "1", "x": "2"}), ["/rules/0/when/header"]),
        (when(key={"in": ["", 3]}), ["/rules/0/when/key/in/0", "/rules/0/when/key/in/1"]),
        (shadow(sample=101), ["/shadows/s/sample"]),
        (shadow(of=["nobody"]), ["/shadows/s/of/0"]),
        (shadow(limits={"queue_items": 0}), ["/shadows/s/limits/queue_items"]),
        (
            body(kind="x", stable=1, extra=1, shadows=[]),  # all of it at once
            ["/extra", "/shadows", "/kind", "/stable"],
        ),
    ],
)
def test_a_document_that_breaks_a_rule_is_refused_whole_with_every_pointer(
    admin: Admin, document: Json, pointers: list[str]
) -> None:
    answer = admin.send("PUT", "refused", document, headers=ABSENT)
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == pointers
    assert admin.http.get("/v1/routes/refused").status_code == 404
    name = admin.create()
    before = admin.of(name)
    assert admin.write("PUT", name, document).status_code == 422
    assert admin.of(name) == before


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"no JSON", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"7", "no JSON object"),
        (b'{"rollback_window_s": NaN}', "NaN"),
        (b'{"rollback_window_s": -Infinity}', "-Infinity"),
        (b'{"rollback_window_s": 1e99999999999999999999}', "out of all range"),
        (b'{"rollback_window_s": ' + b"9" * 5_000 + b"}", "no JSON"),
        (b'{"salt": "\xff"}', "no JSON"),
        (b'{"salt": "\\ud800"}', "no JSON"),
        (b'{"\\udfff": 1}', "no JSON"),
        (b'{"salt": "a", "salt": "b"}', "'salt' is there twice"),
        (b'{"variants": ' + b'{"a":' * 100 + b"1" + b"}" * 101, "nested"),
        (b'{"rules": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", "nested"),
        (b'{"a":' * 100_000, "nested"),
    ],
)
def test_a_body_that_cannot_be_read_is_400(admin: Admin, raw: bytes, said: str) -> None:
    name = admin.create()
    tag = {"if-match": admin.etag(name)}
    answers = [
        admin.send("PUT", name, raw, headers=tag),
        admin.send("PATCH", name, raw, headers=tag),
        admin.send("POST", f"{name}:setWeights", raw, headers=tag),
        admin.send("POST", f"{name}:abort", raw),
    ]
    for answer in answers:
        assert answer.status_code == 400
        assert said in answer.json()["error"]
    assert admin.of(name)["revision"] == 1


def test_a_number_beyond_a_double_is_a_weight_that_cannot_be(admin: Admin) -> None:
    name = admin.create()
    for number in (b"1e400", b"-1e400", b"1e-400", b"0." + b"3" * 1_000):
        raw = b'{"variants": {"stable": {"weight": ' + number + b"}}}"
        answer = admin.write("PATCH", name, raw)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/variants/stable/weight"


def test_a_patch_that_nests_as_deep_as_it_may_is_read_to_its_end(admin: Admin) -> None:
    name = admin.create()
    deep = b'{"variants": ' + b'{"a":' * 30 + b"1" + b"}" * 31
    answer = admin.write("PATCH", name, deep)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/variants/a/a"


def test_a_body_of_two_megabytes_is_413(admin: Admin) -> None:
    name = admin.create()
    raw = b'{"salt": "' + b"x" * (2 << 20) + b'"}'
    for method, path in (("PATCH", name), ("PUT", name), ("POST", f"{name}:abort")):
        answer = admin.write(method, path, raw)
        assert answer.status_code == 413
        assert "1048576" in answer.json()["error"]
    assert admin.of(name)["revision"] == 1


@pytest.mark.parametrize("flag", ["dry_run", "reseed", "accept_carryover"])
def test_a_flag_is_true_or_false(admin: Admin, flag: str) -> None:
    name = admin.create()
    answer = admin.write("PATCH", f"{name}?{flag}=maybe", {"rollback_window_s": 1})
    assert answer.status_code == 400
    assert flag in answer.json()["error"]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("77", "no version"),
        (BROKEN, "does not load"),
        (OTHER_INPUTS, "cannot stand in for digits/1"),
    ],
)
def test_a_version_that_cannot_serve_the_route_is_422_wherever_it_is_named(
    admin: Admin, version: str, said: str
) -> None:
    target = {"model": "digits", "version": version}
    name = admin.create()
    before = admin.of(name)
    by_patch = admin.write("PATCH", name, {"variants": {"canary": target}})
    as_shadow = admin.write("PATCH", name, {"shadows": {"s": {**target, "sample": 10}}})
    created = admin.send(
        "PUT",
        f"never-{version}",
        {"variants": GOOD | {"canary": {**target, "weight": 10}}},
        headers=ABSENT,
    )
    for answer, pointer in (
        (by_patch, "/variants/canary/version"),
        (as_shadow, "/shadows/s/version"),
        (created, "/variants/canary/version"),
    ):
        assert answer.status_code == 422, answer.text
        (fault,) = answer.json()["errors"]
        assert fault["pointer"] == pointer
        assert said in fault["detail"]
    assert admin.of(name) == before
    assert admin.infer(name, "somebody").status_code == 200
    assert admin.http.get(f"/v1/routes/never-{version}").status_code == 404


def test_a_model_that_is_not_there_is_422_and_named(admin: Admin) -> None:
    name = admin.create()
    answer = admin.write("PATCH", name, {"variants": {"canary": {"model": "nobody"}}})
    assert answer.status_code == 422
    assert "nobody" in answer.json()["error"]
    for verb in ("load", "unload"):
        assert admin.http.post(f"/v1/models/nobody/{verb}").status_code == 404


def test_a_model_that_does_not_come_up_is_503_and_says_why(admin: Admin) -> None:
    answer = admin.http.post("/v1/models/wreck/load")
    assert answer.status_code == 503
    assert "does not load" in answer.json()["error"]
    (row,) = [row for row in admin.get("/v1/models")["models"] if row["name"] == "wreck"]
    assert (row["state"], row["version"]) == ("UNAVAILABLE", "1")
    assert "does not load" in row["reason"]


def test_times_that_no_calendar_has_are_422(admin: Admin) -> None:
    name = admin.create()
    for expires in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"):
        answer = admin.write("PATCH", name, {"rules": [rule(expires=expires)]})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/rules/0/expires"


def test_a_rollback_window_that_ends_after_all_calendars_is_422(admin: Admin) -> None:
    name = admin.create()
    for window_s in (2**53, 10**12):
        answer = admin.write("PATCH", name, {"rollback_window_s": window_s})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/rollback_window_s"


def test_paths_and_methods_that_are_not_there_say_so(admin: Admin) -> None:
    admin.is_checked = False  # what is not described
    try:
        lost = admin.http.get("/v1/nothing")
        wrong = admin.http.post("/v1/routes")
    finally:
        admin.is_checked = True
    assert (lost.status_code, wrong.status_code) == (404, 405)
    assert "/v1/nothing" in lost.json()["error"]
    assert set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert wrong.json().keys() == {"error"}
