"""The networks that are measured: the two of Must show 6 by their sizes, and small ones like them.

A ResNet-50 (bottlenecks of 3, 4, 6, 3; normalisation folded into the convolutions, as exporters do)
and a BERT-base (12 layers of 768 in 12 heads, with its pooler) over INT64 ids. Weights are random:
what they answer means nothing, what they cost does. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.gpu.graph import INPUT, Graph

_EXPANSION: Final = 4
_BRANCH_SCALE: Final = 0.2
"""Of the convolution at a branch's end, so that sums over many blocks stay small."""
_EMBEDDED: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network in two sizes."""

    name: str
    full: Callable[[], Graph]
    quick: Callable[[], Graph]
    """Built of the same operations; runs in milliseconds on a CPU."""
    shown: str
    """What its full size is, for people."""

    def graph(self, *, is_quick: bool) -> Graph:
        """Write it down in one of its sizes."""
        return self.quick() if is_quick else self.full()


def resnet(blocks: Sequence[int], width: int, side: int, classes: int) -> Graph:
    """Return a residual network of bottlenecks over FP32 pictures [3, side, side]."""
    graph = Graph("FP32", (3, side, side), classes)
    value = _convolution(graph, INPUT, (3, width), size=7, stride=2)
    value = graph.add("max_pool", graph.add("relu", value), size=3, stride=2, padding=1)
    channels = width
    for stage, count in enumerate(blocks):
        inner = width << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            value = _bottleneck(graph, value, channels, inner, stride)
            channels = inner * _EXPANSION
    value = graph.add("mean_of_channels", value)
    _linear(graph, value, channels, classes)
    return graph


def _bottleneck(graph: Graph, value: str, channels: int, inner: int, stride: int) -> str:
    outer = inner * _EXPANSION
    kept = value
    if stride > 1 or channels != outer:
        kept = _convolution(graph, value, (channels, outer), size=1, stride=stride)
    branch = graph.add("relu", _convolution(graph, value, (channels, inner), size=1))
    branch = graph.add("relu", _convolution(graph, branch, (inner, inner), size=3, stride=stride))
    branch = _convolution(graph, branch, (inner, outer), size=1)
    return graph.add("relu", graph.add("add", kept, branch))


def _convolution(
    graph: Graph, value: str, channels: tuple[int, int], *, size: int, stride: int = 1
) -> str:
    """Add a convolution from so many channels to so many."""
    given, outputs = channels
    deviation = math.sqrt(2 / (given * size * size))
    if outputs == given * _EXPANSION:
        deviation *= _BRANCH_SCALE
    weight = graph.weight(outputs, given, size, size, deviation=deviation)
    bias = graph.weight(outputs, deviation=0.01)
    return graph.add("convolution", value, weight, bias, stride=stride, padding=size // 2)


def _linear(graph: Graph, value: str, width: int, outputs: int) -> str:
    weight = graph.weight(width, outputs, deviation=width**-0.5)
    return graph.add("linear", value, weight, graph.weight(outputs, deviation=0.01))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSize:
    """How large an encoder is."""

    layers: int
    width: int
    heads: int
    sequence: int
    words: int


def encoder(size: EncoderSize) -> Graph:
    """Return a transformer's encoder over INT64 ids [sequence], and a pooler of its first place."""
    graph = Graph("INT64", (size.sequence,), size.width, below=size.words)
    words = graph.weight(size.words, size.width, deviation=_EMBEDDED)
    places = graph.weight(size.sequence, size.width, deviation=_EMBEDDED)
    value = graph.add("add", graph.add("embed", words, INPUT), places)
    value = _normalized(graph, value, size.width)
    for _ in range(size.layers):
        query, key, content = (_linear(graph, value, size.width, size.width) for _ in range(3))
        attended = graph.add("attention", query, key, content, heads=size.heads)
        mixed = _linear(graph, attended, size.width, size.width)
        value = _normalized(graph, graph.add("add", value, mixed), size.width)
        inner = graph.add("gelu", _linear(graph, value, size.width, 4 * size.width))
        mixed = _linear(graph, inner, 4 * size.width, size.width)
        value = _normalized(graph, graph.add("add", value, mixed), size.width)
    first = graph.add("first_place", value)
    graph.add("tanh", _linear(graph, first, size.width, size.width))
    return graph


def _normalized(graph: Graph, value: str, width: int) -> str:
    scale = graph.weight(width, deviation=0.05, mean=1.0)
    return graph.add("layer_norm", value, scale, graph.weight(width, deviation=0.02))


_BERT_BASE: Final = EncoderSize(layers=12, width=768, heads=12, sequence=128, words=30_522)
_TINY: Final = EncoderSize(layers=2, width=32, heads=4, sequence=16, words=100)

NETWORKS: Final[Mapping[str, Network]] = {
    network.name: network
    for network in (
        Network(
            name="resnet50",
            full=lambda: resnet((3, 4, 6, 3), 64, 224, 1000),
            quick=lambda: resnet((1, 2), 8, 32, 10),
            shown="ResNet-50-sized: 25.5 M parameters, FP32 [3, 224, 224]",
        ),
        Network(
            name="bert",
            full=lambda: encoder(_BERT_BASE),
            quick=lambda: encoder(_TINY),
            shown="BERT-base-sized encoder: 109 M parameters, INT64 ids [128]",
        ),
    )
}
