"""Checks of refusals: the status, a sentence that names the field, the same over every client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from tests.triton import names
from tests.triton.check import HTTP, Check
from tests.triton.flavours import (
    EXPIRED,
    INTERNAL,
    INVALID,
    NOT_FOUND,
    Flavour,
    Status,
    Untyped,
)

_ECHO: Final = names.ECHO["FP32"]
_LONG_NAME: Final = "長" * 450
"""Makes an error of more than 1 KiB, as long as answers that are compressed. The asyncio client
accepts compression with every call, and decompresses no errors."""

Inputs = Callable[[Flavour], list[Untyped]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A request that must be refused."""

    about: str
    status: Status
    words: tuple[str, ...]
    """What the sentence must contain."""
    model: str = _ECHO
    inputs: Inputs = field(default=lambda flavour: [flavour.floats()])
    options: Callable[[Flavour], dict[str, Untyped]] = field(default=lambda flavour: {})
    flavours: str = ""
    is_worded_alike: bool = True
    """Whether each client is told the same sentence; not where a duration is in it."""

    def happen(self, flavour: Flavour) -> str:
        """Send the request and check the refusal; return the sentence."""
        inputs, options = self.inputs(flavour), self.options(flavour)
        return flavour.expect_error(self.status, self.words, "infer", self.model, inputs, **options)

    def check(self) -> Check:
        """Return the check of this refusal."""
        run = partial(_refuse, self)
        return Check(sentence=f"refused: {self.about}", run=run, flavours=self.flavours)


def _refuse(refusal: Refusal, flavour: Flavour) -> None:
    refusal.happen(flavour)


def _of_shape(*shape: int) -> Inputs:
    return lambda flavour: [flavour.floats(np.zeros(shape))]


def _integers(flavour: Flavour) -> list[Untyped]:
    return [flavour.tensor("x", "INT64", np.zeros((2, names.ECHO_WIDTH), np.int64))]


def _fewer_bytes(flavour: Flavour) -> list[Untyped]:
    tensor = flavour.floats()
    tensor.set_shape([3, names.ECHO_WIDTH])
    return [tensor]


def _shared_memory(flavour: Flavour) -> list[Untyped]:
    tensor = flavour.floats()
    tensor.set_shared_memory("region", 32)
    return [tensor]


def _no_text(flavour: Flavour) -> list[Untyped]:
    return [flavour.tensor("x", "BYTES", np.array([[b"\xff"]], dtype=object))]


def _bf16(flavour: Flavour) -> list[Untyped]:
    import ml_dtypes

    sample = np.zeros((1, names.ECHO_WIDTH), ml_dtypes.bfloat16)
    return [flavour.tensor("x", "BF16", sample)]


def _as_json(flavour: Flavour) -> dict[str, Untyped]:
    return {"outputs": [flavour.output("y", is_binary=False)]}


