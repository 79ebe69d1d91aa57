"""Who answers to a name, over every transport: routes, versions, and how the answer says so."""

from __future__ import annotations

import uuid

import pytest

from gateway.directory import read_key
from gateway.request import InferRequest
from tests.support.gateway import GatewayInProcess
from tests.support.transports import Answer, Ask, Given, Outcome, Transport

ROW = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0, 2.0, 3.0, 4.0])


def ask(
    transport: Transport,
    model: str,
    version: str = "",
    *,
    headers: dict[str, str] | None = None,
    parameters: dict[str, bool | int | float | str] | None = None,
) -> Answer:
    """Send one row to a name."""
    return transport.infer(
        Ask(
            model=model,
            version=version,
            inputs=(ROW,),
            headers=headers or {},
            parameters=parameters or {},
        )
    )


def expected_variant(gateway: GatewayInProcess, user: str) -> str:
    """Return the variant that the route table gives a user, without asking the gateway."""
    compiled = gateway.app.routes.snapshot["split"]
    request = InferRequest(name="split", header=lambda name: user)
    decision = compiled.decide(read_key(compiled.route, request, None), lambda: 0.0)
    return decision.variant.name


def user_of(gateway: GatewayInProcess, variant: str) -> str:
    """Return some user whose key belongs to a variant of the split."""
    users = (f"user-{number}" for number in range(1_000))
    return next(user for user in users if expected_variant(gateway, user) == variant)


def test_a_model_without_a_route_is_served_by_its_highest_ready_version(
    transport: Transport,
) -> None:
    answer = ask(transport, "mlp")  # its version 3 is corrupt
    assert answer.came_to(Outcome.OK), answer.error
    assert (answer.model, answer.version) == ("mlp", "2")
    assert answer.headers["x-sluice-reason"] == "model"
    assert "x-sluice-variant" not in answer.headers
    assert "x-sluice-revision" not in answer.headers


def test_a_version_of_a_model_is_reached_by_its_number(transport: Transport) -> None:
    first, second = ask(transport, "mlp", "1"), ask(transport, "mlp", "2")
    assert (first.version, second.version) == ("1", "2")
    assert first.headers["x-sluice-reason"] == "version"
    assert first.outputs["y"].elements != second.outputs["y"].elements


@pytest.mark.parametrize(("variant", "version"), [("stable", "1"), ("canary", "2")])
def test_a_key_decides_the_variant_and_the_answer_names_it(
    transport: Transport, gateway: GatewayInProcess, variant: str, version: str
) -> None:
    user = user_of(gateway, variant)
    answers = [ask(transport, "split", headers={"x-user-id": user}) for _ in range(3)]
    for answer in answers:
        assert answer.came_to(Outcome.OK), answer.error
        assert (answer.model, answer.version) == ("mlp", version)
        assert answer.headers["x-sluice-variant"] == variant
        assert answer.headers["x-sluice-revision"] == "1"
        assert answer.headers["x-sluice-reason"] == "slot"


def test_a_parameter_is_a_key_as_good_as_a_header(
    transport: Transport, gateway: GatewayInProcess
) -> None:
    user = user_of(gateway, "canary")
    answer = ask(transport, "split", parameters={"user": user})
    assert answer.headers["x-sluice-variant"] == "canary"


def test_the_first_key_source_that_is_present_wins(
    transport: Transport, gateway: GatewayInProcess
) -> None:
    stable, canary = user_of(gateway, "stable"), user_of(gateway, "canary")
    answer = ask(transport, "split", headers={"x-user-id": canary}, parameters={"user": stable})
    assert answer.headers["x-sluice-variant"] == "canary"


def test_without_a_key_the_variant_is_drawn(transport: Transport) -> None:
    answer = ask(transport, "split")
    assert answer.headers["x-sluice-reason"] == "random"
    assert answer.headers["x-sluice-variant"] in ("stable", "canary")


@pytest.mark.parametrize(("version", "variant"), [("1", "stable"), ("2", "canary")])
def test_a_version_bypasses_the_split(transport: Transport, version: str, variant: str) -> None:
    answer = ask(transport, "split", version)
    assert (answer.model, answer.version) == ("mlp", version)
    assert answer.headers["x-sluice-reason"] == "version"
    assert answer.headers["x-sluice-variant"] == variant


def test_a_route_takes_precedence_over_the_model_whose_name_it_bears(
    transport: Transport,
) -> None:
    answer = ask(transport, "twin")
    assert (answer.model, answer.version) == ("twin", "1")  # the model's highest is 3
    assert answer.headers["x-sluice-variant"] == "old"


@pytest.mark.parametrize(("version", "variant"), [("2", "new"), ("3", None)])
def test_a_version_that_no_variant_names_is_the_models_of_that_name(
    transport: Transport, version: str, variant: str | None
) -> None:
    answer = ask(transport, "twin", version)
    assert (answer.model, answer.version) == ("twin", version)
    assert answer.headers.get("x-sluice-variant") == variant


def test_a_version_that_one_model_of_the_variants_has_is_reached(transport: Transport) -> None:
    answer = ask(transport, "mixed", "2")
    assert (answer.model, answer.version) == ("rival", "2")
    assert answer.headers["x-sluice-variant"] == "next"


@pytest.mark.parametrize(
    ("model", "version", "sentence"),
    [
        (
            "mixed",
            "1",
            (
                "version '1' of route 'mixed' is ambiguous: it is that of the variants ours (mlp), "
                "theirs (rival)"
            ),
        ),
        (
            "mixed",
            "9",
            (
                "route 'mixed' has no variant of version '9' (it has 1, 2), "
                "and there is no model of that name"
            ),
        ),
        ("twin", "9", "version '9' of model 'twin' is not known"),
        ("mlp", "9", "version '9' of model 'mlp' is not known"),
        ("mlp", "canary", "version 'canary' of model 'mlp' is not known"),
        ("nobody", "", "no route and no model is named 'nobody'"),
        ("nobody", "1", "no route and no model is named 'nobody'"),
    ],
)
def test_a_name_or_version_that_is_not_known_is_not_found(
    transport: Transport, model: str, version: str, sentence: str
) -> None:
    answer = ask(transport, model, version)
    assert answer.came_to(Outcome.NOT_FOUND)
    assert answer.error == sentence


def test_a_version_that_did_not_load_is_unavailable_and_says_why(transport: Transport) -> None:
    answer = ask(transport, "mlp", "3")
    assert answer.came_to(Outcome.UNAVAILABLE)
    assert answer.error.startswith("model 'mlp' version 3 is not ready: model.onnx does not load")
    assert answer.headers["x-sluice-reason"] == "version"
    if isinstance(answer.code, int):
        assert answer.headers["retry-after"] == "1"


def test_every_answer_has_a_request_id_of_its_own(transport: Transport) -> None:
    answers = [ask(transport, name) for name in ("mlp", "split", "nobody", "mlp")]
    ids = [uuid.UUID(answer.headers["x-request-id"]) for answer in answers]
    assert len(set(ids)) == 4
    assert {found.version for found in ids} == {7}
    assert ids == sorted(ids, key=lambda found: found.int >> 80)  # by time


def test_a_refused_request_still_says_which_variant_it_was_for(transport: Transport) -> None:
    wrong = Given(name="x", datatype="FP32", shape=(1, 5), elements=[0.0] * 5)
    answer = transport.infer(Ask(model="twin", inputs=(wrong,)))
    assert answer.came_to(Outcome.INVALID)
    assert answer.headers["x-sluice-variant"] == "old"
