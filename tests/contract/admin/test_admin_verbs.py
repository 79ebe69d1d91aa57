"""The verbs of routes over the admin API: promote, abort, undo, delete, restore, and dry runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.admin import KEY, REASON, Admin, variants

BOTH_RULES = [
    {"name": "beta", "when": {"header": {"x-beta": "yes"}}, "to": "canary"},
    {"name": "safe", "when": {"header": {"x-safe": "yes"}}, "to": "stable"},
]
Json = Any  # Any: a JSON document


def test_promote_makes_the_canary_the_stable_version_and_keeps_the_old_one_warm(
    admin: Admin,
) -> None:
    name = admin.create(variants=variants(stable=80, canary=20))
    written = admin.verb(name, "promote", {"variant": "canary"})
    document = written["document"]
    assert document["variants"]["stable"] == {"model": "digits", "version": "2", "weight": 100}
    assert document["variants"]["canary"]["weight"] == 0
    assert written["moved_share_percent"] == 20.0
    assert written["reversioned_share_percent"] == 80.0
    assert [(w["model"], w["version"]) for w in document["derived"]["warm"]] == [("digits", "1")]
    assert admin.shares(name, 20) == {"stable": 20}


def test_promote_names_the_choice_where_there_are_several(admin: Admin) -> None:
    name = admin.create(variants=variants(stable=80, one=10, two=10))
    for body in ({}, {"variant": "stable"}, {"variant": "nobody"}, {"variant": 3}):
        answer = admin.write("POST", f"{name}:promote", body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/variant"
    assert admin.verb(name, "promote", {"variant": "two"})["changed"] is True


def test_abort_needs_no_tag_may_be_repeated_and_moves_everybody_to_stable(admin: Admin) -> None:
    name = admin.create(variants=variants(stable=60, canary=40), rules=BOTH_RULES)
    first = admin.send("POST", f"{name}:abort", {"reason": "errors"})
    assert first.status_code == 200
    assert first.json()["changed"] is True
    again = admin.send("POST", f"{name}:abort", {"reason": "errors still"})
    assert again.status_code == 200
    assert again.json()["changed"] is False
    assert again.headers["etag"] == first.headers["etag"] == '"g1-2"'
    assert admin.shares(name, 30) == {"stable": 30}
    forced = admin.infer(name, "user-1", headers={"x-beta": "yes"})
    assert forced.headers["x-sluice-variant"] == "stable"  # the rule is disabled
    enabled = {rule["name"]: rule["enabled"] for rule in admin.of(name)["rules"]}
    assert enabled == {"beta": False, "safe": True}


def test_abort_with_an_old_tag_is_carried_out_all_the_same(admin: Admin) -> None:
    name = admin.create()
    stale = {"if-match": admin.etag(name)}
    admin.verb(name, "setWeights", {"weights": {"canary": 50}, "take_from": "stable"})
    assert admin.send("POST", f"{name}:abort", {}, headers=stale).status_code == 200
    assert admin.of(name)["variants"]["canary"]["weight"] == 0


def test_undo_restores_every_key(admin: Admin) -> None:
    name = admin.create(variants=variants(stable=60, canary=40), rules=BOTH_RULES)
    before = admin.of(name)
    keys = [f"user-{number}" for number in range(40)]
    served = [admin.infer(name, key).headers["x-sluice-variant"] for key in keys]
    admin.send("POST", f"{name}:abort", {})
    written = admin.verb(name, "undo", {"reason": "it was the network"})
    assert written["moved_share_percent"] == 40.0
    after = admin.of(name)
    assert after["revision"] == 3
    assert after["variants"] == before["variants"]
    assert after["rules"] == before["rules"]
    assert after["derived"]["slots"] == before["derived"]["slots"]
    assert [admin.infer(name, key).headers["x-sluice-variant"] for key in keys] == served


def test_undo_goes_back_to_any_revision(admin: Admin) -> None:
    name = admin.create()
    for weight in (20, 30, 40):
        admin.verb(name, "setWeights", {"weights": {"canary": weight}, "take_from": "stable"})
    admin.verb(name, "undo", {"to_revision": 2})
    assert admin.of(name)["variants"]["canary"]["weight"] == 20
    admin.verb(name, "undo")  # of the undo: the one before it
    assert admin.of(name)["variants"]["canary"]["weight"] == 40
    assert admin.of(name)["revision"] == 6


def test_undo_of_what_never_was_says_so(admin: Admin) -> None:
    name = admin.create()
    assert admin.write("POST", f"{name}:undo", {}).status_code == 409
    assert admin.write("POST", f"{name}:undo", {"to_revision": 7}).status_code == 404
    for number in (-1, True, "1", 1.5, 10**30):
        answer = admin.write("POST", f"{name}:undo", {"to_revision": number})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/to_revision"
    assert admin.of(name)["revision"] == 1


def test_a_deleted_route_is_gone_until_an_undo(admin: Admin) -> None:
    name = admin.create()
    before = admin.of(name)
    deleted = admin.write("DELETE", name)
    assert deleted.status_code == 200
    assert deleted.json()["document"]["deleted"] is True
    assert {"path": "/deleted", "from": False, "to": True} in deleted.json()["diff"]
    assert admin.http.get(f"/v1/routes/{name}").status_code == 404
    assert name not in [d["name"] for d in admin.get("/v1/routes")["routes"]]
    assert admin.infer(name, "somebody").status_code == 404
    assert [row["deleted"] for row in admin.of(name, "revisions")["revisions"]] == [True, False]
    tag = {"if-match": deleted.headers["etag"]}
    assert admin.send("DELETE", name, headers=tag).status_code == 404
    assert admin.send("POST", f"{name}:undo", {}, headers=tag).status_code == 200
    after = admin.of(name)
    assert after["revision"] == 3
    assert after["variants"] == before["variants"]
    assert admin.infer(name, "somebody").status_code == 200


def test_a_deleted_route_can_be_created_again_and_its_numbers_go_on(admin: Admin) -> None:
    name = admin.create()
    admin.write("DELETE", name)
    assert admin.create(name) == name
    assert admin.of(name)["revision"] == 3
    verbs = [row["verb"] for row in admin.of(name, "revisions")["revisions"]]
    assert verbs == ["create", "delete", "create"]


def test_restore_writes_what_is_served_as_a_new_generation(admin: Admin) -> None:
    name = admin.create()
    before = admin.of(name)
    answer = admin.send("POST", f"{name}:restore", {"reason": "to be sure"})
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"g2-2"'
    after = admin.of(name)
    assert (after["generation"], after["revision"]) == (2, 2)
    assert after["variants"] == before["variants"]
    assert after["derived"]["slots"] == before["derived"]["slots"]
    admin.patch(name, {"rollback_window_s": 5})
    assert admin.etag(name) == '"g2-3"'


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("setWeights", {"weights": {"canary": 20}, "take_from": "stable"}),
        ("promote", {}),
        ("abort", {}),
        ("undo", {}),
        ("restore", {}),
    ],
)
def test_a_dry_run_says_what_would_be_and_changes_nothing(
    admin: Admin, verb: str, body: Json
) -> None:
    name = admin.create()
    admin.verb(name, "setWeights", {"weights": {"canary": 30}, "take_from": "stable"})
    before, tag = admin.of(name), admin.etag(name)
    dry = admin.write("POST", f"{name}:{verb}?dry_run=true", body)
    assert dry.status_code == 200
    assert dry.headers["etag"] == tag  # that of what is: a real write goes on from it
    assert admin.of(name) == before
    assert len(admin.of(name, "revisions")["revisions"]) == 2
    real = admin.send("POST", f"{name}:{verb}", body, headers={"if-match": tag}).json()
    would = dry.json()
    assert would["dry_run"] is True
    for key in ("changed", "moved_share_percent", "reversioned_share_percent", "diff"):
        assert would[key] == real[key]
    assert would["document"]["variants"] == real["document"]["variants"]
    assert would["document"]["derived"]["slots"] == real["document"]["derived"]["slots"]


def test_a_dry_run_of_a_document_says_what_would_be_loaded_and_loads_nothing(
    admin: Admin,
) -> None:
    body = {"variants": {"only": {"model": "digits", "version": "3", "weight": 100}}}
    loaded = _state(admin, "3") == "READY"
    answer = admin.send("PUT", "dry?dry_run=true", body, headers={"if-none-match": "*"})
    assert answer.status_code == 200
    assert "etag" not in answer.headers  # there is nothing that it could name
    assert answer.json()["moved_share_percent"] == 100.0
    assert answer.json()["loads"] == ([] if loaded else [{"model": "digits", "version": "3"}])
    assert (_state(admin, "3") == "READY") is loaded
    assert admin.http.get("/v1/routes/dry").status_code == 404
    name = admin.create()
    tag = {"if-match": admin.etag(name)}
    assert admin.send("DELETE", f"{name}?dry_run=true", headers=tag).status_code == 200
    assert admin.send("PATCH", f"{name}?dry_run=1", body, headers=tag).status_code == 422
    assert admin.of(name)["revision"] == 1


def test_a_reason_is_required(admin: Admin) -> None:
    name = admin.create()
    tag = {"if-match": admin.etag(name)}
    answers = [
        admin.send("PUT", name, {"variants": variants(a=100)}, reason="", headers=tag),
        admin.send("PATCH", name, {}, reason="", headers=tag),
        admin.send("DELETE", name, reason="", headers=tag),
        *(
            admin.send("POST", f"{name}:{verb}", body, reason="", headers=tag)
            for verb in ("setWeights", "promote", "abort", "undo", "restore")
            for body in ({}, {"reason": " "}, {"reason": 7})
        ),
    ]
    for answer in answers:
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/reason"
    assert admin.of(name)["revision"] == 1


def test_a_reason_in_the_body_wins_and_the_header_is_utf_8(admin: Admin) -> None:
    name = admin.create()
    in_header = {"x-reason": "zurück auf 10 %: zu viele Fehler".encode()}
    admin.write("POST", f"{name}:setWeights", {"canary": 20, "stable": 80}, headers=in_header)
    assert admin.of(name)["meta"]["reason"] == "zurück auf 10 %: zu viele Fehler"
    body = {"canary": 30, "stable": 70, "reason": "доверие 🙂"}
    admin.write("POST", f"{name}:setWeights", body, headers=in_header)
    assert admin.of(name)["meta"]["reason"] == "доверие 🙂"


def test_the_actor_is_who_says_so_where_nobody_is_authenticated(admin: Admin) -> None:
    name = admin.create()
    assert admin.of(name)["meta"]["actor"] == "anonymous"
    admin.write("PATCH", name, {"rollback_window_s": 1}, headers={"x-actor": "jörg".encode()})
    assert admin.of(name)["meta"]["actor"] == "jörg"
    (entry,) = admin.get("/v1/audit", route=name, actor="jörg")["entries"]
    assert (entry["auth"], entry["source"], entry["reason"]) == ("none", "127.0.0.1", REASON)


def test_prefer_wait_answers_when_all_replicas_have_it(admin: Admin) -> None:
    name = admin.create()
    body = {"weights": {"canary": 20}, "take_from": "stable"}
    answer = admin.write("POST", f"{name}:setWeights", body, headers={"prefer": "wait=5"})
    assert answer.status_code == 200
    assert answer.json()["converged"] is True
    assert answer.json()["laggards"] == []
    without = admin.verb(name, "setWeights", body)
    assert "converged" not in without


def test_a_verb_that_is_none_is_404_and_a_key_that_is_none_is_422(admin: Admin) -> None:
    name = admin.create()
    admin.is_checked = False  # no description allows for verbs that are not
    try:
        answer = admin.send("POST", f"{name}:pause", {})
    finally:
        admin.is_checked = True
    assert answer.status_code == 404
    assert "setWeights" in answer.json()["error"]
    for verb in ("promote", "abort", "undo", "restore"):
        answer = admin.write("POST", f"{name}:{verb}", {"varient": "canary", "key": KEY})
        assert answer.status_code == 422
        assert [f["pointer"] for f in answer.json()["errors"]] == ["/key", "/varient"]
    assert admin.of(name)["revision"] == 1


def _state(admin: Admin, version: str) -> str:
    rows = admin.get("/v1/models")["models"]
    return next((row["state"] for row in rows if row["version"] == version), "")
