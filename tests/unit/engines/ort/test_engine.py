"""ONNX Runtime on the CPU: signatures, declared signatures, devices, text and BF16.

What every engine must do is in tests/contract/engines; here is what only this one does.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from engines.base import BatchPolicy, Engine, EngineConfig, TensorSpec
from engines.batcher import Batcher
from engines.errors import DeviceUnavailable, InvalidInput, ModelLoadError
from engines.executed import Executed
from engines.instance import Instance
from engines.ort import load
from engines.tensors import DATATYPES
from tests.support.batching import Reply, make_request
from tests.support.models import (
    write_countdown,
    write_graph,
    write_identity,
    write_lookup,
    write_mlp,
)


def spec(name: str, shape: Sequence[int], datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=tuple(shape))


def test_a_model_tells_its_signature_and_what_it_runs_on(tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "model.onnx", [4, 8, 3], seed=1)
    metadata = load(path, EngineConfig()).metadata
    assert metadata.inputs == (spec("x", (-1, 4)),)
    assert metadata.outputs == (spec("y", (-1, 3)),)
    assert metadata.max_batch_size == 64
    assert metadata.platform == "onnxruntime_onnx"
    assert metadata.engine == f"onnxruntime {onnxruntime.__version__}"
    assert metadata.device == "cpu"
    assert metadata.providers == ("CPUExecutionProvider",)
    assert metadata.artifact_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_network_computes_what_numpy_computes(tmp_path: Path) -> None:
    engine = load(write_mlp(tmp_path / "model.onnx", [5, 7, 2], seed=3), EngineConfig())
    rng = np.random.default_rng(3)
    weights = [
        (rng.normal(0, 1 / np.sqrt(a), (a, b)), rng.normal(0, 1 / np.sqrt(a), b))
        for a, b in ((5, 7), (7, 2))
    ]
    rows = np.random.default_rng(4).normal(size=(6, 5)).astype(np.float32)
    hidden = np.maximum(rows @ weights[0][0] + weights[0][1], 0)
    expected = hidden @ weights[1][0] + weights[1][1]
    np.testing.assert_allclose(engine.infer({"x": rows})["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("configured", "default", "expected"), [(None, 64, 64), (None, 16, 16), (4, 64, 4), (0, 64, 0)]
)
def test_the_batch_size_is_the_configured_one_or_the_default(
    tmp_path: Path, configured: int | None, default: int, expected: int
) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    config = EngineConfig(max_batch_size=configured, default_max_batch_size=default)
    assert load(path, config).metadata.max_batch_size == expected


def test_a_model_with_a_fixed_first_axis_runs_one_request_at_a_time(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [2, 3], batch_axis=False)
    assert load(path, EngineConfig()).metadata.max_batch_size == 0
    with pytest.raises(
        ModelLoadError, match=r"max_batch_size is 4, but 'x' has the shape \[2, 3\]"
    ):
        load(path, EngineConfig(max_batch_size=4))


def test_a_model_without_inputs_cannot_be_batched(tmp_path: Path) -> None:
    constant = helper.make_node(
        "Constant", [], ["y"], value=helper.make_tensor("c", TensorProto.FLOAT, [2], [1.0, 2.0])
    )
    path = write_graph(
        tmp_path / "model.onnx", nodes=[constant], inputs={}, outputs={"y": ("FP32", [2])}
    )
    engine = load(path, EngineConfig())
    assert engine.metadata.max_batch_size == 0
    assert engine.infer({})["y"].tolist() == [1.0, 2.0]
    with pytest.raises(ModelLoadError, match="there are no inputs"):
        load(path, EngineConfig(max_batch_size=4))


def declared(
    path: Path, *, inputs: Sequence[TensorSpec] = (), outputs: Sequence[TensorSpec] = ()
) -> Engine:
    config = EngineConfig(max_batch_size=8, inputs=tuple(inputs), outputs=tuple(outputs))
    return load(path, config)


def test_a_declared_signature_narrows_what_varies(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", ["width"])
    metadata = declared(path, inputs=(spec("x", [4]),), outputs=(spec("y", [-1]),)).metadata
    assert metadata.inputs == (spec("x", (-1, 4)),)
    assert metadata.outputs == (spec("y", (-1, -1)),)


def test_a_declared_dimension_that_varies_leaves_the_files_own(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    metadata = declared(path, inputs=(spec("x", [-1]),)).metadata
    assert metadata.inputs == (spec("x", (-1, 4)),)


def two_outputs(path: Path) -> Path:
    return write_graph(
        path,
        nodes=[helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])],
        inputs={"x": ("FP32", ["rows"])},
        outputs={"a": ("FP32", ["rows"]), "b": ("FP32", ["rows"])},
    )


def test_declared_outputs_choose_and_order_what_is_served(tmp_path: Path) -> None:
    engine = declared(two_outputs(tmp_path / "model.onnx"), outputs=(spec("b", []),))
    answer = engine.infer({"x": np.array([-2.0], np.float32)})
    assert {name: array.tolist() for name, array in answer.items()} == {"b": [2.0]}
    engine = declared(two_outputs(tmp_path / "model.onnx"), outputs=(spec("b", []), spec("a", [])))
    assert [output.name for output in engine.metadata.outputs] == ["b", "a"]
    answer = engine.infer({"x": np.array([-3.0], np.float32)})
    assert [answer["a"].tolist(), answer["b"].tolist()] == [[3.0], [3.0]]


@pytest.mark.parametrize(
    ("inputs", "outputs", "sentence"),
    [
        ([spec("z", [4])], [], "declared input 'z' is not in the model"),
        ([], [spec("z", [4])], "declared output 'z' is not in the model"),
        ([spec("x", [4], "FP64")], [], "input 'x' is declared FP64, the model has FP32"),
        ([spec("x", [5])], [], "declared with the shape [-1, 5], the model has [-1, 4]"),
        ([spec("x", [4, 1])], [], "declared with the shape [-1, 4, 1], the model has [-1, 4]"),
        ([], [spec("y", [3])], "declared with the shape [-1, 3], the model has [-1, 4]"),
    ],
)
def test_a_signature_that_contradicts_the_file_is_a_load_error(
    tmp_path: Path, inputs: list[TensorSpec], outputs: list[TensorSpec], sentence: str
) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    with pytest.raises(ModelLoadError) as refused:
        declared(path, inputs=inputs, outputs=outputs)
    assert sentence in str(refused.value)


def test_every_input_must_be_declared_once_any_is(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=[helper.make_node("Add", ["a", "b"], ["y"])],
        inputs={"a": ("FP32", ["rows"]), "b": ("FP32", ["rows"])},
        outputs={"y": ("FP32", ["rows"])},
    )
    with pytest.raises(ModelLoadError, match="the model's input 'b' is not declared"):
        declared(path, inputs=(spec("a", []),))


def test_a_tensor_type_that_the_protocol_lacks_is_a_load_error(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    path = write_identity(tmp_path / "model.onnx", "FP32", [1])
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])],
        [sequence],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelLoadError, match=r"output 'y' is a seq\(tensor\(float\)\)"):
        load(path, EngineConfig())


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_that_this_runtime_has_not_is_never_answered_by_the_cpu(
    tmp_path: Path, device: str
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider: see the contract suite's gpu tests")
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    with pytest.raises(DeviceUnavailable, match="CUDAExecutionProvider was asked for"):
        load(path, EngineConfig(device=device))


def test_an_accelerator_that_this_runtime_has_not_is_refused(tmp_path: Path) -> None:
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the TensorRT provider")
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    with pytest.raises(DeviceUnavailable, match="TensorrtExecutionProvider was asked for"):
        load(path, EngineConfig(providers=(("tensorrt", {"trt_fp16_enable": "1"}),)))


@pytest.mark.parametrize("device", ["gpu", "tensorrt", "tensorrt:0", ""])
def test_a_device_that_is_none_is_a_load_error(tmp_path: Path, device: str) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    with pytest.raises(ModelLoadError, match="is neither cpu nor cuda:N"):
        load(path, EngineConfig(device=device))


def test_an_unknown_accelerator_is_a_load_error(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    with pytest.raises(ModelLoadError, match="'tpu' is not one of cpu, cuda, tensorrt"):
        load(path, EngineConfig(providers=(("tpu", {}),)))


def test_session_parameters_reach_the_runtime_and_others_do_not(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    load(path, EngineConfig(parameters={"other.disable_cpu_ep_fallback": "1"}))
    with pytest.raises(ModelLoadError, match="disabled fallback to the CPU"):
        load(path, EngineConfig(parameters={"session.disable_cpu_ep_fallback": "1"}))


def test_a_session_parameter_replaces_our_default_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    load(path, EngineConfig(parameters={"session.intra_op.allow_spinning": "1"}))
    assert capfd.readouterr() == ("", "")


def test_text_that_is_no_utf8_is_the_callers_mistake(tmp_path: Path) -> None:
    engine = load(write_identity(tmp_path / "model.onnx", "BYTES", [1]), EngineConfig())
    with pytest.raises(InvalidInput, match="input 'x': an element is not UTF-8 text"):
        engine.infer({"x": np.array([[b"fine"], [b"\xff"]], dtype=object)})


def test_text_keeps_its_nul_bytes_and_its_letters(tmp_path: Path) -> None:
    engine = load(write_identity(tmp_path / "model.onnx", "BYTES", [2]), EngineConfig())
    rows = np.array([["é".encode(), b"a\0b\0"], [b"", "\U0001f40d".encode()]], dtype=object)
    assert engine.infer({"x": rows})["y"].tolist() == rows.tolist()


def test_bf16_numbers_are_computed_with_as_such(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=[
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "wide"], ["doubled"]),
            helper.make_node("Cast", ["doubled"], ["y"], to=TensorProto.BFLOAT16),
        ],
        inputs={"x": ("BF16", ["rows", 3])},
        outputs={"y": ("BF16", ["rows", 3]), "wide": ("FP32", ["rows", 3])},
    )
    engine = load(path, EngineConfig())
    bits = np.array([[0x3F80, 0x4000, 0xC000]], np.uint16)  # 1, 2, -2
    answer = engine.infer({"x": bits})
    assert answer["wide"].tolist() == [[1.0, 2.0, -2.0]]
    assert answer["y"].dtype == np.uint16
    assert answer["y"].tolist() == [[0x4000, 0x4080, 0xC080]]  # 2, 4, -4


def test_bf16_beside_text_inputs_cannot_be_fed_and_says_so_at_load(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=[
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Identity", ["t"], ["u"]),
        ],
        inputs={"x": ("BF16", ["rows"]), "t": ("BYTES", ["rows"])},
        outputs={"y": ("BF16", ["rows"]), "u": ("BYTES", ["rows"])},
    )
    with pytest.raises(ModelLoadError, match="cannot feed BF16 beside BYTES"):
        load(path, EngineConfig())


def test_an_index_out_of_range_is_a_foreign_error_of_the_runtime(tmp_path: Path) -> None:
    engine = load(write_lookup(tmp_path / "model.onnx", [1.5, 2.5]), EngineConfig())
    assert engine.infer({"x": np.array([[1], [0]])})["y"].tolist() == [[2.5], [1.5]]
    with pytest.raises(Exception, match="indices element out of data bounds"):
        engine.infer({"x": np.array([[2]])})


@pytest.mark.parametrize("other", ["BF16", "FP32"])
def test_an_input_that_is_an_output_as_well_is_handed_out_as_a_copy(
    tmp_path: Path, other: str
) -> None:
    """The memory of an input is that of the next batch, too."""
    shape: Sequence[int | str] = ["rows", 4]
    shapes = {"x": ("FP32", shape), "b": (other, shape)}
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=[helper.make_node("Identity", ["b"], ["c"])],
        inputs=shapes,
        outputs={"c": shapes["b"], "x": shapes["x"]},
    )
    rows = np.ones((2, 4), np.float32)
    second = np.zeros((2, 4), DATATYPES[other].dtype)
    answer = load(path, EngineConfig()).infer({"x": rows, "b": second})["x"]
    rows[:] = 2
    assert answer.tolist() == [[1.0] * 4] * 2


@pytest.mark.parametrize(
    ("datatype", "item_shape", "batch_axis", "is_steady"),
    [
        ("FP32", [4], True, True),
        ("BF16", [4], True, True),
        ("FP32", [2, 3], False, True),
        ("FP32", ["n"], True, False),
        ("FP32", ["n"], False, False),
        ("BYTES", [1], True, False),
    ],
)
def test_a_model_is_steady_if_its_rows_alone_tell_how_much_there_is_to_do(
    tmp_path: Path,
    datatype: str,
    item_shape: list[int | str],
    batch_axis: bool,
    is_steady: bool,
) -> None:
    path = write_identity(tmp_path / "model.onnx", datatype, item_shape, batch_axis)
    config = EngineConfig(max_batch_size=8 if batch_axis else 0)
    assert load(path, config).metadata.is_steady is is_steady


def test_a_model_with_a_loop_is_not_steady_whatever_its_rows(tmp_path: Path) -> None:
    path = write_countdown(tmp_path / "model.onnx")
    engine = load(path, EngineConfig(max_batch_size=8))
    assert not engine.metadata.is_steady
    np.testing.assert_array_equal(engine.infer({"x": np.full((2, 1), 3.0, np.float32)})["y"], 3.0)


def test_a_signature_that_fixes_what_varies_makes_a_model_steady(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", ["n"])
    declared = EngineConfig(max_batch_size=8, inputs=(spec("x", (4,)),))
    assert load(path, declared).metadata.is_steady


@pytest.mark.parametrize("is_inline", [True, False])
def test_answers_keep_their_values_whatever_batches_follow(tmp_path: Path, is_inline: bool) -> None:
    """Rows are large enough to be laid into memory that all batches share."""
    width = 4_096
    path = write_identity(tmp_path / "model.onnx", "FP32", [width])

    async def scenario() -> None:
        engine = load(path, EngineConfig(max_batch_size=8))
        host = Instance(
            name="m/1#0", model="m", version="1", engine=engine, may_run_inline=is_inline
        )
        policy = BatchPolicy(max_batch_size=8)
        batcher = Batcher(model="m", version="1", policy=policy, instances=[host])
        answers: list[tuple[list[float], Executed]] = []
        for wave in range(12):
            sizes = (1, 2, 1) if wave % 3 else (1,) * (wave % 7 + 1)
            replies = []
            for number, rows in enumerate(sizes):
                values = [float(100 * wave + 10 * number + row) for row in range(rows)]
                reply = Reply()
                batcher.submit(make_request(values, width=width, on_done=reply))
                replies.append((values, reply))
            answers += [(values, await reply.executed()) for values, reply in replies]
        for values, executed in answers:
            array = executed.outputs[0].array()
            assert array.shape == (len(values), width)
            assert (array == np.array(values, np.float32)[:, None]).all()
        await batcher.close()

    asyncio.run(scenario())
