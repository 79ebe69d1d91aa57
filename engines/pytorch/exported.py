"""Programs of torch.export, as .pt2 files hold them: graph, weights and signature, no Python code.

Knows torch.export; knows no batch. The signature is the file's own: names, datatypes, and which
dimensions vary, within which bounds. vetting.py reads the file before torch does.
"""

from __future__ import annotations

import linecache
import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    TensorArgument,
)
from torch.export.passes import move_to_device_pass
from torch.export.pt2_archive import _package
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from engines.base import EngineConfig, TensorSpec
from engines.errors import ModelLoadError
from engines.pytorch import names, sizes, vetting
from engines.pytorch.arrays import DATATYPES
from engines.pytorch.failures import first_line
from engines.pytorch.formats import ModelFile
from engines.pytorch.program import Program, Tensors

_GENERATED: Final = "<eval_with_key>"
_reading = threading.Lock()
"""torch has one deserializer per process, and a second program read meanwhile fails on it."""


def open_exported(file: ModelFile, config: EngineConfig, device: str) -> Program:
    """Load an exported program.

    Raises:
        ModelLoadError: it cannot be served, or not on that device.
    """
    with _reading:
        return _opened(file, config, device)


def _opened(file: ModelFile, config: EngineConfig, device: str) -> Program:
    kinds = vetting.devices_of(file)
    if foreign := kinds - {"cpu", device.partition(":")[0]}:
        raise ModelLoadError(
            f"{file.path.name} was exported on {min(foreign)} and runs there only: a program that "
            "is exported on the CPU runs on either"
        )
    exported = _read(file)
    if device != "cpu":
        exported = move_to_device_pass(exported, device)
    try:
        return _program(exported, config)
    except ModelLoadError as exc:
        _empty(_held(exported))
        raise ModelLoadError(f"{file.path.name}: {exc}") from None
    finally:
        _forget()


def _read(file: ModelFile) -> ExportedProgram:
    # Not torch.export.load: it answers a file that fails by trying an old format, with pickles.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _package.load_pt2(str(file.path)).exported_programs[file.model]
    except Exception as exc:  # foreign: whatever torch's readers raise, KeyError to SerializeError
        raise ModelLoadError(f"{file.path.name} does not load: {first_line(exc)}") from exc


def _program(exported: ExportedProgram, config: EngineConfig) -> Program:
    given, constants = _inputs(exported)
    taken = _outputs(exported)
    inputs = _Side("input", [leaf for _, leaf in given], config.inputs)
    outputs = _Side("output", [leaf for _, leaf in taken], config.outputs)
    ranges = exported.range_constraints
    rows = sizes.rows_of(inputs.sizes, outputs.sizes, ranges)
    every = (*inputs.specs, *outputs.specs)
    is_varying = bool(inputs.specs) and all(spec.shape[:1] == (-1,) for spec in every)
    shapes = sizes.OutputShapes(inputs.by_name(), outputs.by_name())
    written = written_by(exported.graph.nodes)
    run = _runner(exported, [n for n, _ in given], constants, [n for n, _ in taken])
    held = _held(exported)
    return Program(
        run=run,
        inputs=inputs.specs,
        outputs=outputs.specs,
        config=sizes.bounded(config, rows, is_varying=is_varying),
        least_rows=rows.least,
        written=frozenset(
            name
            for name, (_, leaf) in zip(inputs.by_name(), given, strict=True)
            if leaf.node.name in written
        ),
        held=held,
        output_shapes=shapes if shapes.are_known else None,
        largest=shapes.largest(ranges),
        is_steady=not _has_control_flow(exported),
        can_capture=True,
        close=lambda: _empty(held),
    )


class _Leaf:
    """One tensor that goes in or comes out."""

    def __init__(self, kind: str, node: Node, own_names: Sequence[str]) -> None:
        value = node.meta["val"]
        if value.dtype not in DATATYPES:
            raise ModelLoadError(f"{kind} {own_names[0]!r} is a {value.dtype}, which has no name")
        self.node = node
        self.names = own_names
        self.datatype = DATATYPES[value.dtype]
        self.sizes = sizes.sizes_of(value)


class _Side:
    """All inputs or outputs, under the names that are served."""

    def __init__(self, kind: str, leaves: Sequence[_Leaf], declared: Sequence[TensorSpec]) -> None:
        served = names.served_names(kind, [leaf.names for leaf in leaves], declared)
        self.sizes = [leaf.sizes for leaf in leaves]
        self.specs = tuple(
            TensorSpec(name=name, datatype=leaf.datatype, shape=sizes.shape_of(leaf.sizes))
            for name, leaf in zip(served, leaves, strict=True)
        )

    def by_name(self) -> dict[str, sizes.Sizes]:
        return {spec.name: own for spec, own in zip(self.specs, self.sizes, strict=True)}


def _has_control_flow(exported: ExportedProgram) -> bool:
    """Whether values may say how much there is to do: by loops, or by sizes made of values."""
    targets = [node.target for node in exported.graph.nodes]
    # Sizes made of values are u0 and on, those of inputs s0 and on.
    has_free_sizes = any(str(symbol).startswith("u") for symbol in exported.range_constraints)
    return has_free_sizes or any(isinstance(target, HigherOrderOperator) for target in targets)


