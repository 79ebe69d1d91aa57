"""Routes over the admin API, against both kinds of store: documents, conditions, verbs."""

from __future__ import annotations

import pytest

from tests.support.admin import KEY, REASON, Admin, variants

ABSENT = {"if-none-match": "*"}


def test_a_created_route_is_there_and_serves(admin: Admin) -> None:
    body = {"key": [f"header:{KEY}"], "variants": variants(stable=90, canary=10)}
    answer = admin.send("PUT", "created", body, headers=ABSENT)
    assert answer.status_code == 201
    assert answer.headers["etag"] == '"g1-1"'
    written = answer.json()
    assert (written["changed"], written["dry_run"]) == (True, False)
    document = admin.of("created")
    assert document == written["document"]
    assert document["variants"] == body["variants"]
    assert document["derived"]["slots"] == [
        [0, 100_000, "canary", 1],
        [100_000, 1_000_000, "stable", 1],
    ]
    assert document["meta"]["verb"] == "create"
    assert document["meta"]["reason"] == REASON
    served = admin.infer("created", "somebody")
    assert served.status_code == 200
    assert served.headers["x-sluice-revision"] == "1"


def test_all_routes_are_listed_by_name(admin: Admin) -> None:
    for name in ("zebra", "aardvark"):
        admin.create(name)
    names = [document["name"] for document in admin.get("/v1/routes")["routes"]]
    assert names == sorted(names)
    assert {"zebra", "aardvark"} <= set(names)


def test_a_route_that_is_not_there_is_404_for_every_call(admin: Admin) -> None:
    at = {"if-match": '"g1-1"'}
    answers = [
        *(
            admin.http.get(f"/v1/routes/nobody{rest}")
            for rest in ("", "/revisions", "/revisions/1", "/explain", "/convergence", "/stats")
        ),
        admin.send("PUT", "nobody", {"variants": variants(a=100)}, headers=at),
        admin.send("PATCH", "nobody", {}, headers=at),
        admin.send("DELETE", "nobody", headers=at),
        *(
            admin.send("POST", f"nobody:{verb}", body, headers=at)
            for verb, body in (
                ("setWeights", {"weights": {"a": 100}}),
                ("promote", {}),
                ("abort", {}),
                ("undo", {}),
                ("restore", {}),
            )
        ),
    ]
    assert {answer.status_code for answer in answers} == {404}


def test_a_name_with_the_path_of_a_folder_is_no_route(admin: Admin) -> None:
    answer = admin.send("PUT", "%2e%2e", {"variants": variants(a=100)}, headers=ABSENT)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/name"


def test_put_replaces_the_whole_document(admin: Admin) -> None:
    name = admin.create(fallback={"to": "stable"}, shadows={"s": _shadow()})
    answer = admin.write("PUT", name, {"variants": variants(stable=50, next=50)})
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"g1-2"'
    document = admin.of(name)
    assert set(document["variants"]) == {"stable", "next"}
    assert (document["fallback"], document["shadows"], document["key"]) == (None, {}, [])


def test_a_document_can_be_sent_back_as_it_was_read(admin: Admin) -> None:
    name = admin.create(shadows={"s": _shadow()}, rules=[_rule("one", "x-a", "canary")])
    document = admin.of(name)
    answer = admin.write("PUT", name, document)
    assert answer.status_code == 200
    assert answer.json()["changed"] is False
    assert admin.of(name) == document


def test_a_patch_merges_and_null_removes(admin: Admin) -> None:
    name = admin.create(fallback={"to": "stable"}, shadows={"s": _shadow(), "t": _shadow()})
    admin.patch(name, {"shadows": {"s": None, "t": {"sample": 20}}, "fallback": None})
    document = admin.of(name)
    assert set(document["shadows"]) == {"t"}
    assert document["shadows"]["t"] == _shadow() | {"sample": 20, "limits": _LIMITS, "of": []}
    assert document["fallback"] is None
    assert set(document["variants"]) == {"stable", "canary"}


