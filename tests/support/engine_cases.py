"""The engines under contract: how each is loaded, how its models are written, and what it cannot.

Everything that differs between engines is data here, so that the tests of tests/contract/engines
ask all of them the same questions. What an engine cannot do stands in `cannot`, with the reason: a
question about it is not asked, and tests/contract/engines/test_engine_table.py asks whether that is
still true. Engines that need a GPU are marked `gpu`, and say why they cannot be asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from onnx import helper

from engines import devices, registry
from engines.base import Engine, EngineConfig, EngineLoader, LanedEngine
from engines.instance import Host, Instance
from engines.laned import LanedInstance
from engines.tensors import BYTES, DATATYPES, Array
from tests.support.models import BATCH_AXIS, write_fake, write_graph, write_identity

MAX_BATCH: Final = 8
BUCKETS: Final = (1, 4, 8)
WIDTH: Final = 3
"""Elements of a row, of every model here but one."""

# Kinds of models. Inputs are called x, outputs y; datatype FP32 but for the identity.
IDENTITY: Final = "identity"
"""y = x, of any datatype, with a batch axis."""
UNBATCHED: Final = "unbatched"
"""y = x of (3,), without a batch axis."""
WIDE: Final = "wide"
"""y = x of (rows, any)."""
FIXED: Final = "fixed"
"""y = x of (4, 3): a batch axis that is a number."""
RECIPROCAL: Final = "reciprocal"
"""y = 1 / x: a row of zeros has no answer."""
SOFTMAX: Final = "softmax"
"""y = softmax(x @ W): something to compute, in which a row depends on itself alone."""
SUM: Final = "sum"
"""y = x + z of two inputs."""
FIXED_ROWS: Final = 4
KINDS: Final = (IDENTITY, UNBATCHED, WIDE, FIXED, RECIPROCAL, SOFTMAX, SUM)

_LOADERS: Final = registry.loaders()

# Two classes of rows for the softmax, the same for every engine.
WEIGHT: Final = np.array([[0.5, -1.0], [0.25, 0.75], [-0.5, 1.5]], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCase:
    """One engine on one kind of device."""

    name: str
    load: EngineLoader
    filename: str
    write: Callable[[Path, str, str], object]
    """Writes a model: path, kind, datatype (of the identity)."""
    cannot: Mapping[str, str] = field(default_factory=dict)
    """Kind of a model or datatype -> why this engine cannot serve it."""
    device: str = "cpu"
    why_not_here: Callable[[], str] = lambda: ""
    """Says why it cannot run on this machine; empty: it can."""
    tolerance: float = 0.0
    """Relative, of what is computed; identities are bit for bit."""

    def config(self, **changes: Any) -> EngineConfig:  # Any: fields of EngineConfig
        """Return the configuration that its models are loaded with."""
        usual: dict[str, Any] = {"max_batch_size": MAX_BATCH, "device": self.device}
        return EngineConfig(**(usual | changes))

    def written(self, folder: Path, kind: str = IDENTITY, datatype: str = "FP32") -> Path:
        """Write a model and return its path."""
        path = folder / self.filename
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.write(path, kind, datatype)
        return path

    def loaded(
        self,
        folder: Path,
        kind: str = IDENTITY,
        datatype: str = "FP32",
        **changes: Any,  # Any: see config
    ) -> Engine:
        """Write a model and load it."""
        if kind == UNBATCHED:
            changes = {"max_batch_size": 0} | changes
        return self.load(self.written(folder, kind, datatype), self.config(**changes))


def _write_onnx(path: Path, kind: str, datatype: str) -> object:
    batch: list[int | str] = [BATCH_AXIS, WIDTH]
    if kind == IDENTITY:
        return write_identity(path, datatype, [WIDTH])
    if kind == UNBATCHED:
        return write_identity(path, datatype, [WIDTH], batch_axis=False)
    if kind == WIDE:
        return write_identity(path, datatype, ["width"])
    if kind == FIXED:
        return write_identity(path, datatype, [FIXED_ROWS, WIDTH], batch_axis=False)
    if kind == RECIPROCAL:
        nodes = [helper.make_node("Reciprocal", ["x"], ["y"])]
        return write_graph(
            path, nodes=nodes, inputs={"x": ("FP32", batch)}, outputs={"y": ("FP32", batch)}
        )
    if kind == SUM:
        nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
        return write_graph(
            path,
            nodes=nodes,
            inputs={"x": ("FP32", batch), "z": ("FP32", batch)},
            outputs={"y": ("FP32", batch)},
        )
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["y"], axis=-1),
    ]
    return write_graph(
        path,
        nodes=nodes,
        inputs={"x": ("FP32", batch)},
        outputs={"y": ("FP32", [BATCH_AXIS, WEIGHT.shape[1]])},
        constants={"weight": WEIGHT},
    )


def _write_script(path: Path, kind: str, datatype: str) -> object:
    shapes = {UNBATCHED: [WIDTH], WIDE: [-1, -1], FIXED: [FIXED_ROWS, WIDTH]}
    shape = shapes.get(kind, [-1, WIDTH])
    spec = {"datatype": datatype, "shape": shape}
    names = ("x", "z") if kind == SUM else ("x",)
    inputs = [{"name": name, **spec} for name in names]
    return write_fake(path, inputs=inputs, outputs=[{"name": "y", **spec}])


def _write_torch(path: Path, kind: str, datatype: str) -> object:
    from tests.support import torch_cases  # torch takes seconds to import

    return torch_cases.write(path, kind, datatype)


def _no_cuda_in_onnxruntime() -> str:
    import onnxruntime

    has = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in has:
        return f"this onnxruntime {onnxruntime.__version__} has only {', '.join(has)}"
    return devices.why_not("cuda:0")


def _no_cuda_in_torch() -> str:
    import torch

    if torch.version.cuda is None:
        return f"this torch {torch.__version__} is built without CUDA"
    return devices.why_not("cuda:0")


def _no(package: str) -> Callable[[], str]:
    def why() -> str:
        if util.find_spec(package) is None:
            return f"the package {package} is not installed"
        return devices.why_not("cuda:0")

    return why


_NO_TEXT: Final = {BYTES: "text never leaves the host, and a node on the CPU is refused"}
_NO_TORCH_TEXT: Final = {BYTES: "torch has no text"}
_ONLY_ECHOES: Final = dict.fromkeys((RECIPROCAL, SOFTMAX), "it echoes and computes nothing")
_TRT_CANNOT: Final = {
    **dict.fromkeys(
        (BYTES, "INT16", "UINT16", "UINT32", "UINT64"), "TensorRT's parser does not know it"
    ),
    "FP64": "TensorRT's parser makes FP32 of it",
    WIDE: "a dimension that varies needs a profile of its own",
}

FAKE: Final = EngineCase(
    name="fake",
    load=_LOADERS["fake"],
    filename="model.json",
    write=_write_script,
    cannot=_ONLY_ECHOES,
)
ORT_CPU: Final = EngineCase(
    name="onnxruntime-cpu",
    load=_LOADERS["onnxruntime"],
    filename="model.onnx",
    write=_write_onnx,
    tolerance=1e-6,
)
TORCH_CPU: Final = EngineCase(
    name="pytorch-cpu",
    load=_LOADERS["pytorch"],
    filename="model.pt2",
    write=_write_torch,
    cannot=_NO_TORCH_TEXT,
    tolerance=1e-6,
)
ORT_CUDA: Final = EngineCase(
    name="onnxruntime-cuda",
    load=_LOADERS["onnxruntime"],
    filename="model.onnx",
    write=_write_onnx,
    cannot=_NO_TEXT,
    device="cuda:0",
    why_not_here=_no_cuda_in_onnxruntime,
    tolerance=1e-3,  # TF32 may be taken for products
)
TORCH_CUDA: Final = EngineCase(
    name="pytorch-cuda",
    load=_LOADERS["pytorch"],
    filename="model.pt2",
    write=_write_torch,
    cannot=_NO_TORCH_TEXT,
    device="cuda:0",
    why_not_here=_no_cuda_in_torch,
    tolerance=1e-3,
)
TENSORRT: Final = EngineCase(
    name="tensorrt",
    load=_LOADERS["tensorrt"],
    filename="model.onnx",
    write=_write_onnx,
    cannot=_TRT_CANNOT,
    device="cuda:0",
    why_not_here=_no("tensorrt"),
    tolerance=1e-3,
)
TENSORRT_RTX: Final = EngineCase(
    name="tensorrt_rtx",
    load=_LOADERS["tensorrt_rtx"],
    filename="model.onnx",
    write=_write_onnx,
    cannot=_TRT_CANNOT,
    device="cuda:0",
    why_not_here=_no("tensorrt_rtx"),
    tolerance=1e-3,
)
ON_CPU: Final = (FAKE, ORT_CPU, TORCH_CPU)
ON_GPU: Final = (ORT_CUDA, TORCH_CUDA, TENSORRT, TENSORRT_RTX)
"""What TensorRT-RTX can be asked without a GPU is in tests/contract/engines/test_plans.py."""


def able(*kinds: str) -> list[Any]:  # Any: pytest's parameters
    """Return the engines that can serve these kinds of models or datatypes, as parameters."""
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.gpu] if case in ON_GPU else [])
        for case in (*ON_CPU, *ON_GPU)
        if not any(kind in case.cannot for kind in kinds)
    ]


def pairs(datatypes: Iterable[str]) -> list[Any]:  # Any: see able
    """Return every engine with each of the datatypes that it can serve, as parameters."""
    return [
        pytest.param(
            case,
            datatype,
            id=f"{case.name}-{datatype}",
            marks=[pytest.mark.gpu] if case in ON_GPU else [],
        )
        for case in (*ON_CPU, *ON_GPU)
        for datatype in datatypes
        if datatype not in case.cannot
    ]


def hosted(engine: Engine) -> Host:
    """Give an engine its thread or its threads, as the repository does."""
    if isinstance(engine, LanedEngine):
        return LanedInstance(name="m/1#0", model="m", version="1", engine=engine)
    return Instance(name="m/1#0", model="m", version="1", engine=engine)


def values(datatype: str, rows: int, first: int = 0) -> Array:
    """Return rows of 3 elements, every element of every row different as far as the type goes."""
    count = np.arange(first, first + rows * WIDTH).reshape(rows, WIDTH)
    if datatype == "BOOL":
        return np.asarray(count % 2 == 0)
    if datatype == BYTES:
        out = np.empty(count.shape, dtype=object)
        out.reshape(-1)[:] = [f"é{n}\0{n}".encode() for n in count.reshape(-1).tolist()]
        return out
    if datatype == "BF16":
        # The high halves of float32 numbers: valid patterns, among them negative ones.
        bits = (count.astype(np.float32) - 5).view(np.uint32) >> 16
        return bits.astype(np.uint16)
    if datatype.startswith("FP"):
        return (count - 5.5).astype(DATATYPES[datatype].dtype)
    return count.astype(DATATYPES[datatype].dtype)


def computed(kind: str, x: Array) -> Array:
    """Return what a model of a kind makes of its input, in FP64."""
    wide = x.astype(np.float64)
    if kind == RECIPROCAL:
        return 1 / wide
    if kind == SOFTMAX:
        scores = np.exp(wide @ WEIGHT)
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))
    return wide


def assert_same(found: Array, expected: Array) -> None:
    """Compare bit for bit, with datatype and shape."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist()


def assert_close(found: Array, expected: Array, tolerance: float) -> None:
    """Compare within a relative tolerance."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def in_turn(engine: Engine, batches: Sequence[Mapping[str, Array]]) -> list[Array]:
    """Run batches one after the other and return what each gave as y."""
    return [engine.infer(batch)["y"] for batch in batches]
