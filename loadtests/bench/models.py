"""The models under the benchmarks, as ONNX files: perceptrons with random weights, channel means.

What they answer is checked against onnxruntime in-process (verify.py); what matters is their cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TINY: Final = (30, 64, 3)
"""Next to nothing to compute: what a request costs is what the gateway costs."""
MEDIUM: Final = (256, 1024, 1024, 1024, 10)
"""Two million weights: reading them once per batch instead of once per row is worth something."""
IMAGE: Final = (3, 224, 224)
"""602 KB of FP32: moving it is the work, the means of its channels cost little."""
INPUT: Final = "x"
OUTPUT: Final = "y"
_OPSET: Final = 17
_IR_VERSION: Final = 8
"""Old on purpose: every onnxruntime that the gateway accepts reads these two."""


def write_mlp(path: Path, widths: Sequence[int], *, seed: int) -> None:
    """Write a perceptron from `x` FP32 [rows, first width] to `y` FP32 [rows, last width]."""
    rng = np.random.default_rng(seed)
    nodes, constants, value = [], [], INPUT
    for layer, (width_in, width_out) in enumerate(pairwise(widths)):
        weights = rng.normal(0, width_in**-0.5, (width_in, width_out)).astype(np.float32)
        bias = np.zeros(width_out, dtype=np.float32)
        constants.append(numpy_helper.from_array(weights, f"weights{layer}"))
        constants.append(numpy_helper.from_array(bias, f"bias{layer}"))
        is_last = layer == len(widths) - 2
        summed = OUTPUT if is_last else f"summed{layer}"
        nodes.append(helper.make_node("Gemm", [value, f"weights{layer}", f"bias{layer}"], [summed]))
        if not is_last:
            value = f"active{layer}"
            nodes.append(helper.make_node("Relu", [summed], [value]))
    _write(path, nodes, constants, ["rows", widths[0]], ["rows", widths[-1]])


def write_channel_means(path: Path, shape: Sequence[int] = IMAGE) -> None:
    """Write the mean of each channel: `x` FP32 [rows, channels, height, width] to `y`."""
    means = helper.make_node("ReduceMean", [INPUT], [OUTPUT], axes=[2, 3], keepdims=0)
    _write(path, [means], [], ["rows", *shape], ["rows", shape[0]])


def _write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto],
    taken: Sequence[int | str],
    given: Sequence[int | str],
) -> None:
    describe = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "bench",
        [describe(INPUT, TensorProto.FLOAT, taken)],
        [describe(OUTPUT, TensorProto.FLOAT, given)],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def write_config(folder: Path, *, max_batch_size: int, is_batched: bool, threads: int) -> None:
    """Write a config.pbtxt with or without dynamic batching."""
    lines = [
        f'name: "{folder.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch_size}",
        "instance_group { count: 1 }",
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}',
    ]
    if is_batched:
        lines.append("dynamic_batching { }")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")
