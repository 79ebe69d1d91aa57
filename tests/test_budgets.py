"""Size budgets: functions of at most 60 lines, files of at most 400, or a reason written here.

Lines count as they stand, with docstrings and comments; generated code is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("gateway", "router", "engines", "loadtests")
GENERATED: Final = ROOT / "gateway" / "pb"
MAX_FUNCTION_LINES: Final = 60
MAX_FILE_LINES: Final = 400

EXCEPTIONS: Final[dict[str, str]] = {}
"""Path, or path::qualified.name of a function -> why it may be longer."""


def sources() -> list[Path]:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted(path for path in found if GENERATED not in path.parents)


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the qualified name and the lines of every function below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            assert child.end_lineno is not None
            yield prefix + child.name, child.end_lineno - child.lineno + 1
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


def too_long(path: Path) -> Iterator[str]:
    """Yield what is over its budget in a file, by its label."""
    text = path.read_text(encoding="utf-8")
    if text.count("\n") > MAX_FILE_LINES:
        yield label(path)
    for name, lines in functions(ast.parse(text)):
        if lines > MAX_FUNCTION_LINES:
            yield f"{label(path)}::{name}"


def test_nothing_is_over_its_budget_without_a_reason() -> None:
    over = {found for path in sources() for found in too_long(path)}
    assert over - set(EXCEPTIONS) == set()
    assert set(EXCEPTIONS) - over == set(), "an exception that is no longer needed"


def test_the_sources_are_really_looked_at() -> None:
    seen = {label(path) for path in sources()}
    assert {"engines/batcher.py", "router/slots.py", "gateway/config.py"} <= seen
    assert not any(name.startswith("gateway/pb/") for name in seen)


@pytest.mark.parametrize(
    ("lines", "expected"), [(60, []), (61, ["f.g"])], ids=["at the limit", "over it"]
)
def test_a_nested_function_is_measured_by_its_qualified_name(
    lines: int, expected: list[str]
) -> None:
    body = "\n".join("        pass" for _ in range(lines - 1))
    tree = ast.parse(f"if True:\n  class f:\n    def g():\n{body}\n")
    assert [name for name, size in functions(tree) if size > MAX_FUNCTION_LINES] == expected
