"""Requests that look right: the codecs' own properties, with the fuzzer in place of the dice.

An input is a byte, which chooses the property, then what Hypothesis draws its choices from. So what
comes out is a document or a message with a few things wrong, which bytes changed at random seldom
are; `http_codec` and `grpc_codec` do that.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final, cast

from tests.property import test_codec_properties as properties

_PROPERTIES: Final[tuple[Any, ...]] = (  # Any: what Hypothesis makes of a test
    properties.test_documents_that_look_right_are_at_worst_the_callers_fault,
    properties.test_messages_that_contradict_themselves_are_at_worst_the_callers_fault,
    properties.test_every_form_of_a_tensor_decodes_to_the_same_tensor,
    properties.test_an_answer_reads_back_as_it_was_in_every_form,
)
WORDS: Final = (b"\x00\x00", b"\xff\xff", b"\x01\x00", b"\x00\x01")


def seeds() -> list[bytes]:
    """Return choices for each property."""
    random = Random(4)
    return [
        bytes((number,)) + random.randbytes(random.choice((100, 400, 1_000)))
        for number in range(len(_PROPERTIES))
        for _ in range(12)
    ]


def one(data: bytes) -> None:
    """Check the property for the choices."""
    if data:
        check = _PROPERTIES[data[0] % len(_PROPERTIES)].hypothesis.fuzz_one_input
        cast("Callable[[bytes], object]", check)(data[1:])
