"""The admin API's own description as a judge: what is answered must be what it says.

A `Contract` looks an exchange up by method, path and status, and holds body and headers against the
schemas there. Undocumented statuses, keys and headers are failures, and so is a request that was
accepted although the description does not allow it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, Final

import httpx
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

_URI: Final = "urn:admin"
_CONTRACT_HEADERS: Final = ("etag", "retry-after", "www-authenticate")
"""Headers that a caller acts on: none of them may come unannounced."""
METHODS: Final = ("get", "put", "patch", "post", "delete")
Json = Any  # Any: a JSON document


def description() -> Json:
    """Return the shipped description."""
    return json.loads(files("gateway.http_api").joinpath("openapi.json").read_bytes())


class Contract:
    """Checks exchanges. Give `check` to an httpx client as a hook on responses."""

    def __init__(self, document: Json) -> None:
        self._document = document
        resource = DRAFT202012.create_resource(document)
        self._registry: Registry[Json] = Registry().with_resource(_URI, resource)
        templates = sorted(document["paths"], key=_specific)
        self._paths = [(_pattern(template), template) for template in templates]
        self.seen: set[tuple[str, str, str]] = set()
        """Method, template and status of every exchange that was checked."""

    def operations(self) -> set[tuple[str, str]]:
        """Return method and template of everything that is described."""
        paths = self._document["paths"].items()
        return {(method, path) for path, item in paths for method in METHODS if method in item}

    def examples(self) -> Iterator[tuple[str, Json, Json]]:
        """Yield every example of a body: where it is, its schema, its value."""
        yield from self._examples(self._document, "#")

    def _examples(self, node: Json, at: str) -> Iterator[tuple[str, Json, Json]]:
        if isinstance(node, Mapping):
            if "schema" in node:
                for name, example in node.get("examples", {}).items():
                    yield f"{at}/examples/{name}", node["schema"], example["value"]
                if "example" in node:
                    yield f"{at}/example", node["schema"], node["example"]
            for key, child in node.items():
                if key not in ("examples", "example"):
                    yield from self._examples(child, f"{at}/{key}")

    def check(self, response: httpx.Response) -> None:
        """Raise AssertionError unless an exchange is as described."""
        request = response.request
        template = self.template(request.url.path)
        assert template, f"{request.url.path} is not described"
        method = request.method.lower()
        operation = self._document["paths"][template].get(method)
        assert operation, f"{method} {template} is not described"
        where = f"{request.method} {template} -> {response.status_code}"
        described = operation["responses"].get(str(response.status_code))
        assert described, f"{where} is not described"
        self.seen.add((method, template, str(response.status_code)))
        answer = self.resolve(described)
        self._check_headers(where, response, answer.get("headers", {}))
        self._check_body(where, response, answer.get("content", {}))
        if response.is_success and request.content and "requestBody" in operation:
            self._check_request(where, request, operation["requestBody"]["content"])

    def template(self, path: str) -> str | None:
        """Return the described path that an actual one is an instance of."""
        return next((t for pattern, t in self._paths if pattern.fullmatch(path)), None)

    def resolve(self, node: Json) -> Json:
        """Follow a reference within the document, if it is one."""
        while "$ref" in node:
            target: Json = self._document
            for part in node["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            node = target
        return node

    def faults(self, schema: Json, value: Json) -> list[str]:
        """Return what is wrong with a value, in sentences."""
        return [
            f"at /{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"
            for error in self._validator(schema).iter_errors(value)
        ]

    def _validator(self, schema: Json) -> Validator:
        wrapped = _anchored(schema)
        checker = Draft202012Validator.FORMAT_CHECKER
        return Draft202012Validator(wrapped, registry=self._registry, format_checker=checker)

    def _check_headers(self, where: str, response: httpx.Response, described: Json) -> None:
        lower = {name.lower(): self.resolve(header) for name, header in described.items()}
        for name in _CONTRACT_HEADERS:
            assert name in lower or name not in response.headers, f"{where}: header {name}"
        for name, header in lower.items():
            value = response.headers.get(name)
            if value is None:
                assert not header.get("required"), f"{where}: no header {name}"
            else:
                assert not (wrong := self.faults(header["schema"], value)), f"{where}: {wrong}"

    def _check_body(self, where: str, response: httpx.Response, described: Json) -> None:
        kind = response.headers["content-type"].partition(";")[0]
        assert kind in described, f"{where}: a body of type {kind}"
        if kind != "application/json":
            return  # a stream: whoever reads it checks its events
        body = json.loads(response.read())
        assert not (wrong := self.faults(described[kind]["schema"], body)), f"{where}: {wrong}"

    def _check_request(self, where: str, request: httpx.Request, described: Json) -> None:
        kind = request.headers["content-type"].partition(";")[0]
        assert kind in described, f"{where}: accepted a body of type {kind}"
        wrong = self.faults(described[kind]["schema"], json.loads(request.content))
        assert not wrong, f"{where}: accepted {wrong}"


def _anchored(schema: Json) -> Json:
    """Return a schema whose references are found from anywhere."""
    if isinstance(schema, Mapping):
        return {
            key: _URI + value if key == "$ref" else _anchored(value)
            for key, value in schema.items()
        }
    return [_anchored(value) for value in schema] if isinstance(schema, list) else schema


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[a-z]+\})", template)
    return re.compile("".join("[^/:]+" if p.startswith("{") else re.escape(p) for p in parts))


def _specific(template: str) -> tuple[int, str]:
    return (template.count("{"), template)
