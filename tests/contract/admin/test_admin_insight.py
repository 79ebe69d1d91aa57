"""What is, over the admin API: explanations, replicas, and counts that add up to what was sent."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from router.sample_ratio import ln_bayes_factor
from router.slots import KeySpace
from tests.support.admin import FAIL_ON, KEY, Admin, variants
from tests.support.gateway import wait_until

KEYS = 200
UNITS = 40
_SAMPLED_BELOW = 2**58  # of the hash under SALT/unit: one key in 64 is a unit
Json = Any  # Any: a JSON document


def test_an_explanation_is_what_a_request_then_gets(admin: Admin) -> None:
    listed = ["user-3", "ключ", "user-5"]
    name = admin.create(
        salt="explained",
        key=[f"header:{KEY}", "parameter:user"],
        variants=variants(stable=40, canary=35.5, third=24.5),
        rules=[
            {"name": "beta", "when": {"header": {"x-beta": {"prefix": "b"}}}, "to": "canary"},
            {"name": "friends", "when": {"key": {"in": listed}}, "to": "third"},
        ],
    )
    drawn = random.Random(7)
    letters = "abcXYZ019-_.:/ йцü汉🙂"
    keys = ["".join(drawn.choices(letters, k=12)).strip() + "$" for _ in range(KEYS - 3)] + listed
    reasons = set()
    for number, key in enumerate(keys):
        beta = {"x-beta": "beta"} if number % 20 == 0 else {}
        asked = {f"header.{header}": text for header, text in beta.items()}
        if number % 2:
            answer = admin.infer(name, key, headers=beta)
            told = admin.of(name, "explain", **{f"header.{KEY.upper()}": key}, **asked)
            assert told["key_source"] == f"header:{KEY}"
        else:
            answer = admin.infer(name, headers=beta, parameters={"user": key})
            told = admin.of(name, "explain", **{"parameter.user": key}, **asked)
            assert told["key_source"] == "parameter:user"
        assert answer.status_code == 200
        lines = answer.headers
        assert told["served"] == told["variant"] == lines["x-sluice-variant"]
        assert told["reason"] == lines["x-sluice-reason"]
        assert (str(told["revision"]), told["key"]) == (lines["x-sluice-revision"], key)
        assert answer.json()["model_version"] == told["version"]
        direct = admin.of(name, "explain", key=key, **asked)
        assert direct == told | {"key_source": "query"}
        reasons.add(told["reason"])
        owner = _owner(admin.of(name)["derived"]["slots"], told["slot"])
        assert told["rule"] or owner == told["variant"]
    assert reasons == {"slot", "rule:beta", "rule:friends"}


def test_an_explanation_without_a_key_is_what_the_route_says(admin: Admin) -> None:
    drawn = admin.of(admin.create(), "explain")
    assert (drawn["reason"], drawn["variant"], drawn["propensity"]) == ("random", None, None)
    assert drawn["distribution"] == {"stable": 90, "canary": 10}
    stable = admin.of(admin.create(missing_key="stable"), "explain")
    assert (stable["reason"], stable["variant"], stable["propensity"]) == ("no_key", "stable", 1)
    name = admin.create(missing_key="reject")
    refused = admin.of(name, "explain")
    assert refused["reason"] == "rejected"
    answer = admin.infer(name)
    assert answer.status_code == 400
    assert answer.json()["error"] == refused["error"]


def test_an_explanation_names_the_fallback_and_the_shadows(admin: Admin) -> None:
    arms = variants(stable=50) | {"canary": {"model": "spare", "version": "1", "weight": 50}}
    shadow = {"model": "digits", "version": "3", "sample": 100, "of": ["canary"]}
    name = admin.create(variants=arms, fallback={"to": "stable"}, shadows={"next": shadow})
    explained = {f"user-{n}": admin.of(name, "explain", key=f"user-{n}") for n in range(20)}
    key = next(key for key, told in explained.items() if told["variant"] == "canary")
    assert explained[key]["shadows"] == ["next"]
    assert explained[key]["served"] == "canary"
    assert admin.http.post("/v1/models/spare/unload").status_code == 200
    try:
        told = admin.of(name, "explain", key=key)
        lines = admin.infer(name, key).headers
    finally:
        assert admin.http.post("/v1/models/spare/load").status_code == 200
    assert (told["variant"], told["served"]) == ("canary", "stable")
    assert (lines["x-sluice-assigned"], lines["x-sluice-variant"]) == ("canary", "stable")
    (row,) = [r for r in admin.of(name, "stats")["variants"] if r["variant"] == "canary"]
    assert (row["requests"], row["fallback"], row["errors"]) == (1, 1, 0)


def test_every_request_is_in_the_statistics_exactly_once(admin: Admin) -> None:
    rule = {"name": "beta", "when": {"header": {"x-beta": "yes"}}, "to": "canary"}
    name = admin.create(variants=variants(stable=70, canary=30), rules=[rule])
    assert admin.of(name, "stats")["variants"] == []
    sent = admin.shares(name, 60)
    for number in range(7):
        assert admin.infer(name, f"user-{number}", value=FAIL_ON).status_code == 500
    for number in range(5):
        assert admin.infer(name, f"user-{number}", headers={"x-beta": "yes"}).status_code == 200
    statistics = admin.of(name, "stats")
    rows = {row["variant"]: row for row in statistics["variants"]}
    assert sum(row["requests"] for row in rows.values()) == 67
    assert sum(row["errors"] for row in rows.values()) == 7
    assert {v: row["requests"] - row["errors"] for v, row in rows.items()} == sent
    assert {v: row["forced"] for v, row in rows.items()} == {"stable": 0, "canary": 5}
    assert sum(row["share_percent"] for row in rows.values()) == pytest.approx(100, abs=1e-3)
    for row in rows.values():
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] < 10_000
    admin.verb(name, "setWeights", {"weights": {"canary": 40}, "take_from": "stable"})
    admin.infer(name, "user-1")
    after = admin.of(name, "stats")
    weights = {(r["revision"], r["variant"]): r["weight"] for r in after["variants"]}
    assert weights[(1, "stable")] is None
    assert {v for (revision, _), v in weights.items() if revision == 2} <= {40, 60}
    assert sum(row["requests"] for row in after["variants"]) == 68
    assert (statistics["epoch"], after["epoch"]) == (1, 2)
    assert after["experiment"] is None


def test_every_copy_for_a_shadow_is_accounted_for(admin: Admin) -> None:
    shadow = {"model": "digits", "version": "3", "sample": 50}
    name = admin.create(shadows={"next": shadow})
    admin.shares(name, 40)

    def counts() -> Json:
        return admin.of(name, "stats")["shadows"]["next"]

    wait_until(lambda: counts()["in_flight"] == 0, "all copies are answered or dropped")
    found = counts()
    assert found["eligible"] == 40
    assert found["sent"] + sum(found["dropped"].values()) == 40
    assert found["dropped"]["not_sampled"] > 0


def test_the_weights_of_an_experiment_are_locked(admin: Admin) -> None:
    name = admin.create(kind="experiment", salt="first")
    more = {"weights": {"canary": 20}, "take_from": "stable"}
    patch = {"variants": {"canary": {"weight": 20}, "stable": {"weight": 80}}}
    assert admin.write("POST", f"{name}:setWeights", more).status_code == 409
    assert admin.write("PATCH", name, patch).status_code == 409
    assert admin.write("PATCH", name, {"salt": "other"}).status_code == 409
    assert admin.write("POST", f"{name}:setWeights?dry_run=true", more).status_code == 409
    assert admin.of(name)["revision"] == 1
    assert admin.patch(name, {"rollback_window_s": 1})["changed"] is True  # nothing of the split

    carried = admin.write("POST", f"{name}:setWeights?accept_carryover=true", more).json()
    assert carried["moved_share_percent"] == 10.0
    assert carried["document"]["derived"]["carryover"] == [3]
    assert carried["document"]["salt"] == "first"
    assert admin.of(name, "stats")["experiment"]["carryover"] == [3]

    again = {"weights": {"canary": 50}, "take_from": "stable"}
    reseeded = admin.write("POST", f"{name}:setWeights?reseed=true", again).json()["document"]
    assert reseeded["salt"] not in ("first", name)
    assert reseeded["derived"]["carryover"] == []
    assert reseeded["derived"]["epoch"] == reseeded["revision"] == 4


def test_promote_and_abort_end_an_experiment_without_being_asked_twice(admin: Admin) -> None:
    aborted = admin.create(kind="experiment")
    assert admin.send("POST", f"{aborted}:abort", {}).status_code == 200
    promoted = admin.create(kind="experiment")
    assert admin.write("POST", f"{promoted}:promote", {}).status_code == 200


def test_an_experiment_counts_each_unit_once_and_checks_its_ratio(admin: Admin) -> None:
    name = admin.create(kind="experiment", salt="units", variants=variants(a=50, b=50))
    space = KeySpace("units/unit")
    keys = (f"user-{number}" for number in range(100_000))
    units = [key for key in keys if space.hash(key.encode()) < _SAMPLED_BELOW][:UNITS]
    found = {"a": 0, "b": 0}
    for key in units * 2:
        found[admin.infer(name, key).headers["x-sluice-variant"]] += 1
    experiment = admin.of(name, "stats")["experiment"]
    assert experiment["units"] == {arm: count // 2 for arm, count in found.items()}
    ratio = experiment["sample_ratio"]
    counts = [experiment["units"][arm] for arm in ("a", "b")]
    assert ratio["ln_bayes_factor"] == pytest.approx(ln_bayes_factor(counts, [0.5, 0.5]))
    assert ratio["mismatch"] is False


def test_convergence_names_every_live_replica_and_what_it_serves(admin: Admin) -> None:
    name = admin.create()
    own = admin.of(name, "convergence")
    assert own["converged"] is True
    (replica,) = own["replicas"]
    assert (replica["revision"], replica["generation"], replica["pending"]) == (1, 1, "")
    assert replica["digest"] == own["digest"] == admin.of(name)["meta"]["digest"]
    sync = admin.gateway.app.plane.sync
    assert sync is not None
    loop, board = admin.gateway.loop, sync.stores.board
    for ghost in (
        [1, 0, "", "loading digits/2"],  # behind
        [1, 1, "0" * 64, ""],  # of the same number, and another content
    ):
        loop.run(board.report("ghost", json.dumps({"routes": {name: ghost}}).encode()))
        try:
            states = admin.of(name, "convergence")
            slow = admin.write(
                "PATCH", name, {"rollback_window_s": 3_600}, headers={"prefer": "wait=0"}
            )
        finally:
            loop.run(board.withdraw("ghost"))
        assert states["converged"] is False
        (behind,) = [state for state in states["replicas"] if state["replica"] == "ghost"]
        assert behind["pending"] == ghost[3]
        assert slow.status_code == 202
        assert (slow.json()["converged"], slow.json()["laggards"]) == (False, ["ghost"])
    assert admin.of(name, "convergence")["converged"] is True


def _owner(slots: list[Json], slot: int) -> str:
    return next(str(owner) for start, end, owner, _ in slots if start <= slot < end)
