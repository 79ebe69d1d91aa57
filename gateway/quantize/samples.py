"""Rows to calibrate with and to compare on: read from an .npz file, split, put into batches.

A sample is a dictionary of arrays by input name that can be run as it is. Of a batched model it has
one row or a few, and samples of one form are joined to batches; of any other model it is a whole
run, and stays one. Every fourth sample is held out: rows that come one after the other are alike,
so that the last quarter would be others than those before it.

Pure numpy; knows neither onnx nor the prediction log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile

from engines.tensors import BYTES, DATATYPES, Array
from gateway.quantize.faults import WrongInput
from gateway.quantize.graphs import DYNAMIC, Port, Signature

Sample = dict[str, Array]
HELD_OUT_OF: Final = 4
MIN_ROWS: Final = 16
"""Fewer say too little of the values that come."""
BATCH_ROWS: Final = 32


class Split(NamedTuple):
    """Samples for two uses; none is in both."""

    calibration: list[Sample]
    held_out: list[Sample]


def from_npz(path: Path, signature: Signature) -> list[Sample]:
    """Read arrays by input name, whose first axis is rows.

    Of a model without a batch axis a row is a whole input; where its first axis has a fixed size,
    arrays of its own number of axes are cut into pieces of that size instead.

    Raises:
        WrongInput: it is no such file, or its arrays are not what the model takes.
    """
    with _opened(path) as found:
        arrays = {port.name: _array(path, found, port) for port in signature.inputs}
    if signature.is_batched:
        _check_shapes(path, arrays, signature, {n: a.shape for n, a in arrays.items()})
        return _pieces(arrays, 1, path)
    if all(arrays[port.name].ndim == len(port.shape) + 1 for port in signature.inputs):
        _check_shapes(path, arrays, signature, {n: a.shape[1:] for n, a in arrays.items()})
        return [{n: a[0] for n, a in piece.items()} for piece in _pieces(arrays, 1, path)]
    sizes = {port.shape[:1] for port in signature.inputs}
    if len(sizes) > 1 or sizes & {(), (DYNAMIC,)}:
        raise WrongInput(f"{path}: the model has no batch axis: give each array one axis more")
    ((size,),) = sizes
    _check_shapes(path, arrays, signature, {n: (size, *a.shape[1:]) for n, a in arrays.items()})
    return _pieces(arrays, size, path)


def check_port(port: Port) -> None:
    """Refuse an input whose values cannot be read here.

    Raises:
        WrongInput: it is of text or of BF16.
    """
    if port.datatype in (BYTES, "BF16"):
        raise WrongInput(f"input {port} is of a datatype that calibration does not read")


def fits(shape: Sequence[int], port: Port) -> bool:
    """Whether an array of this shape can be the input."""
    return len(shape) == len(port.shape) and all(
        size in (DYNAMIC, found) for size, found in zip(port.shape, shape, strict=True)
    )


def is_finite(array: Array) -> bool:
    """Whether an array has neither NaN nor infinities."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def split(samples: Sequence[Sample]) -> Split:
    """Put every fourth sample aside."""
    held_out = list(samples[HELD_OUT_OF - 1 :: HELD_OUT_OF])
    rest = [s for index, s in enumerate(samples) if index % HELD_OUT_OF != HELD_OUT_OF - 1]
    return Split(rest, held_out)


def batches(samples: Iterable[Sample], *, is_batched: bool) -> list[Sample]:
    """Join samples of one form, of a batched model; others stay as they are."""
    if not is_batched:
        return list(samples)
    groups: dict[tuple[object, ...], list[Sample]] = {}
    for sample in samples:
        form = tuple((name, array.shape[1:]) for name, array in sorted(sample.items()))
        groups.setdefault(form, []).append(sample)
    found = []
    for group in groups.values():
        whole = {name: np.concatenate([sample[name] for sample in group]) for name in group[0]}
        size = rows_in(whole)
        found += [
            {name: array[start : start + BATCH_ROWS] for name, array in whole.items()}
            for start in range(0, size, BATCH_ROWS)
        ]
    return found


def rows(samples: Iterable[Sample], *, is_batched: bool) -> int:
    """Return how many rows samples have; a run of a model without a batch axis is one."""
    return sum(rows_in(sample) if is_batched else 1 for sample in samples)


def rows_in(sample: Mapping[str, Array]) -> int:
    """Return the length of the first axis."""
    return next((len(array) for array in sample.values()), 0)


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    try:
        file = path.open("rb")  # ours: numpy leaves a broken one open
    except OSError as exc:
        raise WrongInput(f"cannot read {path}: {exc.strerror or exc}") from exc
    with file:
        try:
            found = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, BadZipFile, OSError) as exc:
            raise WrongInput(f"{path} is no .npz file of plain arrays") from exc
        if not isinstance(found, NpzFile):
            raise WrongInput(f"{path} is no .npz file: numpy.savez writes one, arrays by name")
        yield found


def _array(path: Path, found: NpzFile, port: Port) -> Array:
    """Return the array of an input, in the model's datatype."""
    check_port(port)
    try:
        if port.name not in found:
            names = ", ".join(map(repr, found)) or "none"
            raise WrongInput(f"{path} has no array {port.name!r}; it has {names}")
        array = found[port.name]
    except (ValueError, EOFError, BadZipFile, OSError) as exc:
        raise WrongInput(f"{path}: array {port.name!r} is no plain array") from exc
    dtype = DATATYPES[port.datatype].dtype
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise WrongInput(f"{path}: array {port.name!r} is {array.dtype}, the input {port}")
    if not is_finite(array):
        raise WrongInput(f"{path}: array {port.name!r} has values that are not finite")
    return array.astype(dtype, copy=False)


def _check_shapes(
    path: Path,
    arrays: Mapping[str, Array],
    signature: Signature,
    runs: Mapping[str, Sequence[int]],
) -> None:
    """Check the shapes of what would be run, by input."""
    for port in signature.inputs:
        if not fits(runs[port.name], port):
            shape = list(arrays[port.name].shape)
            raise WrongInput(f"{path}: array {port.name!r} has shape {shape}, the input is {port}")


def _pieces(arrays: Mapping[str, Array], size: int, path: Path) -> list[Sample]:
    """Cut arrays into samples of so many rows; what is left over is left out."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise WrongInput(f"{path}: arrays differ in their rows: {text}")
    starts = range(0, min(lengths.values(), default=0) // size * size, size)
    return [{name: a[start : start + size] for name, a in arrays.items()} for start in starts]
