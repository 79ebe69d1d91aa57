"""Two versions of a digit classifier, trained on scikit-learn's bundled digits, as ONNX files.

Knows the data, the two estimators and Triton's repository layout; knows no gateway. A graph takes
raw pixels and scales them itself, so that whoever calls the served model needs none of this file.
Training is skipped where its results lie unchanged, which the stamp beside them tells.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

NAME: Final = "digits"
"""The model's name, and that of the route in front of it."""
PIXELS: Final = 64
WHITE: Final = 16.0
"""The largest value of a pixel; 0 is the background."""
STAMP: Final = "digits.json"
HELD_OUT: Final = "held_out.npy"
OPSET: Final = 17
IR_VERSION: Final = 8
"""Old on purpose: every onnxruntime that the gateway accepts reads these two."""

CONFIG: Final = """\
# Triton's model configuration. Inputs and outputs are read from the ONNX files.
name: "digits"
backend: "onnxruntime"
max_batch_size: 64
dynamic_batching { }
"""

_SEED: Final = 7
_HELD_OUT_SHARE: Final = 0.25
_EPOCHS: Final = 60
_HIDDEN_UNITS: Final = 64

FloatArray = npt.NDArray[np.float64]
Work = Callable[[str], AbstractContextManager[None]]
"""Is told what takes a while, and holds as long as it does."""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A held-out picture of a digit."""

    digit: int
    pixels: tuple[int, ...]
    """8 rows of 8, from 0 to 16."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A trained version and how good it is."""

    version: str
    kind: str
    accuracy: float
    """Share of the held-out pictures that it names rightly."""
    sha256: str
    """Of the ONNX file."""


class Digits(msgspec.Struct, frozen=True, kw_only=True):
    """What training left behind; the stamp is this, as JSON."""

    recipe: str
    versions: tuple[Version, ...]
    held_out: int
    """Pictures that no version was trained on."""
    pictures: tuple[Picture, ...]
    """Ten of the held-out pictures: the first of each digit."""
    held_out_sha256: str
    """Of the file with all of them."""


class Layer(NamedTuple):
    """One fully connected layer: ``x @ weights + bias``."""

    weights: FloatArray
    bias: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The bundled data, split; pictures have shape (rows, 64) and values from 0 to 16."""

    train: FloatArray
    train_digits: npt.NDArray[np.int64]
    held_out: FloatArray
    held_out_digits: npt.NDArray[np.int64]


Fit = Callable[[Data], Any]  # Any: scikit-learn ships no types


def model_path(directory: Path, version: str) -> Path:
    """Return where a version's ONNX file lies in the demo's folder."""
    return directory / "models" / NAME / version / "model.onnx"


def recipe() -> str:
    """Return what identifies the training: the digest of this file."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def find(directory: Path) -> Digits | None:
    """Return the models of an earlier run, if they are whole and of today's recipe."""
    try:
        digits = msgspec.json.decode((directory / STAMP).read_bytes(), type=Digits)
        if digits.recipe != recipe():
            return None
        for version in digits.versions:
            content = model_path(directory, version.version).read_bytes()
            if hashlib.sha256(content).hexdigest() != version.sha256:
                return None
        pictures = (directory / HELD_OUT).read_bytes()
        if hashlib.sha256(pictures).hexdigest() != digits.held_out_sha256:
            return None
    except (OSError, msgspec.DecodeError):
        return None
    return digits if config_path(directory).is_file() else None


def config_path(directory: Path) -> Path:
    """Return where the model's config.pbtxt lies in the demo's folder."""
    return directory / "models" / NAME / "config.pbtxt"


def held_out(directory: Path) -> npt.NDArray[np.uint8]:
    """Return all held-out pictures of a trained folder, of shape (rows, 64)."""
    pictures: npt.NDArray[np.uint8] = np.load(directory / HELD_OUT, allow_pickle=False)
    return pictures


