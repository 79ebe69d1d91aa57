"""The page that `sluice route get` shows: values in, text out."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from gateway.cli.route_documents import Convergence, RouteDocument, Statistics
from gateway.cli.route_view import RoutePage, page
from tests.support.admin_script import convergence, document

_T = TypeVar("_T")
Json = Any  # Any: JSON


def read(value: Json, shape: type[_T]) -> _T:
    """Return a document as the client reads it."""
    return msgspec.json.decode(msgspec.json.encode(value), type=shape)


def row(revision: int, variant: str, **fields: Json) -> dict[str, Json]:
    """Return statistics of one variant in one revision."""
    counts = {"requests": 0, "errors": 0, "forced": 0, "fallback": 0}
    return {"revision": revision, "variant": variant, **counts, **fields}


STATISTICS = {
    "route": "digits",
    "epoch": 42,
    "variants": [
        row(
            42,
            "canary",
            requests=98,
            errors=1,
            forced=3,
            fallback=2,
            share_percent=9.8,
            latency_ms={"p50": 1.0, "p95": 2.0, "p99": 3.14},
        ),
        row(41, "stable", requests=5000, share_percent=100.0, latency_ms={"p99": 9.0}),
    ],
    "shadows": {
        "v14": {
            "eligible": 100,
            "sent": 10,
            "in_flight": 2,
            "dropped": {"not_sampled": 85, "queue_full": 3, "timeout": 0},
        }
    },
    "experiment": None,
}


def page_of(shown: Json, statistics: Json = STATISTICS, replicas: Json = None) -> list[str]:
    """Return the lines of a page."""
    found = replicas or convergence(42, 42, wanted=42)
    return page(
        RoutePage(
            document=read(shown, RouteDocument),
            statistics=statistics if isinstance(statistics, str) else read(statistics, Statistics),
            convergence=found if isinstance(found, str) else read(found, Convergence),
        )
    ).splitlines()


def test_the_page_of_a_plain_route_has_only_what_there_is() -> None:
    assert page_of(document()) == [
        "digits: revision 42, rollout, stable is stable",
        'by ann at 2026-11-21T11:00:00Z: setWeights, "more canary"',
        "key: header:x-user-id, parameter:user (without one: random)",
        "",
        "VARIANT  MODEL     WEIGHT   SHARE  REQUESTS  ERRORS  FALLBACK  FORCED  P99 MS",
        "canary   digits/2    10 %  9.80 %        98       1         2       3     3.1",
        "stable   digits/1    90 %       -         -       -         -       -       -",
        "(observed by the replica that was asked, at revision 42)",
        "",
        "replicas: 2 of 2 replicas have revision 42",
    ]


def test_the_page_shows_rules_shadows_fallback_and_what_is_kept_warm() -> None:
    header = {"x-debug-variant": {"in": ["stable", "canary"]}, "x-a": "b", "x-p": {"prefix": "q"}}
    lines = page_of(
        document(
            rules=[
                {
                    "name": "internal",
                    "when": {"header": header, "role": "tester", "key": {"in": ["u1", "u2"]}},
                    "to": "$header",
                    "expires": "2026-12-01T00:00:00Z",
                },
                {"name": "eu", "when": {"tenant": ["a", "b"]}, "to": "stable", "enabled": False},
                {"name": "rest", "when": {"header": {"x": {"present": True}}}, "to": "canary"},
                {"name": "odd", "when": {"moon": {"full": True}}, "to": "canary"},
                {"name": "all", "when": {}, "to": "stable", "reason": "contract"},
            ],
            shadows={
                "v14": {"model": "digits", "version": "3", "sample": 10, "of": ["stable"]},
                "v15": {"model": "digits", "version": "4", "sample": 0.5, "of": []},
            },
            fallback={"on": ["not_ready"], "to": "stable"},
            key=[],
            derived={
                "warm": [{"model": "digits", "version": "0", "until": "2026-11-21T12:00:00Z"}]
            },
        )
    )
    text = "\n".join(lines)
    assert lines[2:5] == [
        "key: none (random)",
        "fallback: stable, on not_ready",
        "kept warm: digits/0 until 2026-11-21T12:00:00Z",
    ]
    assert (
        "internal  header x-debug-variant in stable, canary and header x-a = b "
        "and header x-p begins with q and role = tester and key in u1, u2  "
        "$header  2026-12-01T00:00:00Z  -"
    ) in text
    whens = [line.split("  ") for line in lines if line.startswith(("eu ", "rest", "odd", "all"))]
    assert [[cell.strip() for cell in row if cell.strip()][:2] for row in whens] == [
        ["eu (off)", "tenant in a, b"],
        ["rest", "header x is there"],
        ["odd", 'moon {"full":true}'],
        ["all", "always"],
    ]
    at = lines.index(next(line for line in lines if line.startswith("SHADOW")))
    assert lines[at : at + 3] == [
        "SHADOW  MODEL     SAMPLE  OF      ELIGIBLE  SENT  IN FLIGHT  DROPPED",
        "v14     digits/3    10 %  stable       100    10          2  not_sampled 85, queue_full 3",
        "v15     digits/4   0.5 %  all            -     -          -  -",
    ]


def test_the_page_says_what_it_does_not_know() -> None:
    lines = page_of(document(), "the store is down", "no answer")
    assert "(no numbers: the store is down)" in lines
    assert lines[-1] == "replicas: not known (no answer)"


def test_the_page_names_replicas_that_are_behind_and_an_emergency() -> None:
    lines = page_of(
        document(emergency={"actor": "ann", "reason": "errors"}),
        replicas=convergence(42, 41, wanted=42),
    )
    assert lines[3] == ('EMERGENCY ABORT: this replica sends everything to stable (ann: "errors")')
    assert lines[-2:] == [
        "replicas: 1 of 2 replicas have revision 42",
        "  b: at revision 41, loading digits/2, last heard of 0.4 s ago",
    ]


def test_the_page_of_an_experiment_warns_of_doubtful_results() -> None:
    ratio = {"ln_bayes_factor": 9.0, "mismatch": True}
    experiment = {"units": {"b": 3, "a": 100}, "sample_ratio": ratio, "carryover": [40, 41]}
    lines = page_of(document(kind="experiment"), STATISTICS | {"experiment": experiment})
    at = lines.index("experiment: units a 100, b 3")
    assert lines[at + 1 : at + 3] == [
        "SAMPLE RATIO MISMATCH: the units are not split as the weights say",
        "carry-over: weights were changed while it ran, at revision 40, 41",
    ]
    sound = {"units": {}, "sample_ratio": {"ln_bayes_factor": None, "mismatch": False}}
    lines = page_of(document(kind="experiment"), STATISTICS | {"experiment": sound})
    assert "experiment: units none yet" in lines
    assert not any("MISMATCH" in line or "carry-over" in line for line in lines)
