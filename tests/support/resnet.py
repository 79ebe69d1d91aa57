"""A network of the size and shape of ResNet-18, with random weights: once in ONNX, once in torch.

Both are made of the same dictionary of arrays, so what they answer differs by rounding alone. The
names of the weights are those that torch's modules give. Input `x` (rows, 3, size, size), output
`y` (rows, 1000); any size from 32 up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import helper
from torch.export import Dim

from engines.tensors import Array
from tests.support.models import BATCH_AXIS, write_graph

CLASSES: Final = 1000
PARAMETERS: Final = 11_689_512
"""Those that are trained: the statistics of the normalisations are not among them."""
STEM: Final = 64
STAGES: Final = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels, and the stride of the first of its two blocks."""
EPSILON: Final = 1e-5
_STATISTICS: Final = ("running_mean", "running_var")

Weights = dict[str, Array]


def blocks() -> Iterator[tuple[str, int, int, int]]:
    """Yield each block's name, channels in and out, and stride."""
    given = STEM
    for number, (channels, stride) in enumerate(STAGES, start=1):
        yield f"layer{number}.0", given, channels, stride
        yield f"layer{number}.1", channels, channels, 1
        given = channels


def draw_weights(seed: int) -> Weights:
    """Draw all weights and statistics; activations stay of the order of one."""
    rng = np.random.default_rng(seed)
    found: Weights = {}

    def convolution(name: str, given: int, channels: int, kernel: int) -> None:
        scale = np.sqrt(2 / (given * kernel * kernel))
        drawn = rng.normal(0, scale, (channels, given, kernel, kernel))
        found[f"{name}.weight"] = drawn.astype(np.float32)

    def normalisation(name: str, channels: int, gain: float) -> None:
        for part, drawn in (
            ("weight", gain * rng.uniform(0.5, 1.5, channels)),
            ("bias", rng.normal(0, 0.1, channels)),
            ("running_mean", rng.normal(0, 0.1, channels)),
            ("running_var", rng.uniform(0.5, 1.5, channels)),
        ):
            found[f"{name}.{part}"] = drawn.astype(np.float32)

    convolution("conv1", 3, STEM, 7)
    normalisation("bn1", STEM, 1.0)
    for name, given, channels, stride in blocks():
        convolution(f"{name}.conv1", given, channels, 3)
        normalisation(f"{name}.bn1", channels, 1.0)
        convolution(f"{name}.conv2", channels, channels, 3)
        normalisation(f"{name}.bn2", channels, 0.3)  # so that the sums do not grow block by block
        if stride > 1:
            convolution(f"{name}.downsample.0", given, channels, 1)
            normalisation(f"{name}.downsample.1", channels, 1.0)
    last = STAGES[-1][0]
    found["fc.weight"] = rng.normal(0, 1 / np.sqrt(last), (CLASSES, last)).astype(np.float32)
    found["fc.bias"] = rng.normal(0, 0.1, CLASSES).astype(np.float32)
    return found


def parameters(weights: Weights) -> int:
    """Return how many numbers are trained."""
    return sum(w.size for name, w in weights.items() if not name.endswith(_STATISTICS))


# ONNX


class _Graph:
    """Nodes, each of which is named by its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node and return its output's name. Any: attributes of ONNX."""
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def convolved(self, x: str, name: str, norm: str, kernel: int, stride: int) -> str:
        """Add a convolution and its normalisation."""
        pad = kernel // 2
        convolved = self.add(
            "Conv",
            [x, f"{name}.weight"],
            f"{name}.out",
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad, pad, pad, pad],
        )
        given = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        normed = [convolved, *given]
        return self.add("BatchNormalization", normed, f"{norm}.out", epsilon=EPSILON)

    def block(self, x: str, name: str, stride: int) -> str:
        """Add a block and its shortcut."""
        first = self.convolved(x, f"{name}.conv1", f"{name}.bn1", 3, stride)
        active = self.add("Relu", [first], f"{name}.relu1")
        second = self.convolved(active, f"{name}.conv2", f"{name}.bn2", 3, 1)
        shortcut = x
        if stride > 1:
            parts = f"{name}.downsample.0", f"{name}.downsample.1"
            shortcut = self.convolved(x, *parts, 1, stride)
        return self.add("Relu", [self.add("Add", [second, shortcut], f"{name}.sum")], f"{name}.y")


def write_onnx(path: Path, weights: Weights, size: int) -> Path:
    """Write the network as ONNX, with a batch axis that varies."""
    graph = _Graph()
    x = graph.add("Relu", [graph.convolved("x", "conv1", "bn1", 7, 2)], "relu")
    x = graph.add("MaxPool", [x], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for name, _, _, stride in blocks():
        x = graph.block(x, name, stride)
    x = graph.add("Flatten", [graph.add("GlobalAveragePool", [x], "mean")], "flat")
    graph.add("Gemm", [x, "fc.weight", "fc.bias"], "y", transB=1)
    return write_graph(
        path,
        nodes=graph.nodes,
        inputs={"x": ("FP32", [BATCH_AXIS, 3, size, size])},
        outputs={"y": ("FP32", [BATCH_AXIS, CLASSES])},
        constants=weights,
    )


# torch


class Block(torch.nn.Module):
    """Two convolutions and their shortcut."""

    def __init__(self, given: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(given, channels, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(channels, eps=EPSILON)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(channels, eps=EPSILON)
        self.downsample: torch.nn.Module = torch.nn.Identity()
        if stride > 1:
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(given, channels, 1, stride, bias=False),
                torch.nn.BatchNorm2d(channels, eps=EPSILON),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class Network(torch.nn.Module):
    """The whole network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, STEM, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(STEM, eps=EPSILON)
        made = [Block(given, channels, stride) for _, given, channels, stride in blocks()]
        for number in range(len(STAGES)):
            pair = torch.nn.Sequential(*made[2 * number : 2 * number + 2])
            self.add_module(f"layer{number + 1}", pair)
        self.fc = torch.nn.Linear(STAGES[-1][0], CLASSES)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        for number in range(len(STAGES)):
            x = self.get_submodule(f"layer{number + 1}")(x)
        return {"y": self.fc(x.mean(dim=(2, 3)))}


def write_torch(path: Path, weights: Weights, size: int) -> Path:
    """Write the network as an exported program, with a batch axis that varies."""
    network = Network().eval()
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    exported = torch.export.export(
        network, (torch.zeros(2, 3, size, size),), dynamic_shapes={"x": {0: Dim("rows")}}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(exported, path)
    return path


def images(rows: int, size: int, seed: int = 11) -> Array:
    """Return random images."""
    return np.random.default_rng(seed).standard_normal((rows, 3, size, size), np.float32)