def make(directory: Path, work: Work) -> Digits:
    """Train both versions and write the model repository; the stamp goes last."""
    with work("loading scikit-learn and its digits"):
        data = load()
    versions = []
    for version, kind, fit in RECIPES:
        with work(f"training version {version}, {kind}"):
            estimator = fitted(fit, data)
        content = graph(layers(estimator)).SerializeToString(deterministic=True)
        _write(model_path(directory, version), content)
        versions.append(
            Version(
                version=version,
                kind=kind,
                accuracy=_accuracy(estimator, data),
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    _write(config_path(directory), CONFIG.encode())
    pictures = io.BytesIO()
    np.save(pictures, data.held_out.astype(np.uint8))
    _write(directory / HELD_OUT, pictures.getvalue())
    digits = Digits(
        recipe=recipe(),
        versions=tuple(versions),
        held_out=len(data.held_out),
        pictures=tuple(_first_of_each(data)),
        held_out_sha256=hashlib.sha256(pictures.getvalue()).hexdigest(),
    )
    _write(directory / STAMP, msgspec.json.format(msgspec.json.encode(digits), indent=0))
    return digits


def load() -> Data:
    """Return the bundled data, split the same way every time."""
    # Imported here: a run that finds its models needs no scikit-learn.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pictures, digits = load_digits(return_X_y=True)
    train, held_out, train_digits, held_out_digits = train_test_split(
        pictures, digits, test_size=_HELD_OUT_SHARE, random_state=_SEED, stratify=digits
    )
    return Data(
        train=train,
        train_digits=train_digits,
        held_out=held_out,
        held_out_digits=held_out_digits,
    )


def fit_linear(data: Data) -> Any:  # Any: scikit-learn ships no types
    """Return a fitted logistic regression over ten classes."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000).fit(data.train / WHITE, data.train_digits)


def fit_network(data: Data) -> Any:  # Any: scikit-learn ships no types
    """Return a fitted network with one hidden layer."""
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((_HIDDEN_UNITS,), learning_rate_init=3e-3, random_state=_SEED)
    # A fixed number of epochs: stopping when the loss rests would take far longer for less.
    for _ in range(_EPOCHS):
        network.partial_fit(data.train / WHITE, data.train_digits, classes=np.arange(10))
    return network


def fitted(fit: Fit, data: Data) -> Any:  # Any: scikit-learn ships no types
    """Return a fitted estimator, trained on one thread.

    Matrices this small take a hundred times longer where threads wait for each other, and the order
    of their sums would decide the last bits.
    """
    # A dependency of scikit-learn, without types.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1):
        return fit(data)


RECIPES: Final[Sequence[tuple[str, str, Fit]]] = (
    ("1", "a linear model", fit_linear),
    ("2", f"a network of {_HIDDEN_UNITS} hidden units", fit_network),
)
"""Version, kind and how it is fitted."""


def layers(estimator: Any) -> list[Layer]:  # Any: scikit-learn ships no types
    """Return the coefficients of a fitted estimator, from the pixels to the ten scores."""
    if hasattr(estimator, "coefs_"):
        return [Layer(*pair) for pair in zip(estimator.coefs_, estimator.intercepts_, strict=True)]
    return [Layer(estimator.coef_.T, estimator.intercept_)]


def graph(network: Sequence[Layer]) -> onnx.ModelProto:
    """Return layers as an ONNX model: scaling, layers with ReLU between them, softmax, argmax.

    The input is ``image`` FP32 [-1, 64], raw pixels; the outputs are ``probabilities`` FP32
    [-1, 10] and ``label`` INT64 [-1, 1].
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    constants = [numpy_helper.from_array(_fp32(1 / WHITE), "scale")]
    nodes = [helper.make_node("Mul", ["image", "scale"], ["activation_0"])]
    for n, layer in enumerate(network):
        for name, values in (("weights", layer.weights), ("bias", layer.bias)):
            constants.append(numpy_helper.from_array(_fp32(values), f"{name}_{n}"))
        wires = [f"activation_{n}", f"weights_{n}", f"bias_{n}"]
        nodes.append(helper.make_node("Gemm", wires, [f"scores_{n}"]))
        if n + 1 < len(network):
            nodes.append(helper.make_node("Relu", [f"scores_{n}"], [f"activation_{n + 1}"]))
    scores = f"scores_{len(network) - 1}"
    nodes.append(helper.make_node("Softmax", [scores], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", [scores], ["label"], axis=1, keepdims=1))
    batch, value = "rows", helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            nodes,
            NAME,
            [value("image", TensorProto.FLOAT, [batch, PIXELS])],
            [
                value("probabilities", TensorProto.FLOAT, [batch, 10]),
                value("label", TensorProto.INT64, [batch, 1]),
            ],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="sluice demo",
    )
    checker.check_model(model, full_check=True)
    return model


def _fp32(values: FloatArray | float) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32, order="C")


def _accuracy(estimator: Any, data: Data) -> float:  # Any: scikit-learn ships no types
    return float(estimator.score(data.held_out / WHITE, data.held_out_digits))


def _first_of_each(data: Data) -> list[Picture]:
    """Return ten pictures, in the order of their digits."""
    digits = data.held_out_digits.tolist()
    return [
        Picture(digit=digit, pixels=tuple(int(v) for v in data.held_out[digits.index(digit)]))
        for digit in range(10)
    ]


def _write(path: Path, content: bytes) -> None:
    """Put a file in place at once, so that an interrupted run leaves no half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
