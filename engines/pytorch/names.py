"""By which names a program's inputs and outputs are served.

Knows names and positions; knows no tensors. A program names its inputs and, if it returns a
dictionary, its outputs; what it returns as a tuple has no names. The model's configuration may use
the program's names, or Triton's convention for torch: any name with a position behind two
underscores, INPUT__0, OUTPUT__1. Outputs without a name of their own are called OUTPUT__N.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from engines.base import TensorSpec
from engines.errors import ModelLoadError

_NUMBERED: Final = re.compile(r".*__([0-9]{1,4})")


# Any: containers of Python, as they are nested around a program's tensors.
def leaf_names(structure: Any, prefix: str = "") -> list[str]:
    """Return the names of what is in nested containers, in order; empty: it has none.

    A value in a dictionary is named for its key, one in a container there "key.other".
    """
    if isinstance(structure, Mapping):
        parts = [(str(key), value) for key, value in structure.items()]
    elif isinstance(structure, (tuple, list)):
        fields = getattr(structure, "_fields", None)
        is_named = prefix or fields
        keys = fields or map(str, range(len(structure)))
        parts = [
            (key if is_named else "", value) for key, value in zip(keys, structure, strict=True)
        ]
    else:
        return [prefix]
    names = []
    for key, value in parts:
        names += leaf_names(value, f"{prefix}.{key}" if prefix else key)
    return names


def unnamed(kind: str, position: int) -> str:
    """Return the name of what has none."""
    return f"{kind.upper()}__{position}"


def position_of(declared: str) -> int | None:
    """Return the position that a declared name tells; None: it tells none."""
    found = _NUMBERED.fullmatch(declared)
    return int(found[1]) if found else None


def served_names(
    kind: str, own: Sequence[Sequence[str]], declared: Sequence[TensorSpec]
) -> list[str]:
    """Return the names to serve, by position: declared ones, else the program's first.

    Args:
        kind: input or output.
        own: for each position, what the program calls it; may be nothing.
        declared: by the configuration.

    Raises:
        ModelLoadError: a declared name is none of them, or two mean the same.
    """
    served: dict[int, str] = {}
    for spec in declared:
        position = _position(kind, own, spec.name)
        if position in served:
            raise ModelLoadError(
                f"declared {kind}s {served[position]!r} and {spec.name!r} are the same {kind}"
            )
        served[position] = spec.name
    return [
        served.get(position) or next(filter(None, names), unnamed(kind, position))
        for position, names in enumerate(own)
    ]


def _position(kind: str, own: Sequence[Sequence[str]], declared: str) -> int:
    for position, names in enumerate(own):
        if declared in names:
            return position
    numbered = position_of(declared)
    if numbered is not None and numbered < len(own):
        return numbered
    known = [next(filter(None, names), unnamed(kind, n)) for n, names in enumerate(own)]
    raise ModelLoadError(
        f"declared {kind} {declared!r} is not in the model: it has {', '.join(known) or 'none'}, "
        f"or by position {unnamed(kind, 0)} and so on"
    )
