"""FP32 to FP16, with onnxruntime's converter: weights and computation, not the signature.

With `keep_io` the inputs and outputs stay FP32, with a Cast behind each, so that the result can
stand in for its parent; without, callers have to send FP16. What FP16 cannot hold (65504 is the
largest number) becomes infinite: ranges.py notices, and nodes can be left in FP32 by name.
Operators without an FP16 form (TopK, Range, NonMaxSuppression ...) stay FP32 by themselves.

FP16 is for GPUs. On a CPU onnxruntime turns most of it back to FP32: half the disk, no more speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gateway.quantize import graphs
from gateway.quantize.faults import CannotQuantize, first_line, package

if TYPE_CHECKING:
    import onnx

PRECISION: Final = "FP16"
# How the converter names its Casts.
_NARROWING: Final = ("graph_input_cast", "_cast_to_fp16_node")
_WIDENING: Final = ("graph_output_cast", "_cast_to_fp32_node")


def quantize(
    parent: onnx.ModelProto, *, keep_io: bool = True, exclude: Sequence[str] = ()
) -> onnx.ModelProto:
    """Return an FP16 copy of a model.

    Args:
        parent: is not changed; its nodes have names.
        keep_io: inputs and outputs stay FP32.
        exclude: nodes that stay FP32, or paths of their names.

    Raises:
        WrongInput: there is nothing to convert, or a node that is to be excluded is not there.
        CannotQuantize: the converter fails.
    """
    graphs.check_fp32(parent)
    blocked = graphs.chosen(parent, exclude)
    model: onnx.ModelProto = type(parent)()
    model.CopyFrom(parent)
    converter = package("onnxruntime.transformers.float16")
    try:
        model = converter.convert_float_to_float16(
            model, keep_io_types=keep_io, node_block_list=blocked
        )
    except Exception as exc:  # foreign: assertions and whatever onnx raises
        raise CannotQuantize(f"onnxruntime cannot convert it to FP16: {first_line(exc)}") from exc
    _short_cut(model)
    graphs.tidy(model)
    return model


def _short_cut(model: onnx.ModelProto) -> None:
    """Let what is FP32 read what is FP32, and not its FP16 form.

    The converter puts a Cast behind every input and every excluded node, and another one before
    the next excluded node and every output.
    """
    graph = model.graph
    narrow = {n.output[0]: n.input[0] for n in graph.node if _is_made(n, *_NARROWING)}
    outputs = {value.name for value in graph.output}
    original: dict[str, str] = {}
    for node in graph.node:
        if _is_made(node, *_WIDENING) and node.input[0] in narrow:
            original[node.output[0]] = narrow[node.input[0]]
            if node.output[0] in outputs:  # its name has to stay
                node.op_type = "Identity"
                del node.attribute[:]
                node.input[0] = narrow[node.input[0]]
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = original.get(name, name)
    for marks in (_WIDENING, _NARROWING):  # in this order: the first read the others
        read = outputs.union(*map(graphs.needs, graph.node))
        for node in [n for n in graph.node if _is_made(n, *marks)]:
            if node.output[0] not in read:
                graph.node.remove(node)


def _is_made(node: onnx.NodeProto, *marks: str) -> bool:
    """Whether a Cast is the converter's, by the marks of its name."""
    return node.op_type == "Cast" and any(mark in node.name for mark in marks)
