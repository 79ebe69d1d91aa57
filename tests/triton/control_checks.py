"""Checks of load and unload, at a gateway whose configuration allows them to clients."""

from __future__ import annotations

from typing import Final

from tests.triton import names
from tests.triton.check import Check, check
from tests.triton.flavours import NOT_FOUND, NOT_READY, UNSUPPORTED, Flavour

_ECHO: Final = names.ECHO["FP32"]


def an_unloaded_model_is_unavailable_until_it_is_loaded(flavour: Flavour) -> None:
    flavour.call("unload_model", _ECHO)
    assert flavour.call("is_model_ready", _ECHO) is False
    assert _state(flavour) == "UNAVAILABLE"
    flavour.expect_error(NOT_READY, [_ECHO], "infer", _ECHO, [flavour.floats()])
    flavour.call("load_model", _ECHO)
    assert flavour.call("is_model_ready", _ECHO) is True
    assert _state(flavour) == "READY"
    flavour.infer(_ECHO, flavour.floats())


def a_loaded_model_may_be_loaded_again(flavour: Flavour) -> None:
    flavour.call("load_model", _ECHO)
    flavour.infer(_ECHO, flavour.floats())


def unknown_models_are_neither_loaded_nor_unloaded(flavour: Flavour) -> None:
    flavour.expect_error(NOT_FOUND, [names.ABSENT], "load_model", names.ABSENT)
    flavour.expect_error(NOT_FOUND, [names.ABSENT], "unload_model", names.ABSENT)


def configurations_in_a_load_are_refused(flavour: Flavour) -> None:
    flavour.expect_error(UNSUPPORTED, ["config"], "load_model", _ECHO, config="{}")
    assert flavour.call("is_model_ready", _ECHO) is True


def _state(flavour: Flavour) -> str:
    found = flavour.document("get_model_repository_index")
    rows = found if flavour.is_http else found["models"]
    (state,) = [row["state"] for row in rows if row["name"] == _ECHO]
    return str(state)


CHECKS: Final[tuple[Check, ...]] = (
    check(an_unloaded_model_is_unavailable_until_it_is_loaded),
    check(a_loaded_model_may_be_loaded_again),
    check(unknown_models_are_neither_loaded_nor_unloaded),
    check(configurations_in_a_load_are_refused),
)
