"""The model repository and the routes that the shared gateway of the tests serves.

echo_<datatype>     fakes, one per datatype, [rows, any]: the answer is the request
pair                a fake with two inputs and two outputs
unbatched           a fake without a batch axis
mlp, rival          ONNX, versions 1 and 2 differ; mlp has a corrupt version 3
lookup              ONNX; an index out of range fails the whole batch
slow                a fake that takes SLOW_S
narrow              a fake that runs one request, queues one, and refuses the third
failing             a fake that raises on FAIL_ON, and refuses BAD_ON
graded              a fake with two priority levels
split               route, 90/10 over mlp 1 and 2
twin                route that bears a model's name: all to version 1, although 3 is higher
mixed               route whose variants name different models
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tests.support.models import write_fake, write_lookup, write_mlp

SLOW_S: Final = 0.3
FAIL_ON: Final = 13
BAD_ON: Final = 14
LOOKUP: Final = (0.5, 1.5, 2.5, 3.5)
BATCH_ROWS: Final = 4
"""Of lookup and failing, which wait for as many rows."""
LIMIT_BYTES: Final = 32 << 20
DATATYPES: Final = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
)
CONFIG: Final[dict[str, Any]] = {  # Any: what a TOML file holds
    "server": {"max_body_bytes": LIMIT_BYTES, "drain_timeout_s": 5},
    "models": {"intra_op_threads": 1},
    "routes": {
        "split": {
            "key": ["header:x-user-id", "parameter:user"],
            "variants": {
                "stable": {"model": "mlp", "version": "1", "weight": 90},
                "canary": {"model": "mlp", "version": "2", "weight": 10},
            },
        },
        "twin": {
            "variants": {
                "old": {"model": "twin", "version": "1", "weight": 100},
                "new": {"model": "twin", "version": "2", "weight": 0},
            }
        },
        "mixed": {
            "variants": {
                "ours": {"model": "mlp", "version": "1", "weight": 50},
                "theirs": {"model": "rival", "version": "1", "weight": 25},
                "next": {"model": "rival", "version": "2", "weight": 25},
            }
        },
    },
}
_WAITS_FOR_A_BATCH: Final = f"""
max_batch_size: {BATCH_ROWS}
dynamic_batching {{ max_queue_delay_microseconds: 500000 }}
"""


def write_served(root: Path) -> Path:
    """Write the repository and return its folder."""
    for datatype in DATATYPES:
        write_fake(_fake(root, f"echo_{datatype.lower()}"), **_sides(datatype, [-1, -1]))
    _write_fakes(root)
    for version in (1, 2):
        write_mlp(_onnx(root, "mlp", version), [4, 8, 3], seed=version)
        write_mlp(_onnx(root, "rival", version), [4, 3], seed=10 + version)
    corrupt = _onnx(root, "mlp", 3)
    corrupt.parent.mkdir()
    corrupt.write_bytes(b"this is no ONNX file")
    write_lookup(_onnx(root, "lookup", 1), LOOKUP)
    _configure(root, "lookup", _WAITS_FOR_A_BATCH)
    return root


def _write_fakes(root: Path) -> None:
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "b", "datatype": "INT64", "shape": [-1, 1]},
    ]
    outputs = [{**spec, "name": name} for spec, name in zip(inputs, ("u", "v"), strict=True)]
    write_fake(_fake(root, "pair"), inputs=inputs, outputs=outputs)
    write_fake(_fake(root, "unbatched"), max_batch_size=0, **_sides("FP32", [3]))
    write_fake(_fake(root, "slow"), latency_ms=SLOW_S * 1e3)
    _configure(root, "slow", "max_batch_size: 1 dynamic_batching {}")
    write_fake(_fake(root, "narrow"), latency_ms=SLOW_S * 1e3)
    _configure(
        root,
        "narrow",
        "max_batch_size: 1 dynamic_batching { default_queue_policy { max_queue_size: 1 } }",
    )
    write_fake(_fake(root, "failing"), fail_on=FAIL_ON, bad_on=BAD_ON)
    _configure(root, "failing", _WAITS_FOR_A_BATCH)
    write_fake(_fake(root, "graded"))
    _configure(
        root,
        "graded",
        "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 1 }",
    )
    for version in (1, 2, 3):
        write_fake(_fake(root, "twin", version))


def _sides(datatype: str, shape: list[int]) -> dict[str, object]:
    spec = {"datatype": datatype, "shape": shape}
    return {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **spec}]}


def _fake(root: Path, model: str, version: int = 1) -> Path:
    return root / model / str(version) / "model.json"


def _onnx(root: Path, model: str, version: int) -> Path:
    return root / model / str(version) / "model.onnx"


def _configure(root: Path, model: str, text: str) -> None:
    (root / model / "config.pbtxt").write_text(text)
