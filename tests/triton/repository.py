"""Writes the models and the configuration that check_tritonclient.py wants to find at a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import helper

from tests.support.models import write_fake, write_graph, write_identity, write_lookup
from tests.triton import names

_LEVELS_CONFIG: Final = f"""
max_batch_size: {names.MAX_ROWS}
dynamic_batching {{ priority_levels: {names.PRIORITY_LEVELS} default_priority_level: 2 }}
"""


def configuration(*, control: str = "none") -> dict[str, Any]:  # Any: what a TOML file holds
    """Return the configuration of the models below `models`, next to the file.

    `control` says whether clients may load and unload: none or explicit.
    """
    variants = {
        name: {"model": names.LOOKUP, "version": version, "weight": 50}
        for version, name in names.VARIANTS.items()
    }
    key = [f"header:{names.KEY_HEADER}", f"parameter:{names.KEY_PARAMETER}"]
    return {
        "models": {"repository": "models", "control": control},
        "routes": {names.ROUTE: {"key": key, "variants": variants}},
    }


def write_models(root: Path) -> None:
    """Write every model that names.py names."""
    for datatype, name in names.ECHO.items():
        write_identity(root / name / "1" / "model.onnx", datatype, [names.ECHO_WIDTH])
    for version in names.VARIANTS:
        table = [x + 100.0 * int(version) for x in range(names.LOOKUP_SIZE)]
        write_lookup(root / names.LOOKUP / version / "model.onnx", table)
    write_identity(root / names.WIDE / "1" / "model.onnx", "FP32", ["width"])
    write_identity(root / names.LEVELS / "1" / "model.onnx", "FP32", [names.ECHO_WIDTH])
    (root / names.LEVELS / "config.pbtxt").write_text(_LEVELS_CONFIG)
    _write_pair(root / names.PAIR / "1" / "model.onnx")
    _write_echo_fake(root / names.BLOB, "BYTES", 1, max_batch_size=names.MAX_ROWS)
    slow = {"latency_ms": names.SLOW_S * 1e3, "max_batch_size": names.SLOW_MAX_ROWS}
    _write_echo_fake(root / names.SLOW, "FP32", names.ECHO_WIDTH, **slow)


def _write_echo_fake(model: Path, datatype: str, width: int, **script: object) -> None:
    spec = {"datatype": datatype, "shape": [-1, width]}
    shapes = {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **spec}]}
    write_fake(model / "1" / "model.json", **shapes, **script)


def _write_pair(path: Path) -> None:
    write_graph(
        path,
        nodes=[
            helper.make_node("Add", ["x", "x"], ["double"]),
            helper.make_node("Identity", ["label"], ["copy"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1),
        ],
        inputs={"x": ("FP32", ["rows", 2]), "label": ("BYTES", ["rows", 1])},
        outputs={
            "double": ("FP32", ["rows", 2]),
            "copy": ("BYTES", ["rows", 1]),
            "total": ("FP32", ["rows", 1]),
        },
        constants={"axes": np.array([1], dtype=np.int64)},
    )
