"""Small networks with weights drawn once: fully connected, and convolutional with a shortcut."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.tensors import Array
from tests.support.models import write_graph, write_mlp

_CHANNELS: Final = 16
_SCORES: Final = 10


@pytest.fixture(scope="session")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a network of three layers, `x` [rows, 16] to `y` [rows, 10]."""
    return write_mlp(tmp_path_factory.mktemp("mlp") / "model.onnx", [16, 32, 24, 10], seed=3)


@pytest.fixture(scope="session")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a network with a shortcut, `x` [rows, 3, 12, 12] to `y` [rows, 10]."""
    rng = np.random.default_rng(5)

    def drawn(*shape: int) -> Array:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return rng.normal(0, scale, shape).astype(np.float32)

    # Any: attributes of all types
    def node(kind: str, reads: str, makes: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, reads.split(), [makes], **attributes)

    wide = {"pads": [1, 1, 1, 1]}
    constants = {
        "first": drawn(_CHANNELS, 3, 3, 3),
        "second": drawn(_CHANNELS, _CHANNELS, 3, 3),
        "last": drawn(_CHANNELS, _SCORES),
        "offset": drawn(_SCORES),
        "mean": drawn(_CHANNELS),
        "shift": drawn(_CHANNELS),
        "spread": np.abs(drawn(_CHANNELS)) + 0.5,
        "gain": np.abs(drawn(_CHANNELS)) + 1,
    }
    nodes = [
        node("Conv", "x first", "conv0", **wide),
        node("BatchNormalization", "conv0 gain shift mean spread", "normal"),
        node("Relu", "normal", "relu0"),
        node("Conv", "relu0 second", "conv1", **wide),
        node("Add", "conv1 relu0", "sum"),
        node("Relu", "sum", "relu1"),
        node("MaxPool", "relu1", "pooled", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "pooled", "mean_value"),
        node("Flatten", "mean_value", "flat"),
        node("Gemm", "flat last offset", "y"),
    ]
    return write_graph(
        tmp_path_factory.mktemp("convolutional") / "model.onnx",
        nodes=nodes,
        inputs={"x": ("FP32", ["rows", 3, 12, 12])},
        outputs={"y": ("FP32", ["rows", _SCORES])},
        constants=constants,
    )
