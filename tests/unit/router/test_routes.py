"""What a route may be, and the field that is named when it is not.

The faults that a document can have too are in test_document.py.
"""

from __future__ import annotations

from decimal import Decimal

import pytest

from router.faults import Fault, RouteError
from router.routes import KeySource, Route, Shadow, Variant, slots_of_weight
from router.slots import SLOTS
from tests.support.routes import faults_of


def variant(name: str, slots: int) -> Variant:
    return Variant(name=name, model="digits", version="1", slots=slots)


def route(*variants: Variant) -> Route:
    return Route(name="digits", revision=1, salt="digits", key=(), variants=variants)


@pytest.mark.parametrize(
    ("weight", "slots"),
    [
        ("0", 0),
        ("-0", 0),
        ("100", 1_000_000),
        ("100.00000000000000000000000000000000", 1_000_000),
        ("90", 900_000),
        ("0.0001", 1),
        ("33.3333", 333_333),
        ("1E+1", 100_000),
        ("99.9999", 999_999),
    ],
)
def test_a_weight_in_percent_is_a_whole_number_of_slots(weight: str, slots: int) -> None:
    assert slots_of_weight(Decimal(weight), path=()) == slots


@pytest.mark.parametrize(
    "weight",
    ["0.00001", "33.33333", "10.00000000000000000000000000000000001", "1E-999999"],
)
def test_a_weight_finer_than_a_slot_is_refused_however_fine_it_is(weight: str) -> None:
    with pytest.raises(RouteError, match=r"p: weight .* is finer than 0\.0001"):
        slots_of_weight(Decimal(weight), path=("p",))


@pytest.mark.parametrize("weight", ["-1", "-0.0001", "100.0001", "1E+9", "NaN", "sNaN", "Infinity"])
def test_a_weight_that_is_no_percentage_is_refused(weight: str) -> None:
    with pytest.raises(RouteError, match="is not between 0 and 100") as refused:
        slots_of_weight(Decimal(weight), path=("variants", "canary", "weight"))
    (fault,) = refused.value.faults
    assert fault.pointer == "/variants/canary/weight"


def test_a_variant_tells_its_weight_in_percent() -> None:
    assert variant("canary", 333_333).weight == Decimal("33.3333")


def test_a_route_of_one_or_more_variants_that_share_everything_is_valid() -> None:
    assert route(variant("stable", SLOTS)).heaviest.name == "stable"
    assert route(variant("a", 1), variant("b", SLOTS - 1), variant("c", 0)).heaviest.name == "b"


def test_the_first_of_equally_heavy_variants_speaks_for_the_route() -> None:
    assert route(variant("z", SLOTS // 2), variant("a", SLOTS // 2)).heaviest.name == "z"


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        ([], "a route needs at least one variant"),
        ([variant("a", SLOTS // 2)] * 2, "two variants have the same name"),
        ([variant("a", 900_000)], "weights sum to 90, not 100"),
        ([variant("a", 900_000), variant("b", 100_001)], "weights sum to 100.0001, not 100"),
        ([variant("a", 0)], "weights sum to 0, not 100"),
    ],
)
def test_a_route_that_cannot_be_names_its_field(variants: list[Variant], sentence: str) -> None:
    with pytest.raises(RouteError) as refused:
        route(*variants)
    assert faults_of(refused.value) == [("/variants", sentence)]
    assert str(refused.value) == f"variants: {sentence}"


def test_an_error_says_all_its_faults_each_under_its_field() -> None:
    faults = Fault(("key", 1), "no form"), Fault(("variants", "a", "weight"), "too much")
    assert str(RouteError(*faults)) == "key[1]: no form; variants.a.weight: too much"


def test_a_route_knows_its_stable_variant_though_none_is_named() -> None:
    assert route(variant("a", 1), variant("stable", SLOTS - 1)).stable == "stable"
    assert route(variant("a", 1), variant("b", SLOTS - 1)).stable == "b"
    assert route(variant("z", SLOTS // 2), variant("a", SLOTS // 2)).stable == "z"


def test_a_route_finds_its_variants_by_name() -> None:
    made = route(variant("a", 1), variant("b", SLOTS - 1))
    assert made.variant("b") == variant("b", SLOTS - 1)
    assert made.sizes == {"a": 1, "b": SLOTS - 1}
    with pytest.raises(KeyError):
        made.variant("c")


def test_everything_that_must_exist_is_named_with_its_place() -> None:
    made = Route(
        name="digits",
        revision=1,
        salt="digits",
        key=(),
        variants=(variant("a", SLOTS), variant("unused", 0)),
        shadows=(Shadow(name="next", model="other", version="7", sample_slots=0),),
    )
    assert list(made.targets()) == [
        (("variants", "a"), "digits", "1"),
        (("variants", "unused"), "digits", "1"),
        (("shadows", "next"), "other", "7"),
    ]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("header:x-user-id", KeySource(kind="header", name="x-user-id")),
        ("header: X-User-ID ", KeySource(kind="header", name="x-user-id")),
        ("parameter:User", KeySource(kind="parameter", name="User")),
        ("parameter:a:b", KeySource(kind="parameter", name="a:b")),
        ("principal", KeySource(kind="principal")),
    ],
)
def test_a_key_source_is_a_kind_and_a_name_and_the_principal_has_none(
    text: str, source: KeySource
) -> None:
    assert KeySource.parse(text, path=()) == source
    assert KeySource.parse(str(source), path=()) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "header",
        "header:",
        "header:  ",
        "cookie:a",
        ":x",
        "Header:x",
        "principal:a",
        "Principal",
    ],
)
def test_anything_else_is_no_key_source(text: str) -> None:
    with pytest.raises(RouteError, match=r"key\[0\]: .* is not of the form 'header:NAME', "):
        KeySource.parse(text, path=("key", 0))
