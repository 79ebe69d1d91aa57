"""Which values of a model FP16 cannot hold.

On a CPU onnxruntime computes most of an FP16 model in FP32, where nothing overflows: a comparison
there would say nothing of what a GPU does. So it is the parent whose values are looked at, all of
those that the child keeps in FP16. Values from 1e30 on stand for infinity, as attention's masks do,
and may become just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from gateway.quantize import graphs
from gateway.quantize.comparison import run, session
from gateway.quantize.faults import CannotQuantize, package
from gateway.quantize.samples import Sample

if TYPE_CHECKING:
    import onnx

LARGEST: Final = float(np.finfo(np.float16).max)
INFINITE: Final = 1e30
_HALF: Final = 10
_SHOWN: Final = 5


def check(parent: onnx.ModelProto, child: onnx.ModelProto, batches: Sequence[Sample]) -> None:
    """Refuse an FP16 child in which values of these rows overflow.

    Args:
        parent: its nodes have names.
        child: what fp16.py made of it.
        batches: of the parent's inputs.

    Raises:
        CannotQuantize: some do; their nodes are named.
    """
    halves, largest = _halves(parent, child), _largest(parent, batches)
    makers = {value.name: f"input {value.name!r}" for value in parent.graph.input}
    makers |= {name: node.name for node in parent.graph.node for name in node.output}
    told = [
        f"{maker} ({largest[name]:.3g})"
        for name, maker in makers.items()
        if name in halves and largest.get(name, 0) > LARGEST
    ]
    if told:
        more = f" and {len(told) - _SHOWN} others" if len(told) > _SHOWN else ""
        raise CannotQuantize(
            f"FP16 holds numbers up to {LARGEST:.0f}, and larger ones come from "
            f"{', '.join(told[:_SHOWN])}{more}: --exclude the nodes, and those that read them"
        )


def _largest(parent: onnx.ModelProto, batches: Sequence[Sample]) -> dict[str, float]:
    """Return the largest absolute value of each FP32 input and result of a node."""
    model: onnx.ModelProto = type(parent)()
    model.CopyFrom(parent)
    given = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    make = package("onnx").ValueInfoProto  # without a type: onnxruntime knows it
    model.graph.output.extend(make(name=name) for name in names if name not in given)
    loaded = session(graphs.content(model, is_checked=False), is_optimised=False)
    answered = [value.name for value in loaded.get_outputs()]
    found: dict[str, float] = {}
    for batch in batches:
        values = dict(batch) | dict(zip(answered, run(loaded, batch), strict=True))
        for name, value in values.items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                sizes = np.abs(value)
                top = float(sizes.max(initial=0, where=sizes < INFINITE))
                found[name] = max(found.get(name, 0), top)
    return found


def _halves(parent: onnx.ModelProto, child: onnx.ModelProto) -> set[str]:
    """Return the parent's names of the values that are FP16 in the child."""
    typed = package("onnx.shape_inference").infer_shapes(child).graph
    values = (*typed.value_info, *typed.input, *typed.output)
    found = {value.name for value in values if value.type.tensor_type.elem_type == _HALF}
    # What the converter puts behind an input, and before an output, that stay FP32.
    for kind, theirs in (("input", parent.graph.input), ("output", parent.graph.output)):
        for index, value in enumerate(theirs):
            if f"graph_{kind}_cast_{index}" in found:
                found.add(value.name)
    return found
