"""Exported programs that would run code while torch loads them, and those that must pass."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import nn
from torch.export import Dim

from engines import pytorch
from engines.base import EngineConfig
from engines.errors import ModelLoadError
from engines.pytorch import formats, vetting
from tests.support.torch_models import Evil, Scaled, example, rows, write_exported

PROGRAM: Final = "models/model.json"
EXAMPLES: Final = "data/sample_inputs/model.pt"
WEIGHTS: Final = "data/weights/model_weights_config.json"
CONSTANTS: Final = "data/constants/model_constants_config.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(
        tmp_path_factory.mktemp("good") / "model.pt2",
        Scaled(),
        [torch.zeros(2, 3)],
        {"scale": torch.zeros(2, 4)},
        dynamic={"x": {0: rows(16)}, "scale": {0: rows(16)}},
    )


def changed(good: Path, to: Path, member: str, change: Callable[[bytes], bytes]) -> Path:
    """Copy an archive with one member replaced, or added."""
    with zipfile.ZipFile(good) as opened:
        members = {info.filename: opened.read(info) for info in opened.infolist()}
    root = next(iter(members)).partition("/")[0]
    members[f"{root}/{member}"] = change(members.get(f"{root}/{member}", b""))
    with zipfile.ZipFile(to, "w") as written:
        for name, data in members.items():
            written.writestr(name, data)
    return to


# Any: JSON as torch nests it; the same below.
def in_json(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def changed_json(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return changed_json


def refused(path: Path, why: str) -> None:
    with pytest.raises(ModelLoadError, match=f"model.pt2 is refused: .*{why}") as found:
        pytorch.load(path, EngineConfig())
    assert "\n" not in str(found.value)


def test_a_copy_that_is_not_changed_loads(good: Path, tmp_path: Path) -> None:
    copy = changed(good, tmp_path / "model.pt2", PROGRAM, lambda data: data)
    assert vetting.devices_of(formats.identify(copy)) == {"cpu"}
    pytorch.load(copy, EngineConfig()).close()


@pytest.mark.parametrize("save", [torch.save, lambda evil, to: to.write(pickle.dumps(evil))])
def test_example_inputs_with_code_in_them_are_refused_and_do_not_run(
    # Any: either way to save.
    good: Path,
    tmp_path: Path,
    save: Callable[[Any, io.BytesIO], None],
) -> None:
    proof = tmp_path / "ran"
    stored = io.BytesIO()
    save(((Evil(proof),), {}), stored)
    path = changed(good, tmp_path / "model.pt2", EXAMPLES, lambda _: stored.getvalue())
    refused(path, "example inputs are a pickle of more than tensors")
    assert not proof.exists()
    with pytest.MonkeyPatch.context() as patched:  # torch alone would have run it
        patched.setattr(vetting, "_check_examples", lambda *_: None)
        with pytest.raises(ModelLoadError):
            pytorch.load(path, EngineConfig())
    assert proof.exists()


@pytest.mark.parametrize("key", ["weights", "constants"])
def test_weights_that_claim_to_be_pickles_are_refused(good: Path, tmp_path: Path, key: str) -> None:
    def claim(config: Any) -> None:
        config["config"]["evil"] = {
            "path_name": "weight_0" if key == "weights" else "tensor_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    member = WEIGHTS if key == "weights" else CONSTANTS
    refused(changed(good, tmp_path / "model.pt2", member, in_json(claim)), "stored as a pickle")


@pytest.mark.parametrize("name", ["custom_obj_0", "opaque_obj_0", "../x"])
def test_constants_that_are_objects_are_refused(good: Path, tmp_path: Path, name: str) -> None:
    def add(config: Any) -> None:
        config["config"]["evil"] = {"path_name": name, "use_pickle": False, "tensor_meta": None}

    refused(changed(good, tmp_path / "model.pt2", CONSTANTS, in_json(add)), "stored as a pickle")


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_an_archive_of_an_old_torch_is_refused(good: Path, tmp_path: Path, kind: str) -> None:
    stored = io.BytesIO()
    torch.save({}, stored)
    member = f"data/{kind}/model.pt"
    path = changed(good, tmp_path / "model.pt2", member, lambda _: stored.getvalue())
    refused(path, "an old torch wrote")


def graph(program: Any) -> Any:
    return program["graph_module"]["graph"]


def call_system(program: Any) -> None:
    graph(program)["nodes"][0]["target"] = "torch.os.system"


def call_a_file(program: Any) -> None:
    graph(program)["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def call_an_attribute(program: Any) -> None:
    graph(program)["nodes"][0]["target"] = "_operator.methodcaller"


def name_an_argument_for_code(program: Any) -> None:
    graph(program)["inputs"][0] = {"as_string": "' or __import__('os').system('true') or '"}


def pass_an_operator(program: Any) -> None:
    program["graph_module"]["metadata"] = {"x": {"as_operator": "torch.hub.load"}}


def evaluate_a_size(program: Any) -> None:
    size = graph(program)["tensor_values"]["x"]["sizes"][0]
    size["as_expr"]["expr_str"] = "__import__('os').system('true')"


def evaluate_a_size_of_characters(program: Any) -> None:
    size = graph(program)["tensor_values"]["x"]["sizes"][0]
    size["as_expr"]["expr_str"] = "exec(chr(112)+chr(97)+chr(115)+chr(115))"


def hide_a_size_behind_a_name(program: Any) -> None:
    hidden = {"sizes": [{"as_expr": {"expr_str": "print(1)"}}]}
    graph(program)["tensor_values"]["metadata"] = hidden


def guard_with_code(program: Any) -> None:
    program["guards_code"].append("L['x'].size()[0] == __import__('os').getpid()")


def guard_with_a_hidden_attribute(program: Any) -> None:
    program["guards_code"].append("L['x'].__class__.__mro__[1] == 1")


def guard_with_a_quote(program: Any) -> None:
    program["guards_code"].append("L['x\"+evil()+\"'].size()[0] == 1")


def name_a_node_for_code(program: Any) -> None:
    graph(program)["nodes"][0]["name"] = "x\n    evil()"


def name_a_weight_for_code(program: Any) -> None:
    spec = program["graph_module"]["signature"]["input_specs"][0]
    spec["parameter"]["parameter_name"] = 'w"); evil(); ("'


def rename_an_argument(program: Any) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"][0] = "x=evil()"


def nest_in(kind: str, context: str) -> Callable[[Any], None]:
    def nest(program: Any) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
        tree = {"type": kind, "context": context, "children_spec": [leaf]}
        signature["in_spec"] = json.dumps([1, tree])

    return nest


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (call_system, "no operator that a model may call"),
        (call_a_file, "no operator that a model may call"),
        (call_an_attribute, "no operator that a model may call"),
        (pass_an_operator, "no operator that a model may call"),
        (name_an_argument_for_code, "torch does not write"),
        (evaluate_a_size, "no expression of sizes"),
        (evaluate_a_size_of_characters, "no expression of sizes"),
        (hide_a_size_behind_a_name, "no expression of sizes"),
        (guard_with_code, "no condition on sizes"),
        (guard_with_a_hidden_attribute, "no condition on sizes"),
        (guard_with_a_quote, "no condition on sizes"),
        (name_a_node_for_code, "torch does not write"),
        (name_a_weight_for_code, "torch does not write"),
        (rename_an_argument, "torch does not write"),
        (nest_in("collections.defaultdict", "{}"), "nested in"),
        (nest_in("builtins.dict", '[{"__enum__": true, "fqn": "os:x"}]'), "more than names"),
        (nest_in("builtins.dict", '{"a": 1}'), "more than names"),
        (nest_in("builtins.dict", '["x\\"+evil()+\\""]'), "torch does not write"),
    ],
)
def test_a_program_whose_text_would_become_other_code_is_refused(
    good: Path, tmp_path: Path, change: Callable[[Any], None], why: str
) -> None:
    refused(changed(good, tmp_path / "model.pt2", PROGRAM, in_json(change)), why)


def test_a_broken_program_is_a_load_error_in_one_line(good: Path, tmp_path: Path) -> None:
    for number, change in enumerate((lambda _: b"{", lambda data: data[:-9], lambda _: b"[]")):
        path = changed(good, tmp_path / f"{number}.pt2", PROGRAM, change)
        with pytest.raises(ModelLoadError, match=rf"{number}\.pt2") as found:
            pytorch.load(path, EngineConfig())
        assert "\n" not in str(found.value)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        words = self.words(ids) + torch.arange(ids.shape[1])[:, None] / ids.shape[1]
        return {"all": self.layer(words, src_key_padding_mask=mask == 0)}


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))
        return answer


class Counting(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count: Any = x.sum().int().item()  # a size, while it is exported
        check: Any = torch._check  # untyped
        check(count >= 0)
        check(count < 10)
        halves = x.reshape(-1, 2 * x.shape[1])
        return torch.zeros(count), torch.nonzero(x > 0), halves, x[:, : x.shape[1] // 2]


class Nested(nn.Module):
    # Any: tensors inside containers.
    def forward(self, given: dict[str, Any]) -> Any:
        return [
            given["a"] + given["b"][0],
            {"c": torch.einsum("bi,bj->bij", given["a"], given["a"])},
        ]


DYNAMIC: Final = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}


@pytest.mark.parametrize(
    ("module", "args", "dynamic"),
    [
        (Attention(), [example("INT64", 2, 6)] * 2, {"ids": DYNAMIC, "mask": DYNAMIC}),
        (Branches(), [torch.zeros(2, 3)], {"x": {0: rows()}}),
        (Counting(), [torch.ones(2, 4)], {"x": DYNAMIC}),
        (Nested(), [{"a": torch.zeros(2, 3), "b": [torch.zeros(2, 3)]}], None),
        (nn.LSTM(3, 4, batch_first=True), [torch.zeros(2, 5, 3)], None),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(True)),
         [torch.zeros(2, 1, 8, 8)], None),
    ],
    ids=["attention", "branches", "counting", "nested", "lstm", "convolution"],
)  # fmt: skip
# Any: see `write_exported`.
def test_programs_as_torch_writes_them_pass(
    tmp_path: Path, module: nn.Module, args: list[Any], dynamic: Any
) -> None:
    path = write_exported(tmp_path / "model.pt2", module, args, dynamic=dynamic)
    assert vetting.devices_of(formats.identify(path)) == {"cpu"}
