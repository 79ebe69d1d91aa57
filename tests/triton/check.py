"""One check: a sentence and a function that raises if it is not so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.triton.flavours import Flavour


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What is checked of one flavour."""

    sentence: str
    run: Callable[[Flavour], None]
    flavours: str = ""
    """Names of flavours, separated by spaces; empty: all of them."""

    def concerns(self, flavour: Flavour) -> bool:
        """Whether the check is made with this flavour."""
        return not self.flavours or flavour.name in self.flavours.split()


HTTP = "http http.aio"
GRPC = "grpc grpc.aio"


def check(run: Callable[[Flavour], None], flavours: str = "") -> Check:
    """Return a check whose sentence is the function's name."""
    return Check(sentence=run.__name__.replace("_", " "), run=run, flavours=flavours)


def check_of(
    run: Callable[[Flavour, str], None], subject: str, flavours: str = "", shown: str = ""
) -> Check:
    """Return a check of one subject (a datatype, a name, an algorithm), named in its sentence."""
    sentence = f"{run.__name__.replace('_', ' ')}: {shown or subject}"
    return Check(sentence=sentence, run=partial(_with, run, subject), flavours=flavours)


def _with(run: Callable[[Flavour, str], None], subject: str, flavour: Flavour) -> None:
    run(flavour, subject)