def test_a_patch_that_removes_a_variant_moves_its_keys_only(admin: Admin) -> None:
    name = admin.create()
    third = {"model": "digits", "version": "3", "weight": 10}
    admin.patch(name, {"variants": {"third": third, "stable": {"weight": 80}}})
    removed = admin.patch(name, {"variants": {"third": None, "stable": {"weight": 90}}})
    assert removed["moved_share_percent"] == 10.0
    assert set(admin.of(name)["variants"]) == {"stable", "canary"}


def test_a_patch_may_be_plain_json(admin: Admin) -> None:
    name = admin.create()
    plain = {"content-type": "application/json"}
    answer = admin.write("PATCH", name, {"rollback_window_s": 60}, headers=plain)
    assert answer.status_code == 200
    assert admin.of(name)["rollback_window_s"] == 60


def test_a_write_without_a_condition_is_428(admin: Admin) -> None:
    name = admin.create()
    body = {"variants": variants(stable=100)}
    answers = [
        admin.send("PUT", name, body),
        admin.send("PATCH", name, {}),
        admin.send("DELETE", name),
        admin.send("POST", f"{name}:setWeights", {"weights": {"stable": 90, "canary": 10}}),
        admin.send("POST", f"{name}:promote", {}),
        admin.send("POST", f"{name}:undo", {}),
    ]
    assert {answer.status_code for answer in answers} == {428}
    assert admin.of(name)["revision"] == 1


def test_a_stale_write_is_412_with_the_document_that_overtook_it(admin: Admin) -> None:
    name = admin.create()
    stale = {"if-match": admin.etag(name)}
    admin.verb(name, "setWeights", {"weights": {"canary": 20}, "take_from": "stable"})
    current, tag = admin.of(name), admin.etag(name)
    weights = {"weights": {"canary": 30}, "take_from": "stable"}
    answers = [
        admin.send("PUT", name, {"variants": variants(stable=100)}, headers=stale),
        admin.send("PATCH", name, {"rollback_window_s": 1}, headers=stale),
        admin.send("DELETE", name, headers=stale),
        admin.send("POST", f"{name}:setWeights", weights, headers=stale),
        admin.send("POST", f"{name}:promote", {}, headers=stale),
        admin.send("POST", f"{name}:undo", {}, headers=stale),
        admin.send("PUT", name, {"variants": variants(stable=100)}, headers=ABSENT),
    ]
    for answer in answers:
        assert answer.status_code == 412
        assert answer.headers["etag"] == tag
        assert answer.json()["current"] == current
    assert admin.of(name) == current


@pytest.mark.parametrize(
    "tag",
    [
        'W/"g1-1"',
        "g1-1",
        "*",
        '"g1-1", "g1-2"',
        '"1"',
        '""',
        '"g1-1',
        '"g-1-1"',
        '"g1-' + "9" * 400,
    ],
)
def test_a_tag_that_is_weak_or_none_is_400(admin: Admin, tag: str) -> None:
    name = admin.create()
    answer = admin.send("PATCH", name, {"rollback_window_s": 1}, headers={"if-match": tag})
    assert answer.status_code == 400
    assert "If-Match" in answer.json()["error"]
    assert admin.of(name)["revision"] == 1


def test_conditions_that_contradict_each_other_are_400(admin: Admin) -> None:
    name = admin.create()
    tag = admin.etag(name)
    body = {"variants": variants(stable=100)}
    for headers in ({"if-none-match": "*", "if-match": tag}, {"if-none-match": tag}):
        assert admin.send("PUT", name, body, headers=headers).status_code == 400
    answer = admin.send("PATCH", name, {"rollback_window_s": 1}, headers=ABSENT)
    assert answer.status_code == 400
    assert admin.of(name)["revision"] == 1


