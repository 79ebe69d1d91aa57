"""Importing any module of the product changes nothing: no thread, file, socket, log or setting.

One interpreter imports them all, one by one, and compares itself before and after each. What the
packages of others do when they are first imported is theirs: those are imported beforehand.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("router", "engines", "gateway")

PROBE: Final = """
import ast, asyncio, gc, importlib, json, logging, os, signal, stat, sys, threading, warnings
from pathlib import Path

names = sys.argv[1:]
own = {name.partition(".")[0] for name in names}


def sources(name):
    stem = Path(*name.split("."))
    return stem.with_suffix(".py") if stem.with_suffix(".py").exists() else stem / "__init__.py"


def import_those_of_others():
    for name in names:
        for node in ast.walk(ast.parse(sources(name).read_text(encoding="utf-8"))):
            wanted = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                wanted = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in wanted:
                if module.partition(".")[0] not in own:
                    try:
                        importlib.import_module(module)
                    except ImportError:
                        continue


def open_descriptors():
    found = []
    for fd in range(256):
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        found.append([fd, stat.S_IFMT(status.st_mode), status.st_dev, status.st_ino])
    return found


def handlers(logger):
    return [repr(h) for h in logger.handlers], logger.level, logger.disabled


def state():
    ours = [n for n in logging.root.manager.loggerDict if n.partition(".")[0] in own]
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "open files": open_descriptors(),
        "root logger": handlers(logging.root),
        "own loggers that are configured": [
            n for n in ours if handlers(logging.getLogger(n)) != ([], logging.NOTSET, False)
        ],
        "logger class": repr(logging.getLoggerClass()),
        "warning filters": len(warnings.filters),
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "sys.path": list(sys.path),
        "signals": [repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)],
        "loop policy": type(asyncio.get_event_loop_policy()).__name__,
        "hooks": [repr(h) for h in (sys.excepthook, threading.excepthook, sys.displayhook)],
        "garbage collection": [gc.isenabled(), gc.get_threshold()],
    }


acts = []
watching = False
WATCHED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.mkdir", "os.remove",
           "os.rename", "signal.", "shutil.", "tempfile.", "sqlite3.", "urllib.")


def watch(event, args):
    if not watching:
        return
    if event.startswith(WATCHED):
        acts.append(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        if not str(args[0]).rpartition(".pyc")[1]:  # the interpreter caches what it compiled
            acts.append(f"open {args[0]} {args[1]}")


import_those_of_others()
sys.addaudithook(watch)
report = {}
for name in names:
    before = state()
    acts.clear()
    watching = True
    importlib.import_module(name)
    watching = False
    after = state()
    changed = {what: after[what] for what in after if after[what] != before[what]}
    if acts:
        changed["acts"] = list(acts)
    if changed:
        report[name] = changed
json.dump(report, sys.__stdout__)
"""


def modules() -> list[str]:
    """Return every module of the product by its dotted name, generated code left out."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if "pb" not in parts:
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def probe(names: list[str], folder: Path) -> dict[str, Any]:  # Any: whatever state differs
    ran = subprocess.run(
        [sys.executable, "-B", "-c", PROBE, *names],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    report: dict[str, Any] = json.loads(ran.stdout)  # Any: see above
    return report


def test_importing_any_module_has_no_effect() -> None:
    names = modules()
    assert {"engines.ort", "router.policy", "gateway.__main__"} <= set(names)
    assert probe(names, ROOT) == {}


EFFECTS: Final = {
    "threads": "import threading\nt = threading.Timer(9, print)\nt.daemon = True\nt.start()",
    "open files": "import os\nkept = os.open(os.devnull, os.O_RDONLY)",
    "acts": "import socket\nkept = socket.socket()",
    "root logger": "import logging\nlogging.basicConfig()",
    "own loggers that are configured": "import logging\nlogging.getLogger('culprit').setLevel(10)",
    "environment": "import os\nos.environ['CULPRIT'] = '1'",
    "warning filters": "import warnings\nwarnings.simplefilter('ignore')",
}


def test_the_probe_sees_each_kind_of_effect(tmp_path: Path) -> None:
    for number, code in enumerate(EFFECTS.values()):
        (tmp_path / f"culprit{number}.py").write_text(code)
    (tmp_path / "culprit.py").write_text("import json\n")
    names = ["culprit", *(f"culprit{number}" for number in range(len(EFFECTS)))]
    report = probe(names, tmp_path)
    assert sorted(report) == sorted(names[1:])
    for number, what in enumerate(EFFECTS):
        assert what in report[f"culprit{number}"], what
