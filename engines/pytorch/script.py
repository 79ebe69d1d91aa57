"""TorchScript, for old files: torch has deprecated it, and says so at every load.

Knows torch.jit. A script tells the names of its arguments and neither datatypes nor shapes, so the
model's configuration declares them; Triton's names by position (INPUT__0, OUTPUT__0) are known.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from engines.base import EngineConfig, TensorSpec
from engines.errors import ModelLoadError
from engines.pytorch import declarations, names
from engines.pytorch.failures import first_line
from engines.pytorch.formats import ModelFile
from engines.pytorch.program import Program, Tensors

# Operators that change a tensor in place end in one underscore: aten::add_(...).
_IN_PLACE: Final = re.compile(r"::\w*[a-z0-9]_\(")


def open_script(file: ModelFile, config: EngineConfig, device: str) -> Program:
    """Load a TorchScript file.

    Raises:
        ModelLoadError: it cannot be served, or its signature is not declared.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated
            read: Any = torch.jit.load  # untyped, as what it returns
            module = read(str(file.path), map_location=device).eval()
        schema = module.forward.schema
    except Exception as exc:  # foreign: RuntimeErrors of many kinds, AttributeError without forward
        raise ModelLoadError(f"{file.path.name} does not load: {first_line(exc)}") from exc
    try:
        return _program(module, schema, config)
    except ModelLoadError as exc:
        raise ModelLoadError(f"{file.path.name}: {exc}") from None


# Any: torch's own schemas are untyped; the same below.
def _program(module: torch.jit.ScriptModule, schema: Any, config: EngineConfig) -> Program:
    arguments = _arguments(schema)
    declarations.check("TorchScript", config, arguments)
    served = names.served_names("input", [(name,) for name in arguments], config.inputs)
    given = dict(zip(served, arguments, strict=True))
    specs = declarations.whole_shapes(config, config.inputs)
    missing = [a.name for a in schema.arguments[1:] if not a.has_default_value()]
    taken = [given[spec.name] for spec in specs]
    if left := [name for name in missing if name not in taken]:
        raise ModelLoadError(f"the model's input {left[0]!r} is not declared")
    graph = module.inlined_graph
    parameters = (*module.parameters(), *module.buffers(), *_constants(graph))
    return Program(
        run=_runner(module, taken, _picker(schema.returns[0].type, config.outputs)),
        inputs=specs,
        outputs=declarations.whole_shapes(config, config.outputs),
        config=replace(config, max_batch_size=config.max_batch_size or 0),
        written=frozenset(given if _IN_PLACE.search(str(graph)) else ()),
        held=parameters,
    )


def _arguments(schema: Any) -> list[str]:
    """Return the names of the arguments that take tensors."""
    found = []
    for argument in schema.arguments[1:]:
        kind = str(argument.type)
        if kind in ("Tensor", "Optional[Tensor]"):
            found.append(argument.name)
        elif not argument.has_default_value():
            raise ModelLoadError(
                f"forward's argument {argument.name!r} is a {kind}: only tensors can be served"
            )
    return found


def _constants(graph: Any) -> list[torch.Tensor]:
    """Return the tensors that a frozen script keeps in its graph."""
    return [
        node.t("value")
        for node in graph.findAllNodes("prim::Constant")
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    ]


def _runner(
    module: torch.jit.ScriptModule, taken: Sequence[str], pick: Callable[[Any], Tensors]
) -> Callable[[list[torch.Tensor]], Tensors]:
    def run(tensors: list[torch.Tensor]) -> Tensors:
        try:
            returned = module(**dict(zip(taken, tensors, strict=True)))
        except RuntimeError as exc:
            if isinstance(exc, torch.jit.Error) or first_line(exc) == str(exc):
                raise
            raise RuntimeError(first_line(exc)) from exc  # without the listing of the script
        return pick(returned)

    return run


def _picker(returned: Any, declared: Sequence[TensorSpec]) -> Callable[[Any], Tensors]:
    """Return how the declared outputs are taken from what the script returns."""
    kind = returned.kind()
    if kind == "TensorType" and len(declared) == 1:
        return lambda value: (value,)
    if kind == "DictType":
        keys = [spec.name for spec in declared]
        return lambda value: [_entry(value, key) for key in keys]
    if kind not in ("TensorType", "TupleType", "ListType"):
        raise ModelLoadError(f"forward returns a {returned}: only tensors can be served")
    count = {"TensorType": 1, "ListType": None}.get(kind, 0)
    if count == 0:
        elements = returned.elements()
        if other := [str(e) for e in elements if str(e) != "Tensor"]:
            raise ModelLoadError(f"forward returns a {other[0]} among others: only tensors can be")
        count = len(elements)
    positions = declarations.positions(declared, count)
    return lambda value: [value[position] for position in positions]


def _entry(value: Mapping[str, torch.Tensor], key: str) -> torch.Tensor:
    if key not in value:
        has = ", ".join(sorted(value))
        raise ValueError(f"the model returned no {key!r}, only {has}")
    return value[key]
