"""The lines to copy when the demo is up, and the client script that it leaves behind.

Every command works as pasted in the folder where the demo was started, whether or not its virtual
environment is active.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gateway.demo.ask import KEY_HEADER, PATH, request_json
from gateway.demo.gateway_process import Addresses, url
from gateway.demo.screen import shown

SCRIPT_NAME: Final = "classify.py"
_SCRIPT: Final = '''\
"""Classifies the demo's ten held-out pictures with Triton's own Python client, in one request.

Written by `sluice demo`. Needs tritonclient[http]. Arguments: USER, default user-1.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

ADDRESS = "@ADDRESS@"

user = sys.argv[1] if len(sys.argv) > 1 else "user-1"
pictures = json.loads(Path(__file__).with_name("digits.json").read_text())["pictures"]
pixels = np.array([picture["pixels"] for picture in pictures], dtype=np.float32)

image = triton.InferInput("image", list(pixels.shape), "FP32")
image.set_data_from_numpy(pixels)
with triton.InferenceServerClient(ADDRESS) as client:
    result = client.infer("digits", [image], headers={"@KEY_HEADER@": user})

print(f"{user} is answered by version {result.get_response()['model_version']}")
labels = result.as_numpy("label")[:, 0]
for picture, label, row in zip(pictures, labels, result.as_numpy("probabilities")):
    print(f"  a picture of a {picture['digit']}: answer {label} ({row[label]:.1%})")
'''


def write_script(directory: Path, addresses: Addresses) -> Path:
    """Write the client script into the demo's folder; return its path."""
    address = url(addresses.http).removeprefix("http://")
    path = directory / SCRIPT_NAME
    path.write_text(_SCRIPT.replace("@ADDRESS@", address).replace("@KEY_HEADER@", KEY_HEADER))
    return path


def lines(directory: Path, addresses: Addresses, pixels: Sequence[int], user: str) -> list[str]:
    """Return what to copy: a comment and a command each."""
    config = _quoted(directory / "sluice.toml")
    client = directory / "client"
    python = _quoted(Path(sys.executable))
    triton = (
        f"{python} -m venv {_quoted(client)} && "
        f"{_quoted(client / 'bin' / 'pip')} install -q 'tritonclient[http]' && "
        f"{_quoted(client / 'bin' / 'python')} {_quoted(directory / SCRIPT_NAME)}"
    )
    weights = (
        f"{sluice()} route set-weight digits canary=20 --take-from stable "
        f"--reason 'it does well' --config {config}"
    )
    commands = [
        ("the same prediction with curl", curl(addresses.http, pixels, user)),
        ("ten pictures with Triton's Python client, in an environment of its own", triton),
        (
            "prediction records, those so far and then as they come",
            f"{sluice()} log tail --config {config} --from-start",
        ),
        (
            "give the canary 20 % of the users, and see it",
            f"{weights} && {sluice()} route get digits --config {config}",
        ),
        ("check a configuration that you changed", f"{sluice()} check --config {config}"),
        ("metrics", f"curl {_no_proxy(addresses.metrics[0])}{url(addresses.metrics)}/metrics"),
    ]
    if Path("Makefile").is_file() and Path("loadtests").is_dir():
        commands.append(("a minute of load over HTTP and gRPC", "make load"))
    return [line for what, command in commands for line in (f"# {what}", command, "")]


def curl(address: tuple[str, int], pixels: Sequence[int], user: str) -> str:
    """Return a command that sends one picture and shows the headers of the answer."""
    return (
        f"curl -i -w '\\n' {_no_proxy(address[0])}{url(address)}{PATH} "
        f"-H '{KEY_HEADER}: {user}' -d '{request_json(pixels)}'"
    )


def sluice() -> str:
    """Return how the `sluice` command of this very interpreter is called from here."""
    script = Path(sys.executable).with_name("sluice")
    if not script.is_file():
        return f"{_quoted(Path(sys.executable))} -m gateway"
    found = shutil.which("sluice")
    if found is not None and Path(found) == script:
        return "sluice"
    return _quoted(script)


def _quoted(path: Path) -> str:
    return shlex.quote(shown(path))


def _no_proxy(host: str) -> str:
    """Return curl's option against a proxy that the environment would send this host through."""
    is_direct = "http" not in urllib.request.getproxies() or urllib.request.proxy_bypass(host)
    return "" if is_direct else "--noproxy '*' "
