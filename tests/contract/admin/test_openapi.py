"""The description of the admin API: valid, complete, served, and its examples work as written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Route

from gateway.http_api.admin import AdminEndpoints, make_app
from gateway.http_api.admin_routes import Access, RouteEndpoints
from tests.support.admin import MERGE_PATCH, Admin
from tests.support.openapi import METHODS, Contract, description

CONTRACT = Contract(description())
EXAMPLES = {at: (schema, value) for at, schema, value in CONTRACT.examples()}
ONE = "/v1/routes/{name}"
Json = Any  # Any: a JSON document


def test_the_description_is_valid_openapi() -> None:
    assert list(OpenAPIV31SpecValidator(description()).iter_errors()) == []


def test_the_description_is_served_as_it_is(admin: Admin) -> None:
    assert admin.get("/v1/openapi.json") == description()


def test_what_the_listener_answers_is_what_is_described(admin: Admin) -> None:
    app, verbs = application(admin)
    served = set()
    for route in app.routes:
        assert isinstance(route, Route)
        paths = [route.path.replace("{verb}", verb) for verb in verbs]
        methods = {method.lower() for method in route.methods or ()} - {"head"}
        assert methods <= set(METHODS)
        served |= {(method, path) for method in methods for path in paths}
    assert served == CONTRACT.operations()


def test_every_operation_says_what_it_does_and_how_it_is_refused() -> None:
    names = []
    for method, path in CONTRACT.operations():
        operation = description()["paths"][path][method]
        names.append(operation["operationId"])
        assert operation["summary"]
        assert any(status.startswith("2") for status in operation["responses"])
        is_open = operation.get("security") == []
        assert is_open == (not {"401", "403"} <= operation["responses"].keys())
    assert len(set(names)) == len(names)


def test_nothing_is_described_that_nothing_refers_to() -> None:
    text = json.dumps(description())
    for kind, components in description()["components"].items():
        if kind == "securitySchemes":
            continue
        for name in components:
            is_used = f'"#/components/{kind}/{name}"' in text
            assert is_used or name == "Event", f"{kind}/{name}"


@pytest.mark.parametrize("at", EXAMPLES)
def test_an_example_is_of_its_own_schema(at: str) -> None:
    schema, value = EXAMPLES[at]
    assert CONTRACT.faults(schema, value) == []


def test_every_example_of_a_write_works_as_written(admin: Admin) -> None:
    name = "digits"

    def send(method: str, path: str, kind: str, example: str) -> Json:
        operation = description()["paths"][path][method.lower()]
        body = operation["requestBody"]["content"][kind]["examples"][example]["value"]
        answer = admin.write(method, path.replace(ONE, name), body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["changed"] is True
        return answer.json()

    put = description()["paths"][ONE]["put"]["requestBody"]["content"]["application/json"]
    (example,) = put["examples"].values()
    answer = admin.send("PUT", name, example["value"], headers={"if-none-match": "*"})
    assert answer.status_code == 201
    for seconds in range(41):
        admin.patch(name, {"rollback_window_s": seconds})
    assert admin.etag(name) == description()["components"]["parameters"]["IfMatch"]["example"]
    moved = send("POST", f"{ONE}:setWeights", "application/json", "setWeights")
    assert moved["moved_share_percent"] == 10.0
    send("POST", f"{ONE}:undo", "application/json", "undo")
    send("POST", f"{ONE}:promote", "application/json", "promote")
    admin.verb(name, "undo")
    send("POST", f"{ONE}:abort", "application/json", "abort")
    send("POST", f"{ONE}:restore", "application/json", "restore")
    send("PATCH", ONE, MERGE_PATCH, "remove")
    send("PATCH", ONE, MERGE_PATCH, "shadow")
    assert admin.write("DELETE", name).status_code == 200


def test_the_judge_finds_what_is_not_as_described(admin: Admin) -> None:
    schema = {"$ref": "#/components/schemas/RouteDocument"}
    document = admin.of(admin.create())
    assert CONTRACT.faults(schema, document) == []
    for wrong in (
        document | {"extra": 1},
        {key: value for key, value in document.items() if key != "meta"},
        document | {"kind": "canary"},
        document | {"meta": document["meta"] | {"created_at": "yesterday"}},
        document | {"variants": {}},
        document | {"derived": document["derived"] | {"slots": [[0, 1, "a"]]}},
    ):
        assert CONTRACT.faults(schema, wrong)


def application(admin: Admin) -> tuple[Starlette, tuple[str, ...]]:
    """Return the listener's application, and the verbs that stand for `{verb}` in its paths."""
    app = admin.gateway.app
    access = Access(app.principals, is_required=False)
    routes = RouteEndpoints(plane=app.plane, access=access)
    endpoints = AdminEndpoints(catalog=app.catalog, access=access)
    return make_app(endpoints, routes, app.statuses), routes.verbs