REFUSALS: Final = (
    Refusal(
        about="an unknown model",
        status=NOT_FOUND,
        words=(f"'{names.ABSENT}'",),
        model=names.ABSENT,
    ),
    Refusal(
        about="an unknown version of a model",
        status=NOT_FOUND,
        words=("'9'", f"'{_ECHO}'"),
        options=lambda flavour: {"model_version": "9"},
    ),
    Refusal(
        about="an unknown version of a route",
        status=NOT_FOUND,
        words=("'9'", f"'{names.ROUTE}'"),
        model=names.ROUTE,
        inputs=lambda flavour: [flavour.indices(1)],
        options=lambda flavour: {"model_version": "9"},
    ),
    Refusal(
        about="an unknown input",
        status=INVALID,
        words=("'größe'", "'x'"),
        inputs=lambda flavour: [flavour.floats(name="größe")],
    ),
    Refusal(
        about="an unknown input with a long name",
        status=INVALID,
        words=(_LONG_NAME,),
        inputs=lambda flavour: [flavour.floats(name=_LONG_NAME)],
    ),
    Refusal(
        about="a missing input",
        status=INVALID,
        words=("'label'",),
        model=names.PAIR,
        inputs=_of_shape(1, 2),
    ),
    Refusal(
        about="no input at all",
        status=INVALID,
        words=("'x'",),
        inputs=lambda flavour: [],
    ),
    Refusal(
        about="an input given twice",
        status=INVALID,
        words=("'x'", "twice"),
        inputs=lambda flavour: [flavour.floats(), flavour.floats()],
    ),
    Refusal(
        about="a wrong datatype",
        status=INVALID,
        words=("'x'", "INT64", "FP32"),
        inputs=_integers,
    ),
    Refusal(
        about="a wrong shape",
        status=INVALID,
        words=("'x'", "[2, 5]"),
        inputs=_of_shape(2, 5),
    ),
    Refusal(
        about="a shape without the batch axis",
        status=INVALID,
        words=("'x'", f"[{names.ECHO_WIDTH}]"),
        inputs=_of_shape(names.ECHO_WIDTH),
    ),
    Refusal(
        about="a wrong shape, by a route",
        status=INVALID,
        words=("'x'", "FP32", "INT64"),
        model=names.ROUTE,
    ),
    Refusal(
        about="fewer bytes than the shape takes",
        status=INVALID,
        words=("'x'", "32 bytes", "48"),
        inputs=_fewer_bytes,
    ),
    Refusal(
        about="a batch larger than the maximum",
        status=INVALID,
        words=("'x'", str(names.MAX_ROWS + 1), str(names.MAX_ROWS)),
        inputs=_of_shape(names.MAX_ROWS + 1, names.ECHO_WIDTH),
    ),
    Refusal(
        about="an unknown output",
        status=INVALID,
        words=("'nothing'",),
        options=lambda flavour: {"outputs": [flavour.output("nothing")]},
    ),
    Refusal(
        about="a classification",
        status=INVALID,
        words=("'y'", "classification"),
        options=lambda flavour: {"outputs": [flavour.output("y", class_count=1)]},
    ),
    Refusal(
        about="an input in shared memory",
        status=INVALID,
        words=("'x'", "shared memory"),
        inputs=_shared_memory,
    ),
    Refusal(
        about="a priority that the model does not have",
        status=INVALID,
        words=("'priority'", "9"),
        model=names.LEVELS,
        options=lambda flavour: {"priority": 9},
    ),
    Refusal(
        about="a timeout that passes before the answer",
        status=EXPIRED,
        words=("deadline", f"'{names.SLOW}'"),
        model=names.SLOW,
        options=lambda flavour: {"timeout": int(names.SLOW_S * 1e6 / 10)},
        is_worded_alike=False,
    ),
    Refusal(
        about="an element that makes the model fail",
        status=INTERNAL,
        words=(f"'{names.LOOKUP}'", "failed"),
        model=names.LOOKUP,
        inputs=lambda flavour: [flavour.indices(names.LOOKUP_SIZE)],
    ),
    Refusal(
        about="bytes that are no text, asked for as JSON",
        status=INVALID,
        words=("'y'", "binary_data"),
        model=names.BLOB,
        inputs=_no_text,
        options=_as_json,
        flavours=HTTP,
    ),
    Refusal(
        about="BF16, asked for as JSON",
        status=INVALID,
        words=("'y'", "BF16", "binary_data"),
        model=names.ECHO["BF16"],
        inputs=_bf16,
        options=_as_json,
        flavours=HTTP,
    ),
)
CHECKS: Final[tuple[Check, ...]] = tuple(refusal.check() for refusal in REFUSALS)


def expect_same_words(refusal: Refusal, flavours: Sequence[Flavour]) -> None:
    """Check that all clients are told the same sentence."""
    said = {flavour.name: refusal.happen(flavour) for flavour in flavours}
    assert len(set(said.values())) == 1, f"the sentences differ: {said}"