# Any: constants that a program was exported with are plain values of Python.
def _inputs(exported: ExportedProgram) -> tuple[list[tuple[int, _Leaf]], list[Any]]:
    """Return the tensors that go in with their positions, and all positions' constants."""
    nodes = {node.name: node for node in exported.graph.nodes}
    specs = [s for s in exported.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    own = names.leaf_names(exported.call_spec.in_spec.unflatten([None] * len(specs)))
    leaves, constants = [], []
    for position, (spec, name) in enumerate(zip(specs, own, strict=True)):
        constants.append(getattr(spec.arg, "value", None))
        if isinstance(spec.arg, TensorArgument):
            known = list(filter(None, (spec.arg.name, name)))
            leaves.append((position, _Leaf("input", nodes[spec.arg.name], known)))
        elif not isinstance(spec.arg, ConstantArgument):
            raise ModelLoadError(f"input {spec.arg.name!r} is a number that varies, not a tensor")
    return leaves, constants


def _outputs(exported: ExportedProgram) -> list[tuple[int, _Leaf]]:
    """Return the tensors that come out with their positions; None is left out."""
    nodes = {node.name: node for node in exported.graph.nodes}
    specs = [s for s in exported.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    own = names.leaf_names(exported.call_spec.out_spec.unflatten([None] * len(specs)))
    leaves: list[tuple[int, _Leaf]] = []
    for position, (spec, name) in enumerate(zip(specs, own, strict=True)):
        if isinstance(spec.arg, TensorArgument):
            known = [name or names.unnamed("output", len(leaves)), spec.arg.name]
            leaves.append((position, _Leaf("output", nodes[spec.arg.name], known)))
        elif getattr(spec.arg, "value", spec.arg) is not None:
            raise ModelLoadError(f"output {position} is not a tensor")
    return leaves


# Any: see _inputs.
def _runner(
    exported: ExportedProgram, given: Sequence[int], constants: list[Any], taken: Sequence[int]
) -> Callable[[list[torch.Tensor]], Tensors]:
    """Return the program as a function of its tensors alone.

    It is generated to take and give them flat: nesting and unnesting, as the model's own `forward`
    does, would cost several times what the guards and the dispatch of a small model do.
    """
    module = exported.module()
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    forward = module.forward
    for node in (*module.graph.nodes, *exported.graph.nodes):
        node.meta = {}  # what it was traced with: only the signature needed it

    def run(tensors: list[torch.Tensor]) -> Tensors:
        leaves = constants.copy()
        for position, tensor in zip(given, tensors, strict=True):
            leaves[position] = tensor
        outputs = forward(*leaves)
        return [outputs[position] for position in taken]

    return run


def written_by(nodes: Iterable[Node]) -> frozenset[str]:
    """Return the names of the placeholders that a graph may write to, itself or through a view."""
    # Of each node: the placeholders whose memory it may be.
    origins: dict[Node, frozenset[str]] = {}
    written: frozenset[str] = frozenset()
    for node in nodes:
        if node.op == "placeholder":
            origins[node] = frozenset({node.name})
        elif isinstance(node.target, torch._ops.OpOverload):
            shared, changed = _aliases(node, node.target, origins)
            origins[node] = shared
            written |= changed
        elif node.op == "call_function":
            origins[node] = _origins(node.all_input_nodes, origins)
            # A function of graphs (a branch, a loop): what it does inside is not looked at.
            if node.target is not operator.getitem:
                written |= origins[node]
    return written


def _aliases(
    node: Node, target: torch._ops.OpOverload, origins: dict[Node, frozenset[str]]
) -> tuple[frozenset[str], frozenset[str]]:
    """Return whose memory an operator's result may be, and whose it writes."""
    schema = target._schema
    shared: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is None:
            continue
        value = node.args[position] if position < len(node.args) else None
        value = node.kwargs.get(argument.name, value)
        found = _origins(value if isinstance(value, (list, tuple)) else [value], origins)
        shared |= found
        if argument.alias_info.is_write:
            written |= found
    is_alias = any(returned.alias_info is not None for returned in schema.returns)
    return shared if is_alias else frozenset(), written


def _origins(values: Iterable[object], origins: dict[Node, frozenset[str]]) -> frozenset[str]:
    found = [origins.get(value, frozenset()) for value in values if isinstance(value, Node)]
    return frozenset[str]().union(*found)


def _held(exported: ExportedProgram) -> tuple[torch.Tensor, ...]:
    values = (*exported.state_dict.values(), *exported.constants.values())
    return tuple(value for value in values if isinstance(value, torch.Tensor))


def _forget() -> None:
    """Drop what torch keeps of a program for ever.

    That is the source of generated functions, for tracebacks, and whatever its methods have told of
    symbolic sizes, with all that these were traced with.
    """
    for method in vars(ShapeEnv).values():
        clear = getattr(method, "cache_clear", None)
        if clear is not None:
            clear()
    for name in list(linecache.cache):
        if name.startswith(_GENERATED):
            linecache.cache.pop(name, None)
    kept = getattr(torch.fx.graph_module, "_loader", None)
    if kept is not None:
        kept.eval_cache.clear()


def _empty(held: Iterable[torch.Tensor]) -> None:
    """Give the weights' memory back now: the graph around them is cyclic garbage for a while."""
    for tensor in held:
        # As they are read from the file, some are views of another tensor that owns the bytes.
        for owner in (tensor, tensor._base):
            if owner is not None:
                owner.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
