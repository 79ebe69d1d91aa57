"""Tries one package, and writes what it found as one line of JSON: run as a script, not imported.

A process of its own, because importing a runtime takes memory, time and a GPU context, and may end
the process. Knows the packages' own interfaces and the standard library; must import nothing of
ours. Whatever a package prints goes to the standard error.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Final

# y = x + x in ONNX (IR 8, opset 13), made with onnx.helper.
_DOUBLE: Final = base64.b64decode(
    "CAg6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
)
_TRIED_PROVIDERS: Final = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
_PLAIN: Final = "CPUExecutionProvider"


def onnxruntime() -> dict[str, object]:
    """Make a session with every provider that we use, and compute something in it."""
    ort = importlib.import_module("onnxruntime")
    numpy = importlib.import_module("numpy")
    if getattr(ort, "cuda_version", "") and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries that pip installed
    available = ort.get_available_providers()
    works, faults = [], []
    for provider in (*_TRIED_PROVIDERS, _PLAIN):
        if provider not in available:
            continue
        try:
            session = ort.InferenceSession(_DOUBLE, providers=[provider])
            (found,) = session.run(["y"], {"x": numpy.array([1.5], numpy.float32)})
        except Exception as exc:  # runtimes raise what they like
            faults.append(f"{provider}: {exc}")
            continue
        # A provider that cannot be loaded is left out of the session without an error.
        if provider in session.get_providers() and found.tolist() == [3.0]:
            works.append(provider)
    return {
        "version": ort.__version__,
        "built_for_cuda": getattr(ort, "cuda_version", "") or "",
        "available": available,
        "works": works,
        "faults": faults,
    }


def torch() -> dict[str, object]:
    """Compute something on the CPU, and on the GPU of a build that has one."""
    torch = importlib.import_module("torch")
    works, faults = [], []
    for device in ("cpu", "cuda") if torch.version.cuda else ("cpu",):
        try:
            if (torch.ones(2, device=device) * 1.5).sum().item() == 3.0:
                works.append(device)
        except Exception as exc:  # runtimes raise what they like
            faults.append(f"{device}: {exc}")
    return {
        "version": torch.__version__,
        "built_for_cuda": torch.version.cuda or "",
        "works": works,
        "faults": faults,
    }


def tensorrt() -> dict[str, object]:
    """Import TensorRT: that loads its libraries."""
    return {"version": importlib.import_module("tensorrt").__version__}


def tensorrt_rtx() -> dict[str, object]:
    """Import TensorRT-RTX: that loads its libraries."""
    return {"version": importlib.import_module("tensorrt_rtx").__version__}


def cuda_bindings() -> dict[str, object]:
    """Import the bindings of the CUDA runtime."""
    importlib.import_module("cuda.bindings.runtime")
    return {"version": importlib.import_module("cuda.bindings").__version__}


PROBES: Final[Mapping[str, Callable[[], dict[str, object]]]] = {
    probe.__name__: probe for probe in (onnxruntime, torch, tensorrt, tensorrt_rtx, cuda_bindings)
}


def main(name: str) -> int:
    """Run one probe."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = PROBES[name]()
    except Exception as exc:  # an import may raise anything; the sentence is what we are here for
        found = {"fault": f"{type(exc).__name__}: {exc}"}
    sys.stdout.write(f"\n{json.dumps(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
