"""What the Python bindings of TensorRT 10 and 11 have, found without their libraries.

The libraries of TensorRT are not on the package index, the bindings are: a wheel with one extension
module, which needs a handful of C functions of three libraries. With libraries that have functions
of those names it imports, and its classes can be looked at; nothing in them can be called.

The wheels are fetched once into .bench/tensorrt-bindings, by pip, and looked at in a process of
their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
FOLDER: Final = ROOT / ".bench" / "tensorrt-bindings"
PACKAGE: Final = "tensorrt-cu13-bindings"
VERSIONS: Final = ("10.16.1.11", "11.4.0.106")
_NEEDED: Final = re.compile(r"\[(libnv[a-z_]+\.so\.\d+)\]")
_SYMBOL: Final = re.compile(r"^\s+U ((?:create|get|init)[A-Z]\w+)$", re.MULTILINE)
_PROBE: Final = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import tensorrt_bindings as found
classes = {name: dir(getattr(found, name)) for name in dir(found) if name[0].isupper()}
json.dump({"": dir(found), "__version__": [found.__version__], **classes}, sys.stdout)
"""


class Missing(Exception):
    """The bindings cannot be had here; the sentence says why."""


def attributes(version: str) -> dict[str, list[str]]:
    """Return what each class has, by its name; the module's own names under an empty one.

    Raises:
        Missing: there is no package index, no compiler, or no wheel for this interpreter.
    """
    place = FOLDER / version
    if not (place / "ready").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        _fetch(version, place)
        _make_libraries(place)
        (place / "ready").touch()
    environment = dict(os.environ, LD_LIBRARY_PATH=str(place / "libraries"))
    ran = subprocess.run(
        [sys.executable, "-B", "-c", _PROBE, str(place)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"the bindings of {version} do not import: {ran.stderr[-500:]}")
    found: dict[str, list[str]] = json.loads(ran.stdout)
    return found


def _fetch(version: str, place: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(place), f"{PACKAGE}=={version}"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    except subprocess.TimeoutExpired:
        raise Missing(f"{PACKAGE} {version} does not come within 50 s") from None
    wheels = list(place.glob("*.whl"))
    if ran.returncode or not wheels:
        reason = (ran.stderr.strip().splitlines() or ["pip does not say why"])[-1]
        raise Missing(f"{PACKAGE} {version} cannot be downloaded: {reason}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(place)


def _make_libraries(place: Path) -> None:
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise Missing(f"there is no {tool} to make TensorRT's libraries stand-ins with")
    module = next(place.glob("tensorrt_bindings/tensorrt*.so"))
    symbols = _SYMBOL.findall(_said("nm", "-D", "--undefined-only", str(module)))
    needed = _NEEDED.findall(_said("readelf", "-d", str(module)))
    if not symbols or len(needed) != 3:
        raise RuntimeError(f"{module.name} needs {needed} for {symbols}: not as expected")
    folder = place / "libraries"
    folder.mkdir()
    source = folder / "functions.c"
    functions = (f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols)
    source.write_text("".join(functions))
    for library in needed:
        made = ("-o", str(folder / library), f"-Wl,-soname,{library}")
        _said("gcc", "-shared", "-fPIC", *made, str(source))


def _said(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return ran.stdout
