"""Optimisation profiles: the ranges of shapes that a plan is built for, and runs.

Pure; knows no TensorRT. A profile gives each input that varies its smallest, its best and its
largest shape; kernels are chosen for the best one. What people write is
``x:1x3x224x224,8x3x224x224,32x3x224x224``, inputs apart by ``;``.

From buckets one profile is made, from the smallest to the largest, best at the largest: under load
batches are full, and a small batch waits for kernels to start more than for what they do. A profile
per bucket has the best kernels for each at a build that takes as many times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engines.base import TensorSpec
from engines.errors import ModelLoadError

Shape = tuple[int, ...]
EXAMPLE: Final = "x:1x3x224x224,8x3x224x224,32x3x224x224"


class InvalidRecipe(ModelLoadError):
    """What cannot be built, of this model or by this TensorRT; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Range:
    """Shapes of one input in one profile."""

    least: Shape
    best: Shape
    most: Shape

    def covers(self, shape: Shape) -> bool:
        """Whether an input may have this shape."""
        return len(shape) == len(self.least) and all(
            low <= size <= high
            for low, size, high in zip(self.least, shape, self.most, strict=True)
        )

    def __str__(self) -> str:
        return ",".join("x".join(map(str, s)) for s in (self.least, self.best, self.most))


Profile = Mapping[str, Range]
"""By input; an input that cannot vary may be left out."""


def parse(text: str) -> dict[str, Range]:
    """Read a profile as people write it.

    Raises:
        InvalidRecipe: it is none.
    """
    profile: dict[str, Range] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, shapes = part.rpartition(":")
        found = [_shape(shape, text) for shape in shapes.split(",")]
        if not colon or not name or len(found) not in (1, 3):
            raise _unreadable(text)
        if name in profile:
            raise InvalidRecipe(f"the profile {text!r} names {name!r} twice")
        profile[name] = Range(*found) if len(found) == 3 else Range(*found * 3)
        _check_order(name, profile[name])
    if not profile:
        raise _unreadable(text)
    return profile


def check(profiles: Sequence[Profile], inputs: Sequence[TensorSpec]) -> None:
    """Check profiles against the inputs of the model that they are for.

    Raises:
        InvalidRecipe: they do not fit it; the first fault, as a sentence.
    """
    by_name = {spec.name: spec for spec in inputs}
    varying = [spec for spec in inputs if -1 in spec.shape]
    if varying and not profiles:
        first = varying[0]
        raise InvalidRecipe(
            f"input {first.name!r} has the shape {list(first.shape)}, which varies: "
            f"a profile has to say how, such as {EXAMPLE}"
        )
    for number, profile in enumerate(profiles):
        for name, given in profile.items():
            if name not in by_name:
                raise InvalidRecipe(f"profile {number}: the model has no input {name!r}")
            _check_order(name, given)
            _check_fits(number, by_name[name], given)
        for spec in varying:
            if spec.name not in profile:
                raise InvalidRecipe(
                    f"profile {number} leaves out {spec.name!r}, whose shape varies"
                )


def from_buckets(
    inputs: Sequence[TensorSpec], buckets: Sequence[int], *, each: bool = False
) -> tuple[dict[str, Range], ...]:
    """Return the profile of a model whose first axis alone varies; or one per bucket.

    Raises:
        InvalidRecipe: another axis varies too, of which nothing is known.
    """
    for spec in inputs:
        if -1 in spec.shape[1:] or (-1 in spec.shape and not buckets):
            raise InvalidRecipe(
                f"input {spec.name!r} has the shape {list(spec.shape)}: for axes beside the batch "
                f"that vary, give the parameter `profiles`, such as {EXAMPLE}"
            )
    varying = [spec for spec in inputs if -1 in spec.shape]
    if not varying:
        return ()
    ends = [(rows, rows) for rows in buckets] if each else [(buckets[0], buckets[-1])]
    return tuple(
        {
            spec.name: Range(
                (low, *spec.shape[1:]), (high, *spec.shape[1:]), (high, *spec.shape[1:])
            )
            for spec in varying
        }
        for low, high in ends
    )


def covering(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int | None:
    """Return the number of the profile for these shapes; None: none takes them.

    Of several, the one whose best shapes are nearest in elements, as its kernels are chosen for
    them.
    """
    elements = {name: _elements(shape) for name, shape in shapes.items()}

    def distance(number: int) -> int:
        profile = profiles[number]
        return sum(abs(elements[name] - _elements(of.best)) for name, of in profile.items())

    fitting = [
        number
        for number, profile in enumerate(profiles)
        if all(of.covers(shapes[name]) for name, of in profile.items())
    ]
    return min(fitting, key=distance, default=None)


def most_rows(profiles: Sequence[Profile], names: Iterable[str]) -> int:
    """Return the rows of the largest batch that a profile takes of these inputs; 0: none varies."""
    wanted = tuple(names)
    return max(
        (min((p[name].most[0] for name in wanted if name in p), default=0) for p in profiles),
        default=0,
    )


def fixed_by(profiles: Sequence[Profile], spec: TensorSpec) -> Shape:
    """Return an input's shape with what every profile holds to one number in place of -1."""
    shape = list(spec.shape)
    for axis, size in enumerate(shape):
        found = {s for p in profiles if spec.name in p for s in _axis(p[spec.name], axis)}
        if size == -1 and len(found) == 1:
            shape[axis] = found.pop()
    return tuple(shape)


def _axis(given: Range, axis: int) -> tuple[int, int]:
    return given.least[axis], given.most[axis]


def _elements(shape: Shape) -> int:
    return math.prod(shape)


def _shape(text: str, whole: str) -> Shape:
    sizes = text.strip().split("x")
    if not all(size.isascii() and size.isdecimal() for size in sizes):
        raise _unreadable(whole)
    return tuple(int(size) for size in sizes)


def _unreadable(text: str) -> InvalidRecipe:
    return InvalidRecipe(
        f"{text!r} is no profile: NAME:SMALLEST,BEST,LARGEST for each input, such as {EXAMPLE}"
    )


def _check_order(name: str, given: Range) -> None:
    ranks = {len(shape) for shape in (given.least, given.best, given.most)}
    axes = zip(given.least, given.best, given.most, strict=False)
    if len(ranks) != 1 or not all(0 < low <= best <= high for low, best, high in axes):
        raise InvalidRecipe(
            f"{name}:{given} does not rise: on every axis 1 <= smallest <= best <= largest"
        )


def _check_fits(number: int, spec: TensorSpec, given: Range) -> None:
    fits = len(given.least) == len(spec.shape) and all(
        size in (-1, low) and (size == -1 or low == high)
        for size, low, high in zip(spec.shape, given.least, given.most, strict=True)
    )
    if not fits:
        raise InvalidRecipe(
            f"profile {number}: {spec.name}:{given} does not fit the input's shape "
            f"{list(spec.shape)}"
        )
