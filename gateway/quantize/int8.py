"""FP32 to INT8 with QuantizeLinear and DequantizeLinear nodes (QDQ), by onnxruntime's own tools.

Static: calibration rows say which range each value has, and the ranges become constants. What is
computed in 8 bits are convolutions and matrix products; what only passes values on between two of
them (ReLU, pooling by maximum, reshapes) does so in 8 bits. Sums, softmax, normalisation and the
results of a last matrix product stay FP32: 8-bit scores would tie where classes are close.

Two targets, because no file is good for both:

* cpu: activations unsigned with a zero point, weights signed and symmetric. ReLU then vanishes into
  the range, and onnxruntime computes every convolution in 8 bits; with signed symmetric activations
  it leaves some in FP32, between conversions. Weights take 7 of their 8 bits: processors with AVX2
  or AVX-512 but without VNNI add two products in 16 bits, in which 255 * 127 * 2 has no room and
  255 * 64 * 2 has. Else the report would come from the machine that quantises, and wrong answers
  from the one that serves.
* tensorrt: takes only zero points of 0, so activations are signed and symmetric; all 8 bits of the
  weights; biases stay FP32, as 32-bit integers are no input of its DequantizeLinear.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from gateway.quantize import graphs
from gateway.quantize.faults import CannotQuantize, WrongInput, first_line, package
from gateway.quantize.samples import Sample

if TYPE_CHECKING:
    import onnx

PRECISION: Final = "INT8 QDQ"
PRODUCTS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators worth computing in 8 bits."""
PASSED_ON: Final = (
    "Clip",
    "Flatten",
    "MaxPool",
    "Relu",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
_FLOAT_RESULTS: Final = ("Gemm", "MatMul")
"""Products that onnxruntime computes in 8 bits with an FP32 result; convolutions it does not."""

Target = Literal["cpu", "tensorrt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is quantised."""

    target: Target = "cpu"
    per_channel: bool = False
    """A scale per output channel of the weights instead of one: better, and a little slower."""
    exclude: Sequence[str] = ()
    """Nodes that stay FP32, or paths of their names."""

    def __str__(self) -> str:
        weights = "per channel" if self.per_channel else "per tensor"
        without = f", without {', '.join(self.exclude)}" if self.exclude else ""
        return f"int8 for {self.target}, weights {weights}{without}"


def quantize(
    parent: onnx.ModelProto, calibration: Sequence[Sample], recipe: Recipe
) -> onnx.ModelProto:
    """Return an INT8 copy of a model.

    Args:
        parent: is not changed; its nodes have names.
        calibration: batches that can be run as they are.
        recipe: how.

    Raises:
        WrongInput: there is nothing to quantise, or a node that is to be excluded is not there.
        CannotQuantize: the tools fail.
    """
    _check(parent)
    with tempfile.TemporaryDirectory(prefix="sluice-quantize-") as folder:
        optimised, child = Path(folder, "optimised.onnx"), Path(folder, "child.onnx")
        load = package("onnx").load
        with _foreign():
            _optimise(parent, optimised)
            model: onnx.ModelProto = load(optimised)
        exclude = graphs.chosen(model, recipe.exclude)
        if not _products(model, exclude):
            raise WrongInput("--exclude leaves nothing to quantise")
        with _foreign():
            _quantize(optimised, child, calibration, recipe, exclude)
            model = load(child)
    _keep_results(model)
    graphs.tidy(model)
    graphs.with_ports_of(parent, model)
    return model


def _check(parent: onnx.ModelProto) -> None:
    graphs.check_fp32(parent)
    if not _products(parent, ()):
        wanted, found = ", ".join(PRODUCTS), ", ".join(graphs.op_types(parent))
        raise WrongInput(f"INT8 would not help the model: it has none of {wanted}, only {found}")


def _products(model: onnx.ModelProto, exclude: Sequence[str]) -> list[onnx.NodeProto]:
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS]
    return [node for node in nodes if node.name not in exclude]


def _optimise(parent: onnx.ModelProto, to: Path) -> None:
    """Fold constants and merge batch normalisation into convolutions: fewer nodes to round at.

    Without symbolic shapes, which would need sympy and which calibration does not.
    """
    copy = type(parent)()
    copy.CopyFrom(parent)
    shapes = package("onnxruntime.quantization.shape_inference")
    shapes.quant_pre_process(copy, to, skip_symbolic_shape=True)


def _quantize(
    optimised: Path,
    child: Path,
    calibration: Sequence[Sample],
    recipe: Recipe,
    exclude: list[str],
) -> None:
    tools = package("onnxruntime.quantization")
    is_cpu = recipe.target == "cpu"
    tools.quantize_static(
        optimised,
        child,
        _Reader(calibration),
        quant_format=tools.QuantFormat.QDQ,
        op_types_to_quantize=[*PRODUCTS, *PASSED_ON],
        nodes_to_exclude=exclude,
        per_channel=recipe.per_channel,
        reduce_range=is_cpu,
        activation_type=tools.QuantType.QUInt8 if is_cpu else tools.QuantType.QInt8,
        weight_type=tools.QuantType.QInt8,
        calibrate_method=tools.CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": not is_cpu,
            "WeightSymmetric": True,
            "QuantizeBias": is_cpu,
        },
    )


@contextmanager
def _foreign() -> Iterator[None]:
    """Turn what onnxruntime and onnx raise, without a common base, into our own.

    Their warnings, which go to the root logger, stay unsaid: the comparison says what came of it.
    """
    disabled_before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except CannotQuantize:
        raise
    except Exception as exc:  # see above
        raise CannotQuantize(f"onnxruntime cannot quantise it: {first_line(exc)}") from exc
    finally:
        logging.disable(disabled_before)


class _Reader:
    """What onnxruntime calls a CalibrationDataReader; it asks for no more than this method."""

    def __init__(self, batches: Sequence[Sample]) -> None:
        self._coming: Iterator[Sample] = iter(batches)

    def get_next(self) -> Sample | None:
        """Return the next batch; None: that was all."""
        return next(self._coming, None)


def _keep_results(model: onnx.ModelProto) -> None:
    """Take away the rounding of products' results that nothing reads in 8 bits.

    The tools round every result, also where what reads it computes in FP32.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    # Any: nodes, and the graph's outputs
    readers: dict[str, list[Any]] = {value.name: [value] for value in graph.output}
    for node in graph.node:
        for name in graphs.needs(node):
            readers.setdefault(name, []).append(node)
    in_8_bits = {*PRODUCTS, *PASSED_ON, "QuantizeLinear"}
    for last in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        first = makers.get(last.input[0])
        if first is None or first.op_type != "QuantizeLinear":
            continue  # a constant
        product = makers.get(first.input[0])
        if product is None or product.op_type not in _FLOAT_RESULTS:
            continue
        is_shared = len(readers[first.input[0]]) + len(readers[first.output[0]]) > 2
        read_by = {getattr(reader, "op_type", "") for reader in readers.get(last.output[0], [])}
        if not is_shared and not read_by & in_8_bits:
            product.output[0] = last.output[0]
            graph.node.remove(first)
            graph.node.remove(last)
