"""ONNX to a network of TensorRT's; a refusal is a sentence, in the words of who refused.

Knows the parser; knows neither profiles nor plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from engines.base import TensorSpec
from engines.errors import DeviceUnavailable, ModelLoadError
from engines.trt.api import Flavour
from engines.trt.surface import (
    Builder,
    Enumerated,
    INetworkDefinition,
    ITensor,
    OnnxParser,
    ParserError,
)

# TensorRT's names -> protocol datatypes.
DATATYPES: Final[Mapping[str, str]] = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
    "UINT8": "UINT8",
}


def signature(
    flavour: Flavour, model: Path | bytes
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of an ONNX model as TensorRT understands them.

    Raises:
        ModelLoadError: it does not.
    """
    builder = builder_of(flavour)
    network, _parser = parsed(flavour, builder, model)
    return specs(network)


def builder_of(flavour: Flavour) -> Builder:
    """Return a builder.

    Raises:
        DeviceUnavailable: there cannot be one on this machine.
    """
    flavour.log.forget()
    try:
        return flavour.module.Builder(flavour.log.logger)
    except Exception as exc:  # foreign: the bindings raise a TypeError where C++ returned nothing
        why = flavour.log.why() or exc
        raise DeviceUnavailable(f"{flavour} cannot build here: {why}") from exc


def parsed(
    flavour: Flavour, builder: Builder, model: Path | bytes
) -> tuple[INetworkDefinition, OnnxParser]:
    """Return the network of a model, and its parser, which owns the weights: keep both.

    Raises:
        ModelLoadError: the parser refuses the model.
    """
    flags = 0
    if flavour.needs_typing_flag:
        typed = flavour.module.NetworkDefinitionCreationFlag.__members__["STRONGLY_TYPED"]
        flags = 1 << typed.value
    network = builder.create_network(flags)
    if network is None:
        why = flavour.log.why() or "it does not say why"
        raise ModelLoadError(f"{flavour} cannot begin a network: {why}")
    parser = flavour.module.OnnxParser(network, flavour.log.logger)
    if isinstance(model, Path):
        is_understood = parser.parse_from_file(str(model))
    else:
        is_understood = parser.parse(model)
    if not is_understood:
        why = _refusal(parser.get_error(0)) if parser.num_errors else "it does not say why"
        raise ModelLoadError(f"{name_of(model)} is not understood by {flavour}: {why}")
    if not network.num_outputs:
        raise ModelLoadError(f"{name_of(model)} has no outputs: it is empty, or no ONNX file")
    return network, parser


def specs(
    network: INetworkDefinition,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a network.

    Raises:
        ModelLoadError: one is of a kind that cannot be served.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise ModelLoadError(
                f"input {tensor.name!r} decides the shapes of others, which cannot be served"
            )
    return (
        tuple(_spec("input", tensor) for tensor in inputs),
        tuple(_spec("output", tensor) for tensor in outputs),
    )


def datatype_of(kind: str, name: str, dtype: Enumerated) -> str:
    """Return the protocol's name of one of TensorRT's datatypes.

    Raises:
        ModelLoadError: the protocol has none.
    """
    found = DATATYPES.get(dtype.name)
    if found is None:
        raise ModelLoadError(f"{kind} {name!r} is {dtype.name}, which cannot be served")
    return found


def name_of(model: Path | bytes) -> str:
    """Return what to call a model in a sentence."""
    return model.name if isinstance(model, Path) else "the model"


def _refusal(error: ParserError) -> str:
    """Return what the parser says of a node, or of the file."""
    where = ""
    if error.node() >= 0:
        named = f" {error.node_name()!r}" if error.node_name() else ""
        where = f"node {error.node()}{named} ({error.node_operator()}): "
    said = error.desc().rpartition("&& ")[2].strip().strip('"').rstrip(".")
    said = said.removeprefix("Assertion failed: ")
    code = error.code().name.lower().replace("_", " ")
    return f"{where}{code}" if said in ("", "false") else f"{where}{code}: {said}"


def _spec(kind: str, tensor: ITensor) -> TensorSpec:
    return TensorSpec(
        name=tensor.name,
        datatype=datatype_of(kind, tensor.name, tensor.dtype),
        shape=tuple(tensor.shape),
    )
