"""`make bench-tools`: installs the load generators that come as packages; names those missing.

perf_analyzer (tritonclient's wheel, see perf_analyzer_binary.py) and @grpc/grpc-js (npm, from the
committed package-lock.json into .bench/node). wrk and h2load come from the system's packages. What
cannot be installed is no failure: its cases are reported as not measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Final

from loadtests import perf_analyzer_binary
from loadtests.bench.generators import GRPC_JS, NODE_FOLDER
from loadtests.perf_analyzer_binary import NotAvailable

_SYSTEM: Final = {"wrk": "wrk", "h2load": "nghttp2-client", "node": "nodejs"}
"""Program -> Debian's package."""
_LIMIT_S: Final = 300.0
_MANIFESTS: Final = ("package.json", "package-lock.json")


def main() -> int:
    """Install what is missing; return 0."""
    for program, package in _SYSTEM.items():
        if shutil.which(program) is None:
            print(f"{program} is not on PATH (Debian: {package}): its cases are left out")
    try:
        perf_analyzer_binary.prepare()
    except NotAvailable as exc:
        print(f"perf_analyzer: {exc}: its cases are left out")
    fault = install_grpc_js()
    if fault is not None:
        print(f"grpc-js: {fault}: its cases are left out")
    return 0


def install_grpc_js() -> str | None:
    """Install grpc-js where it is not there as committed; return why that is not possible."""
    if shutil.which("npm") is None:
        return "npm is not on PATH"
    wanted = [(GRPC_JS.parent / name).read_bytes() for name in _MANIFESTS]
    NODE_FOLDER.mkdir(parents=True, exist_ok=True)
    have = [NODE_FOLDER / name for name in _MANIFESTS]
    is_there = (NODE_FOLDER / "node_modules" / "@grpc" / "grpc-js").is_dir()
    if is_there and [path.read_bytes() for path in have if path.exists()] == wanted:
        return None
    for path, content in zip(have, wanted, strict=True):
        path.write_bytes(content)
    command = ["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    try:
        done = subprocess.run(
            command,
            cwd=NODE_FOLDER,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"npm was not done after {_LIMIT_S:.0f} s"
    return None if done.returncode == 0 else f"npm ci failed: {done.stderr.strip()}"


if __name__ == "__main__":
    sys.exit(main())
