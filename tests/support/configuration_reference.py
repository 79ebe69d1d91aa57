"""Writes docs/configuration.md from the configuration's modules: fields, defaults, docstrings.

`python -m tests.support.configuration_reference` rewrites the page; a test compares.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

_ANNOTATED = re.compile(r"Annotated\[(?P<kind>\w+), Meta\((?P<meta>.*)\)\]")
_BOUND = re.compile(r"\b(ge|gt|le)=(\d+)")
_LITERAL = re.compile(r"Literal\[([^\]]*)\]")
_WORD = re.compile(r"\b[A-Za-z]+\b")
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
SOURCES = ("config.py", "prediction_log_config.py")
FORMS = {"FeatureRule": "{bucket = number}"}
"""Tables that are written in one line, and so have no section."""
SECTIONS = {
    "ServerConfig": "[server]",
    "TlsConfig": "[server.tls]",
    "LimitsConfig": "[server.limits]",
    "ModelsConfig": "[models]",
    "RedisConfig": "[redis]",
    "PredictionLogConfig": "[prediction_log]",
    "SpoolConfig": "[prediction_log.spool]",
    "RetentionConfig": "[prediction_log.retention]",
    "SamplingConfig": "[prediction_log.sampling]",
    "CaptureConfig": "[prediction_log.capture]",
    "PrivacyConfig": "[prediction_log.privacy]",
    "FeedbackConfig": "[prediction_log.feedback]",
    "NameConfig": "[prediction_log.names.NAME]",
    "ControlConfig": "[control]",
    "PrincipalConfig": "[principals.NAME]",
}
HEAD = """# Configuration

One TOML file, read once at start. An unknown key, a wrong type or a value out of range is refused
with the path of the field and exit code 2; `sluice check --config sluice.toml` does only that, and
the same with every model's `config.pbtxt`.

Every field can be overridden from the environment: the path in capitals, joined by double
underscores, after `SLUICE__`. `SLUICE__SERVER__HTTP=0.0.0.0:8000` overrides `[server] http`. The
value is read as TOML (`64`, `true`, `["header:x-user-id"]`), and as plain text where it is no TOML
or where the file has text. Passwords belong here rather than in the file.

This page is made from `gateway/config.py` and `gateway/prediction_log_config.py`; a test keeps it
true.
"""
ROUTES = """## `[routes.NAME]`

{meaning}

The same document as in the admin API, without `name`: [routes.md](routes.md) describes its fields.
Once a route is stored, it is changed through the admin API or `sluice route`; the store is right
then, and a difference from the file is logged at start.
"""


def page() -> str:
    """Return the whole page."""
    trees = [ast.parse((ROOT / "gateway" / name).read_text()) for name in SOURCES]
    nodes = [node for tree in trees for node in tree.body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    words = FORMS | {
        ast.unparse(node.targets[0]): ast.unparse(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal[")
    }
    sections = [_section(classes[name], title, words) for name, title in SECTIONS.items()]
    return "\n".join(
        [HEAD, *sections, ROUTES.format(meaning=_meaning(classes["Config"], "routes"))]
    )


def _section(node: ast.ClassDef, title: str, words: Mapping[str, str]) -> str:
    lines = [f"## `{title}`", "", ast.get_docstring(node) or "", ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    for position, item in enumerate(node.body):
        if not isinstance(item, ast.AnnAssign) or _names_section(item.annotation):
            continue
        following = node.body[position + 1] if position + 1 < len(node.body) else None
        annotation = ast.unparse(item.annotation)
        annotation = _WORD.sub(lambda word: words.get(word[0], word[0]), annotation)
        cells = [
            f"`{ast.unparse(item.target)}`",
            f"`{_type(annotation)}`".replace("|", "\\|"),
            "required" if item.value is None else f"`{_default(item.value)}`",
            _docstring(following),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _names_section(annotation: ast.expr) -> bool:
    """Whether a field is a table with a section of its own on the page."""
    text = ast.unparse(annotation).removeprefix("dict[Name, ").removesuffix("]")
    return text.removesuffix(" | None") in SECTIONS


def _meaning(node: ast.ClassDef, field: str) -> str:
    """Return the docstring of one field."""
    fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
    target = next(found for found in fields if ast.unparse(found) == field)
    following = (item for item in node.body if item.lineno > target.lineno)
    return _docstring(next(following))


def _type(annotation: str) -> str:
    plain = {"Positive": "int ≥ 1", "NonNegative": "int ≥ 0", "Name": "name"}
    plain |= {"Share": "float ≥ 0, ≤ 1", "Seconds": "float ≥ 0"}
    if found := _ANNOTATED.fullmatch(annotation):
        kind, signs = found["kind"], {"ge": "≥", "gt": ">", "le": "≤"}
        bounds = (f"{signs[sign]} {bound}" for sign, bound in _BOUND.findall(found["meta"]))
        return f"{kind} {', '.join(bounds)}".strip()
    if "Literal[" in annotation:
        return _LITERAL.sub(r"\1", annotation).replace("'", '"')
    return plain.get(annotation, annotation.replace("Name", "name").replace("Config", ""))


def _default(value: ast.expr) -> str:
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.LShift):
        return f"{ast.literal_eval(value.left) << ast.literal_eval(value.right):_}"
    if isinstance(value, ast.Constant) and type(value.value) is int:
        return f"{value.value:_}"
    return ast.unparse(value).replace("'", '"')


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""


if __name__ == "__main__":
    PAGE.write_text(page())