def test_weights_move_exactly_what_they_say(admin: Admin) -> None:
    name = admin.create()
    body = {"weights": {"canary": 20}, "take_from": "stable", "reason": "it was quiet"}
    written = admin.verb(name, "setWeights", body)
    assert written["moved_share_percent"] == 10.0
    assert written["diff"] == [
        {"path": "/variants/canary/weight", "from": 10, "to": 20},
        {"path": "/variants/stable/weight", "from": 90, "to": 80},
    ]
    assert written["document"]["meta"]["reason"] == "it was quiet"
    back = {"weights": {"canary": 10, "stable": 90}}
    assert admin.verb(name, "setWeights", back)["moved_share_percent"] == 10.0
    owners = [row[:3] for row in admin.of(name)["derived"]["slots"]]
    assert owners[0] == [0, 100_000, "canary"]  # the same keys as before


def test_weights_are_exact_decimals(admin: Admin) -> None:
    name = admin.create(variants=variants(a=33.3333, b=33.3333, c=33.3334))
    written = admin.verb(name, "setWeights", {"weights": {"a": 33.3334}, "take_from": "c"})
    assert written["moved_share_percent"] == 0.0001
    weights = {n: v["weight"] for n, v in admin.of(name)["variants"].items()}
    assert weights == {"a": 33.3334, "b": 33.3333, "c": 33.3333}
    raw = b'{"weights": {"a": 0.1, "b": 0.2, "c": 99.7000}}'
    assert admin.write("POST", f"{name}:setWeights", raw).status_code == 200
    weights = {n: v["weight"] for n, v in admin.of(name)["variants"].items()}
    assert weights == {"a": 0.1, "b": 0.2, "c": 99.7}


def test_weights_may_stand_beside_take_from(admin: Admin) -> None:
    name = admin.create()
    admin.verb(name, "setWeights", {"canary": 25.5, "take_from": "stable", "reason": "short"})
    assert admin.of(name)["variants"]["canary"]["weight"] == 25.5


def test_equal_weights_write_nothing(admin: Admin) -> None:
    name = admin.create()
    written = admin.verb(name, "setWeights", {"weights": {"canary": 10, "stable": 90}})
    assert written["changed"] is False
    assert admin.of(name)["revision"] == 1
    assert len(admin.of(name, "revisions")["revisions"]) == 1


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"weights": {"canary": 20}}, "/weights"),
        ({"weights": {"canary": 20, "stable": 79.9}}, "/weights"),
        ({"weights": {"nobody": 80}, "take_from": "stable"}, "/weights/nobody"),
        ({"weights": {"canary": 100.1}, "take_from": "stable"}, "/weights/canary"),
        ({"weights": {"canary": -1}, "take_from": "stable"}, "/weights/canary"),
        ({"weights": {"canary": 0.00001}, "take_from": "stable"}, "/weights/canary"),
        ({"weights": {"canary": "20"}, "take_from": "stable"}, "/weights/canary"),
        ({"weights": {"canary": True}, "take_from": "stable"}, "/weights/canary"),
        ({"weights": {"canary": 20}, "take_from": "nobody"}, "/take_from"),
        ({"weights": {"canary": 20}, "take_from": "canary"}, "/take_from"),
        ({"weights": {"canary": 20}, "take_from": 3}, "/take_from"),
        ({"weights": {"canary": 20}, "take_form": "stable"}, "/take_form"),
        ({"weights": []}, "/weights"),
        ({"weights": None}, "/weights"),
        ({}, "/weights"),
    ],
)
def test_weights_that_cannot_be_are_422(
    admin: Admin, body: dict[str, object], pointer: str
) -> None:
    name = admin.create()
    answer = admin.write("POST", f"{name}:setWeights", body)
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    assert admin.of(name)["revision"] == 1


def _shadow() -> dict[str, object]:
    return {"model": "digits", "version": "2", "sample": 10}


_LIMITS = {"queue_items": 256, "queue_bytes": 64 << 20, "deadline_ms": 2_000}


def _rule(name: str, header: str, to: str) -> dict[str, object]:
    return {"name": name, "when": {"header": {header: {"present": True}}}, "to": to}
