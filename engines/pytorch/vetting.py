"""Reads an exported program before torch does, and refuses what would run as code while it loads.

Knows how torch 2.13 reads such a file. An exported program is JSON, and weights as raw bytes; yet
torch unpickles parts of it where it is told to, evaluates its sizes and guards as Python, writes
its names into Python source, and calls whatever callable of the module `torch` a node is named for.
So every string that torch would turn into code has to be one of the plain forms that torch writes
itself, and no pickle is let through but example inputs made of tensors and plain values.

This is no sandbox: a program may still compute for ever, and a custom operator is the code of
whoever registered it. It is the same promise as an ONNX file's: a model is data.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from engines.errors import ModelLoadError
from engines.pytorch.failures import first_line
from engines.pytorch.formats import INSTEAD, ModelFile

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH: Final = re.compile(r"[A-Za-z0-9_.]*")
_TEXT: Final = re.compile(r"[^'\"\\\x00-\x1f\x7f]*")
_WORD: Final = re.compile(r"[A-Za-z0-9_.+-]*")
# Operators of torch's registry, and those that compute with sizes. Not torch.<anything callable>.
_OPERATOR: Final = re.compile(r"torch\.ops(\.[A-Za-z_][A-Za-z0-9_]*){2,3}")
_SIZE_OPERATOR: Final = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|"
    r"rshift|getitem)|math\.trunc|torch\.sym_(not|int|float|ite|max|min|sqrt|sum)"
)
# Operators that reach for files.
_FILES: Final = re.compile(r"torch\.ops\.(aten\.from_file|aten\.save|profiler|_test)\b.*")
_SYMBOL: Final = re.compile(r"[a-z]+[0-9]+")
# Functions that torch and sympy write into the expressions of sizes.
_WRITTEN: Final = """
    Symbol Integer Rational Float Add Mul Pow Max Min Abs Mod floor ceiling sqrt log log2 exp
    And Or Not Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan
    GreaterThan Piecewise ExprCondPair Tuple FloorDiv ModularIndexing Where PythonMod CleanDiv
    CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv
    IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat
    Identity cast_symbool_to_symint_guardless min max abs
    """
_FUNCTIONS: Final = frozenset(_WRITTEN.split())
_CONSTANTS: Final = frozenset({"oo", "int_oo", "inf", "true", "false"})
# What a guard asks of an input, and what it calls in the module math.
_ASKED: Final = frozenset({"size", "stride", "storage_offset", "numel", "dim", "shape", "ndim"})
_MATH: Final = frozenset({"floor", "ceil", "trunc", "sqrt", "inf", "isnan", "log", "log2", "pow"})
_TREES: Final = frozenset(
    {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict",
     "collections.namedtuple"}
)  # fmt: skip
_MAX_EXPRESSION: Final = 20_000
_SYNTAX: Final = (
    ast.Expression, ast.Load, ast.Constant, ast.Name, ast.Call, ast.keyword, ast.Compare,
    ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


class _Refused(Exception):
    """Part of the file is not what torch writes."""


def devices_of(file: ModelFile) -> frozenset[str]:
    """Check an exported program; return the kinds of devices that it was exported on.

    Raises:
        ModelLoadError: torch would run code of the file's, or the file is broken.
    """
    name, model = file.path.name, file.model
    try:
        reader = PT2ArchiveReader(str(file.path))
        stored = [_checked_payload(reader, kind, model) for kind in ("weights", "constants")]
        _check_examples(reader, model)
        program = json.loads(reader.read_bytes(f"models/{model}.json"))
        _walk(program)
        return frozenset(_devices([program, *stored]))
    except _Refused as exc:
        raise ModelLoadError(f"{name} is refused: {exc}") from None
    except Exception as exc:  # foreign: torch's reader, and JSON of another form than torch's
        raise ModelLoadError(f"{name} is a broken archive: {first_line(exc)}") from exc


# Any: whatever JSON, or a pickle of plain values, holds; the same below.
def _checked_payload(reader: PT2ArchiveReader, kind: str, model: str) -> Any:
    """Return the list of weights or constants; refuse it if one of them is a pickle."""
    if f"data/{kind}/{model}.pt" in reader.get_file_names():
        raise _Refused(f"an old torch wrote its {kind} as a pickle; {INSTEAD}")
    config = json.loads(reader.read_bytes(f"data/{kind}/{model}_{kind}_config.json"))
    for weight, entry in config["config"].items():
        is_raw = str(entry["path_name"]).startswith(("weight_", "tensor_"))
        if entry["use_pickle"] is not False or not is_raw:
            raise _Refused(f"{weight!r} is stored as a pickle; {INSTEAD}")
    return config


def _check_examples(reader: PT2ArchiveReader, model: str) -> None:
    """Refuse example inputs that are more than tensors and plain values.

    torch reads them in the same restricted way first, and with all of pickle if that fails.
    """
    stored = reader.read_bytes(f"data/sample_inputs/{model}.pt")
    if not stored:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            examples = torch.load(io.BytesIO(stored), weights_only=True)
    except Exception as exc:  # foreign: a malformed pickle raises anything
        why = "its example inputs are a pickle of more than tensors"
        raise _Refused(f"{why}; {INSTEAD}") from exc
    _check_texts(examples)


def _check_texts(value: Any) -> None:
    """Check the text in example inputs: their keys become part of the guards' source."""
    if isinstance(value, str):
        _match(_TEXT, value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_texts(key)
            _check_texts(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            _check_texts(inner)


def _walk(value: Any) -> None:
    """Check a JSON value and all in it, by the names of the fields."""
    if isinstance(value, list):
        for inner in value:
            _walk(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "inputs":
                _check_inputs(inner)
            check = _CHECKS.get(key)
            if check is not None and isinstance(inner, str):
                check(inner)
            elif check is not None and isinstance(inner, list):
                for item in inner:
                    check(item) if isinstance(item, str) else _walk(item)
            else:
                _walk(inner)


def _check_inputs(inputs: Any) -> None:
    """Check text that a graph was exported with as an input: guards compare with it."""
    for given in inputs if isinstance(inputs, list) else ():
        if isinstance(given, dict) and isinstance(given.get("as_string"), str):
            _text(given["as_string"])


def _devices(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_devices, value))
    if not isinstance(value, dict):
        return set()
    own = value.get("device")
    found = {str(own["type"])} if isinstance(own, dict) and "type" in own else set()
    return found.union(*map(_devices, value.values()))


def _match(pattern: re.Pattern[str], text: str) -> None:
    if not pattern.fullmatch(text):
        raise _Refused(f"torch does not write {text[:80]!r} there")


def _name(text: str) -> None:
    if text:
        _match(_NAME, text)


def _path(text: str) -> None:
    _match(_PATH, text)


def _text(text: str) -> None:
    _match(_TEXT, text)


def _target(text: str) -> None:
    if _FILES.fullmatch(text) or not (_OPERATOR.fullmatch(text) or _SIZE_OPERATOR.fullmatch(text)):
        raise _Refused(f"{text[:80]!r} is no operator that a model may call")


def _tree(text: str) -> None:
    """Check how inputs or outputs are nested: only containers of Python's own."""
    _, tree = json.loads(text)
    _check_tree(tree)


def _check_tree(tree: Any) -> None:
    if tree["type"] not in _TREES:
        raise _Refused(f"its inputs or outputs are nested in a {tree['type']!r}")
    context = tree["context"]
    if isinstance(context, str):
        context = json.loads(context)
    keys = context if isinstance(context, list) else [context]
    if any(isinstance(key, (dict, list)) for key in keys):
        raise _Refused("the nesting of its inputs or outputs is described by more than names")
    _check_texts(keys)
    for child in tree["children_spec"]:
        _check_tree(child)


def _parsed(text: str) -> ast.Expression:
    if len(text) > _MAX_EXPRESSION:
        raise _Refused(f"an expression of {len(text)} characters")
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError) as exc:
        raise _Refused(f"{text[:80]!r} is no expression of sizes") from exc


def _expression(text: str) -> None:
    """Check an expression of sizes, which sympy will evaluate as Python."""
    for node in ast.walk(_parsed(text)):
        if not isinstance(node, _SYNTAX) or not _is_plain(node):
            raise _Refused(f"{text[:80]!r} is no expression of sizes")


def _guard(text: str) -> None:
    """Check a condition on the inputs, which torch will compile as Python."""
    for node in ast.walk(_parsed(text)):
        if isinstance(node, ast.Attribute):
            of_math = isinstance(node.value, ast.Name) and node.value.id == "math"
            is_good = node.attr in (_MATH if of_math else _ASKED)
        elif isinstance(node, ast.Name):
            is_good = node.id in {"L", "math"} or node.id in _FUNCTIONS | _CONSTANTS
        elif isinstance(node, ast.Call):
            is_good = isinstance(node.func, (ast.Name, ast.Attribute)) and not node.keywords
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_good = _TEXT.fullmatch(node.value) is not None
        else:
            is_good = isinstance(node, (*_SYNTAX, ast.Subscript))
        if not is_good:
            raise _Refused(f"{text[:80]!r} is no condition on sizes")


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS | _CONSTANTS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _WORD.fullmatch(node.value) is not None
    return True


_CHECKS: Final[Mapping[str, Callable[[str], None]]] = {
    "expr_str": _expression,
    "guards_code": _guard,
    "target": _target,
    "as_operator": _target,
    "name": _name,
    "as_name": _name,
    "forward_arg_names": _name,
    "parameter_name": _path,
    "buffer_name": _path,
    "tensor_constant_name": _path,
    "custom_obj_name": _path,
    "fqn": _text,
    "in_spec": _tree,
    "out_spec": _tree,
}
"""Fields whose strings become code, or part of it, and what they may hold."""
