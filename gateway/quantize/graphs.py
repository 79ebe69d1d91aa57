"""An ONNX file: read, its nodes named, its signature, its bytes.

Knows the format, nothing of numbers: fp16.py and int8.py change graphs, this tells what they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from gateway.quantize.faults import CannotQuantize, WrongInput, first_line, package

if TYPE_CHECKING:
    import onnx

    _Message = TypeVar("_Message", onnx.NodeProto, onnx.ValueInfoProto)

DYNAMIC: Final = -1
PRECISION: Final = "sluice.precision"
"""Property of a quantised file: FP16 or INT8 QDQ."""
PARENT: Final = "sluice.parent_sha256"
RECIPE: Final = "sluice.recipe"
_NAMES_SHOWN: Final = 8
# TensorProto.DataType -> protocol datatypes.
_DATATYPES: Final = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
_FLOAT, _HALF = 1, 10


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output."""

    name: str
    datatype: str
    """As the protocol calls it."""
    shape: tuple[int, ...]
    """DYNAMIC where it varies."""

    def __str__(self) -> str:
        return f"{self.name!r} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def is_batched(self) -> bool:
        """Whether the first axis of every input and output varies: the gateway's own rule."""
        return all(port.shape[:1] == (DYNAMIC,) for port in (*self.inputs, *self.outputs))

    def in_fp16(self) -> Signature:
        """Return the same with FP16 in place of FP32."""
        inputs, outputs = (
            tuple(replace(p, datatype="FP16") if p.datatype == "FP32" else p for p in ports)
            for ports in (self.inputs, self.outputs)
        )
        return Signature(inputs, outputs)


@dataclass(frozen=True, slots=True)
class Parent:
    """The model that is quantised."""

    path: Path
    model: onnx.ModelProto
    """Every node has a name."""
    signature: Signature
    sha256: str
    """Of the file."""
    size_bytes: int
    """Of the file, with the weights that lie beside it."""


def read(path: Path) -> Parent:
    """Read a model file, with the weights that lie beside it if it has any.

    Raises:
        WrongInput: there is no such file, or it is no ONNX model with tensors.
        CannotQuantize: onnx is not installed.
    """
    onnx = package("onnx")
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise WrongInput(f"cannot read {path}: {exc.strerror}") from exc
    try:
        model = onnx.load_model_from_string(raw)
        has_beside = any(map(onnx.external_data_helper.uses_external_data, model.graph.initializer))
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
        size_bytes = model.ByteSize() if has_beside else len(raw)
    except Exception as exc:  # foreign: protobuf's and onnx's own, without a common base
        raise WrongInput(f"{path} is no ONNX model: {first_line(exc)}") from exc
    _name_nodes(model)
    return Parent(path, model, signature(model), hashlib.sha256(raw).hexdigest(), size_bytes)


