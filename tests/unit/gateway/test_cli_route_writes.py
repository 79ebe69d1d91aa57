"""`sluice route` commands that change routes: what is sent, what is said, which exit code.

Against a real HTTP server that answers from a table; the gateway itself is not here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import run
from tests.support.admin_script import (
    Scripted,
    ScriptedAdmin,
    convergence,
    document,
    scripted_admin,
    written,
)

Json = Any  # Any: JSON
ROUTE = "GET /v1/routes/digits"
SET = "POST /v1/routes/digits:setWeights"
CANARY = ["set-weight", "digits", "canary=20", "--take-from", "stable"]
MEANWHILE = "digits was changed meanwhile: this command read revision 42"
WHY = ["--reason", "looks good"]
NONE = Scripted({"error": "there is no route 'digits'"}, 404)


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedAdmin]:
    """Return a scripted admin API with the route digits at revision 42."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLUICE_TOKEN", raising=False)
    monkeypatch.setenv("SLUICE_ACTOR", "ann")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with scripted_admin() as script:
        monkeypatch.setenv("SLUICE_ADMIN", script.url)
        script.on(ROUTE, document(42))
        script.on(SET, written(43))
        yield script


def route(*arguments: str) -> int:
    return run(["route", *arguments])


def test_a_weight_is_set_on_the_revision_that_was_read(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert route(*CANARY, *WHY) == 0
    assert admin.lines == [ROUTE, SET]
    write = admin.seen[1]
    assert write.body == {"weights": {"canary": 20}, "take_from": "stable"}
    assert write.headers["if-match"] == '"g1-42"'
    assert write.headers["x-reason"] == "looks good"
    assert write.headers["x-actor"] == "ann"
    assert write.query == {}
    assert capsys.readouterr().out.splitlines() == [
        "digits: revision 42 -> 43, moved 10 % of the keys",
        "  ~ /variants/canary/weight: 10 -> 20",
        "  ~ /variants/stable/weight: 90 -> 80",
    ]


def test_all_weights_can_be_given_and_flags_are_passed_on(admin: ScriptedAdmin) -> None:
    shares = ["canary=0.0001", "stable=99.9999"]
    assert route("set-weight", "digits", *shares, *WHY, "--reseed", "--as", "bob") == 0
    assert route("set-weight", "digits", *shares, *WHY, "--accept-carryover", "--dry-run") == 0
    first, second = admin.writes
    assert first.body == {"weights": {"canary": 0.0001, "stable": 99.9999}}
    assert first.query == {"reseed": "true"}
    assert first.headers["x-actor"] == "bob"
    assert second.query == {"dry_run": "true", "accept_carryover": "true"}


def test_with_json_a_write_prints_the_answer_as_it_came(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = json.dumps(written(43), indent=2)
    admin.on(SET, Scripted(raw.encode()))
    admin.on(f"{ROUTE}/convergence", convergence(43))
    assert route(*CANARY, *WHY, "--json", "--wait") == 0
    captured = capsys.readouterr()
    assert captured.out == raw + "\n"
    assert captured.err.startswith("the only replica has revision 43, after ")


@pytest.mark.parametrize(
    ("arguments", "etag"),
    [
        (["--revision", "42"], '"g1-42"'),
        (["--revision", "41"], '"g1-41"'),
        (["--if-match", "g2-7"], '"g2-7"'),
        (["--if-match", '"g2-7"'], '"g2-7"'),
    ],
)
def test_a_revision_that_is_named_is_the_condition(
    admin: ScriptedAdmin, arguments: list[str], etag: str
) -> None:
    assert route(*CANARY, *WHY, *arguments) == 0
    assert admin.writes[0].headers["if-match"] == etag


def test_a_change_in_between_is_reported_and_not_repeated(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    current = document(43, canary=50)
    current["meta"] |= {"actor": "bob", "reason": "hurry\x1b"}
    admin.on(SET, Scripted({"error": "stale", "current": current}, 412, {"etag": '"g1-43"'}))
    assert route(*CANARY, *WHY) == 5
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"sluice: {MEANWHILE}",
        '  revision 43, by bob at 2026-11-21T11:00:00Z: setWeights, "hurry\\x1b"',
        "  now: canary 50 %, stable 50 %",
        "Nothing was changed. Look at it, then repeat the command if it is still wanted.",
    ]
    assert captured.out == ""
    assert len(admin.writes) == 1


@pytest.mark.parametrize(
    ("arguments", "current", "first"),
    [
        (["--revision", "41"], document(43), "digits is not at revision 41"),
        (["--if-match", "g1-41"], document(43), "digits is not at revision 41"),
        (
            [],
            None,
            f"{MEANWHILE}; there is no such route now. Nothing was changed.",
        ),
    ],
)
def test_a_condition_that_does_not_hold_is_a_conflict(
    admin: ScriptedAdmin,
    arguments: list[str],
    current: Json,
    first: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    admin.on(SET, Scripted({"error": "stale", "current": current}, 412))
    assert route(*CANARY, *WHY, *arguments, "--json") == 5
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == f"sluice: {first}"
    assert json.loads(captured.out)["current"] == current


def test_a_deletion_in_between_is_named_as_one(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"error": "stale", "current": document(43, deleted=True)}
    admin.on(SET, Scripted(gone, 412))
    assert route(*CANARY, *WHY) == 5
    assert "  revision 43, deleted, by ann at" in capsys.readouterr().err


def test_every_fault_of_a_refused_change_has_a_line(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [
        {"pointer": "/variants", "detail": "weights sum to 99.9, not 100"},
        {"pointer": "", "detail": "odd"},
    ]
    admin.on(SET, Scripted({"error": "x", "errors": faults}, 422))
    assert route(*CANARY, *WHY) == 3
    assert capsys.readouterr().err.splitlines() == [
        "sluice: refused:",
        "  /variants: weights sum to 99.9, not 100",
        "  (the whole document): odd",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (CANARY, "say why: --reason TEXT"),
        ([*CANARY, "--reason", "  "], "say why: --reason TEXT"),
        ([*CANARY, "--reason", "a\nb"], "--reason: a reason is one line of printable text"),
        ([*CANARY, *WHY, "--as", "a\nb"], "--as: a name is printable text"),
        (
            [*CANARY, *WHY, "--dry-run", "--wait"],
            "--dry-run changes nothing, so there is nothing to --wait for",
        ),
        (["set-weight", "digits", "a=1", "a=2", *WHY], "a variant is named twice"),
        (["apply", "-f", "none.toml", *WHY], "cannot read none.toml: No such file or directory"),
        (["diff"], "give a route and two revisions, or -f FILE"),
        (["diff", "digits", "41"], "give a route and two revisions, or -f FILE"),
        (["diff", "digits", "-f", "x"], "give a route and two revisions, or -f FILE; not both"),
    ],
)
def test_what_is_wrong_on_the_command_line_sends_nothing(
    admin: ScriptedAdmin,
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert route(*arguments) == 2
    assert capsys.readouterr().err == f"sluice: {sentence}\n"
    assert admin.writes == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_somebody_at_a_terminal_is_asked_why(
    admin: ScriptedAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("errors went up\n"))
    assert route(*CANARY, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == "reason: "
    assert json.loads(captured.out) == written(43)
    assert admin.writes[0].headers["x-reason"] == "errors went up"
    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert route(*CANARY) == 2


def test_waiting_ends_when_every_replica_has_it(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.on(f"{ROUTE}/convergence", convergence(43, 42), convergence(43, 43))
    assert route(*CANARY, *WHY, "--wait", "5") == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("all 2 replicas have revision 43, after ")
    )


def test_waiting_in_vain_names_the_laggards(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.on(f"{ROUTE}/convergence", convergence(43, 42))
    assert route(*CANARY, *WHY, "--wait=0") == 6
    captured = capsys.readouterr()
    assert captured.out.startswith("digits: revision 42 -> 43")
    assert captured.err.splitlines() == [
        "sluice: revision 43 is not everywhere after 0.0 s:",
        "  b: at revision 42, loading digits/2, last heard of 0.4 s ago",
    ]


@pytest.mark.parametrize(
    ("arguments", "line", "body"),
    [
        (["promote", "digits"], "POST /v1/routes/digits:promote", {}),
        (
            ["promote", "digits", "--variant", "b"],
            "POST /v1/routes/digits:promote",
            {"variant": "b"},
        ),
        (["undo", "digits"], "POST /v1/routes/digits:undo", {}),
        (
            ["undo", "digits", "--to-revision", "40"],
            "POST /v1/routes/digits:undo",
            {"to_revision": 40},
        ),
    ],
)
def test_verbs_name_the_revision_that_they_change(
    admin: ScriptedAdmin, arguments: list[str], line: str, body: Json
) -> None:
    admin.on(line, written(43))
    assert route(*arguments, *WHY) == 0
    assert admin.lines == [ROUTE, line]
    assert admin.seen[1].body == body
    assert admin.seen[1].headers["if-match"] == '"g1-42"'


@pytest.mark.parametrize("verb", ["abort", "restore"])
def test_abort_and_restore_ask_nothing_first_and_have_no_condition(
    admin: ScriptedAdmin, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"POST /v1/routes/digits:{verb}"
    admin.on(line, written(43))
    assert route(verb, "digits", *WHY) == 0
    assert admin.lines == [line]
    assert not {"if-match", "if-none-match"} & set(admin.seen[0].headers)
    assert capsys.readouterr().out.startswith("digits: revision 42 -> 43")


def test_an_emergency_abort_warns_that_only_one_replica_was_changed(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Scripted(written(43, emergency=True), 202)
    admin.on("POST /v1/routes/digits:abort", answer)
    assert route("abort", "digits", *WHY) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("digits: all traffic of one replica to stable\n")
    assert captured.err.startswith(
        f"sluice: the store is out of reach: only the replica at {admin.url} was changed"
    )
    assert route("abort", "digits", *WHY, "--wait") == 6
    assert "the other replicas do not have it" in capsys.readouterr().err
    assert route("abort", "digits", *WHY, "--dry-run") == 0
    assert capsys.readouterr().err == ""


def test_a_deleted_route_can_be_brought_back(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = written(43, document=document(43, deleted=True), diff=[])
    admin.on("DELETE /v1/routes/digits", gone)
    assert route("delete", "digits", *WHY) == 0
    assert admin.writes[0].headers["if-match"] == '"g1-42"'
    assert "prefer" not in admin.writes[0].headers
    assert capsys.readouterr().out.splitlines() == [
        "digits: revision 42 -> 43, deleted",
        "(sluice route undo digits brings it back)",
    ]
    admin.on(ROUTE, NONE)
    rows = [{"revision": 43, "generation": 2, "deleted": True}]
    admin.on(f"{ROUTE}/revisions", {"revisions": rows})
    admin.on("POST /v1/routes/digits:undo", written(44))
    assert route("undo", "digits", *WHY) == 0
    assert admin.writes[1].headers["if-match"] == '"g2-43"'
    assert capsys.readouterr().out.startswith("digits: revision 43 -> 44")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"converged": True, "laggards": []}, 200, 0),
        ({"converged": False, "laggards": ["b"]}, 202, 6),
    ],
)
def test_the_gateway_itself_waits_for_a_deletion(
    admin: ScriptedAdmin,
    fields: dict[str, Json],
    status: int,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = written(43, document=document(43, deleted=True), **fields)
    admin.on("DELETE /v1/routes/digits", Scripted(gone, status))
    assert route("delete", "digits", *WHY, "--wait", "7") == code
    assert admin.writes[0].headers["prefer"] == "wait=7"
    assert ("not gone yet on b" in capsys.readouterr().err) == (code == 6)


@pytest.mark.parametrize("arguments", [["undo"], ["delete"], ["promote"]])
def test_a_route_that_is_not_there_is_exit_code_four(
    admin: ScriptedAdmin, arguments: list[str]
) -> None:
    admin.on(ROUTE, NONE)
    admin.on(f"{ROUTE}/revisions", NONE)
    assert route(*arguments, "digits", *WHY) == 4
    assert admin.writes == []