def signature(model: onnx.ModelProto) -> Signature:
    """Return what a model takes and gives.

    Raises:
        WrongInput: one of them is no tensor, or is of a datatype that is not served.
    """
    constants = {constant.name for constant in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return Signature(tuple(map(_port, inputs)), tuple(map(_port, model.graph.output)))


def check_same(parent: Signature, child: Signature) -> None:
    """Check that a child can be a version of its parent's model.

    Raises:
        CannotQuantize: its signature is another one.
    """
    for kind, ours, theirs in (
        ("inputs", child.inputs, parent.inputs),
        ("outputs", child.outputs, parent.outputs),
    ):
        if ours != theirs:
            text = ", ".join(map(str, ours)), ", ".join(map(str, theirs))
            raise CannotQuantize(f"its {kind} came out as {text[0]}; its parent's are {text[1]}")


def with_ports_of(parent: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Give inputs and outputs the parent's names of dimensions, where nothing else differs."""
    known = {value.name: value for value in (*parent.graph.input, *parent.graph.output)}
    for value in (*model.graph.input, *model.graph.output):
        found = known.get(value.name)
        if found is not None and _element(found) == _element(value):
            value.CopyFrom(found)


def chosen(model: onnx.ModelProto, wanted: Iterable[str]) -> list[str]:
    """Return the names of the nodes that are named, or lie below a path that is: `/encoder/0`.

    Raises:
        WrongInput: one of them names no node.
    """
    names = [node.name for node in model.graph.node]
    found: list[str] = []
    for one in wanted:
        below = one.rstrip("/") + "/"
        matching = [name for name in names if name == one or name.startswith(below)]
        if not matching:
            raise WrongInput(f"--exclude: no node is called {one!r}; {_nearest(one, names)}")
        found += matching
    return found


def marked(model: onnx.ModelProto, properties: dict[str, str]) -> None:
    """Set properties in the file's metadata."""
    kept = {entry.key: entry.value for entry in model.metadata_props} | properties
    package("onnx.helper").set_model_props(model, kept)


def tidy(model: onnx.ModelProto) -> None:
    """Put the nodes of the main graph in order, once each; drop what nothing has or uses.

    The converters append nodes where they please, an equal one for each of its users.
    """
    _sort(model.graph)
    made = {name for node in model.graph.node for name in node.output}
    known = [_copy(value) for value in model.graph.value_info if value.name in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    used = {node.domain for node in _all_nodes(model.graph)} | {""}
    used |= {node.domain for function in model.functions for node in function.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def content(model: onnx.ModelProto, *, is_checked: bool = True) -> bytes:
    """Return a model as the bytes of its file.

    Raises:
        CannotQuantize: it is not valid, or larger than a file of this format can be.
    """
    try:
        if is_checked:
            package("onnx.checker").check_model(model)
        encoded: bytes = model.SerializeToString()
    except Exception as exc:  # foreign: protobuf's and onnx's own, without a common base
        raise CannotQuantize(f"the result is no valid ONNX file: {first_line(exc)}") from exc
    return encoded


def check_fp32(model: onnx.ModelProto) -> None:
    """Refuse a model that there is nothing to take from.

    Raises:
        WrongInput: it is quantised already, or nothing in it is FP32.
    """
    if "DequantizeLinear" in op_types(model):
        raise WrongInput("the model is quantised already: it has DequantizeLinear nodes")
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    tensors = [attribute.t for node in constants for attribute in node.attribute]
    found = {tensor.data_type for tensor in (*model.graph.initializer, *tensors)}
    if _HALF in found:
        raise WrongInput("the model is quantised already: it has FP16 weights")
    found |= {_element(value) for value in (*model.graph.input, *model.graph.output)}
    if _FLOAT not in found:
        raise WrongInput("nothing in the model is FP32")


def needs(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, and those that the graphs inside it do."""
    inside = (inner for graph in _graphs(node) for inner in graph.node)
    return set(filter(None, node.input)).union(*map(needs, inside))


def op_types(model: onnx.ModelProto) -> list[str]:
    """Return the operators of the main graph, sorted."""
    return sorted({node.op_type for node in model.graph.node})


def _element(value: onnx.ValueInfoProto) -> int:
    found: int = value.type.tensor_type.elem_type
    return found


def _port(value: onnx.ValueInfoProto) -> Port:
    datatype = _DATATYPES.get(_element(value))
    if not value.type.HasField("tensor_type") or datatype is None:
        raise WrongInput(f"{value.name!r} is no tensor of a datatype that can be served")
    sizes = value.type.tensor_type.shape.dim
    shape = tuple(size.dim_value if size.HasField("dim_value") else DYNAMIC for size in sizes)
    return Port(value.name, datatype, shape)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give nodes without a name one, so that they can be excluded: Conv_0, Relu_1 ..."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        name = f"{node.op_type}_{index}"
        while not node.name:
            if name not in taken:
                node.name = name
            name += "_"


def _nearest(wanted: str, names: Sequence[str]) -> str:
    close = get_close_matches(wanted, names, _NAMES_SHOWN, cutoff=0.3) or names[:_NAMES_SHOWN]
    return f"some of its {len(names)} nodes are {', '.join(close)}"


def _sort(graph: onnx.GraphProto) -> None:
    maker: dict[str, int] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        names = [name for name in node.output if name]
        if not maker.keys() >= set(names):  # else an equal node has made them
            maker |= dict.fromkeys(names, len(nodes))
            nodes.append(_copy(node))
    before = {
        index: {maker[name] for name in needs(node) if name in maker}
        for index, node in enumerate(nodes)
    }
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as exc:
        raise CannotQuantize("the result has nodes that wait for each other") from exc
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)


def _copy(message: _Message) -> _Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return graphs + [graph for attribute in node.attribute for graph in attribute.graphs]


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inside = [inner for node in graph.node for inner in _graphs(node)]
    return [*graph.node, *(node for inner in inside for node in _all_nodes(inner))]
