"""Plans as files: what a cached one depends on, the sidecar beside one, and a look without a GPU.

Knows files and bytes; needs no TensorRT. A plan runs on the TensorRT that built it and on the GPU
that it was built for, and nothing in a plan says for whom: the sidecar (``model.plan.json``) does.
A plan is code: it is only ever loaded from where the operator put it, or from a folder of ours.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engines.artifacts import sha256_of
from engines.base import TensorSpec
from engines.errors import ModelLoadError
from engines.tensors import DATATYPES
from engines.trt.api import KINDS
from engines.trt.profiles import Profile, Range

FORMAT: Final = "sluice-plan-1"
SUFFIX: Final = ".json"
"""Of a sidecar, after the plan's whole name."""
HEADER_BYTES: Final = 28
"""Tag, layout, size and version. Source: `trtexec --getPlanVersionOnly`, and TensorRT-RTX 1.7."""
_TAG: Final = slice(0, 4)
_LAYOUT: Final = slice(4, 8)
_SIZE: Final = slice(16, 24)
_VERSION: Final = slice(24, 28)
Json = Mapping[str, Any]  # Any: JSON
_COMPARED: Final = 3
"""Numbers of a version that have to agree."""

# What a file of ours says its weights are kept in, and where a file keeps them beside it.
_PRECISION: Final = b"sluice.precision"
_LOCATION: Final = b"location"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What is written beside a plan when it is built."""

    flavour: str
    """tensorrt or tensorrt_rtx."""
    version: str
    model_sha256: str
    plan_sha256: str
    built_at: str
    """ISO 8601, as the caller says."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    options: Json
    """How it was built, and for which hardware."""

    def to_json(self) -> str:
        """Return the text of the file."""
        document = {
            "format": FORMAT,
            "flavour": self.flavour,
            "version": self.version,
            "model_sha256": self.model_sha256,
            "plan_sha256": self.plan_sha256,
            "built_at": self.built_at,
            "inputs": [_spec_json(spec) for spec in self.inputs],
            "outputs": [_spec_json(spec) for spec in self.outputs],
            "profiles": [profile_json(profile) for profile in self.profiles],
            "options": dict(self.options),
        }
        return json.dumps(document, indent=1) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the first bytes of a plan say."""

    flavour: str
    """Empty: these are no plan's."""
    version: str
    """Empty: they do not say it in a way that is known."""
    size_bytes: int | None
    """Of the whole plan; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """What can be told of a plan file without a GPU."""

    header: Header
    sidecar: Sidecar | None
    size_bytes: int
    sha256: str


def sidecar_path(plan: Path) -> Path:
    """Return where the sidecar of a plan is, if it has one."""
    return plan.with_name(plan.name + SUFFIX)


def read_sidecar(plan: Path) -> Sidecar | None:
    """Return the sidecar of a plan; None: it has none.

    Raises:
        ModelLoadError: what is there cannot be read or understood.
    """
    path = sidecar_path(plan)
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ModelLoadError(f"{path.name} cannot be read: {exc}") from exc
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None  # somebody else's, or the key of a plan that was cached a moment ago
    try:
        return Sidecar(
            **{
                name: str(document[name])
                for name in ("flavour", "version", "model_sha256", "plan_sha256", "built_at")
            },
            inputs=tuple(map(_spec_of, document["inputs"])),
            outputs=tuple(map(_spec_of, document["outputs"])),
            profiles=tuple(map(profile_of, document["profiles"])),
            options=dict(document["options"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ModelLoadError(f"{path.name} does not describe a plan: {exc!r}") from exc


def header_of(start: bytes) -> Header:
    """Read the first bytes of a plan."""
    found = next((kind for kind in KINDS.values() if start[_TAG] == kind.tag), None)
    if found is None:
        return Header(flavour="", version="", size_bytes=None)
    if len(start) < HEADER_BYTES or any(start[_LAYOUT]):
        return Header(flavour=found.name, version="", size_bytes=None)
    size_bytes = int.from_bytes(start[_SIZE], "little") if found.is_rtx else None
    version = ".".join(str(number) for number in start[_VERSION])
    return Header(flavour=found.name, version=version, size_bytes=size_bytes)


def inspect(plan: Path) -> PlanFacts:
    """Return what can be told of a plan file without a GPU and without TensorRT.

    Raises:
        ModelLoadError: the file cannot be read, or its sidecar cannot be understood.
    """
    try:
        with plan.open("rb") as opened:
            start = opened.read(HEADER_BYTES)
        size_bytes, sha256 = plan.stat().st_size, sha256_of(plan)
    except OSError as exc:
        raise ModelLoadError(f"{plan.name} cannot be read: {exc.strerror}") from exc
    return PlanFacts(
        header=header_of(start), sidecar=read_sidecar(plan), size_bytes=size_bytes, sha256=sha256
    )


def fault(name: str, facts: PlanFacts, flavour: str, version: str) -> str:
    """Return why a plan cannot be loaded by a TensorRT of that flavour and version; empty: it may.

    Args:
        name: of the file, to begin the sentence.
    """
    header, sidecar = facts.header, facts.sidecar
    title = KINDS[flavour].title
    if not header.flavour:
        return f"{name} is no plan: it begins with none of the tags of TensorRT's plans"
    if header.flavour != flavour:
        return f"{name} is a plan of {KINDS[header.flavour].title}, and is to be run by {title}"
    if header.size_bytes not in (None, facts.size_bytes):
        return f"{name} is damaged: it has {facts.size_bytes} of {header.size_bytes} bytes"
    if sidecar is not None and sidecar.plan_sha256 != facts.sha256:
        return f"{name} is damaged or was replaced: it is not the plan that its sidecar describes"
    built_by = header.version or (sidecar.version if sidecar else "")
    if built_by and _compared(built_by) != _compared(version):
        return (
            f"{name} was built by {title} {built_by}, and this is {title} {version}: "
            f"a plan runs on the version that built it; build it again"
        )
    return ""


def model_sha256(model: Path) -> str:
    """Return the digest of an ONNX file and of the files that hold its weights, if others do."""
    own = sha256_of(model)
    names = external_files(model)
    if not names:
        return own
    digest = hashlib.sha256(own.encode())
    for name in names:
        digest.update(f"{name}\0{sha256_of(model.parent / name)}\n".encode())
    return digest.hexdigest()


def external_files(model: Path) -> list[str]:
    """Return the names of the files beside an ONNX file that hold its weights.

    A name that only looks like one is of no file.
    """
    named = set(_values(model, _LOCATION))
    return sorted(n for n in named if "\0" not in n and (model.parent / n).is_file())


def precision_of(model: Path) -> str:
    """Return what the weights of an ONNX file are kept in, if the file says so: FP16, INT8 QDQ."""
    return next((found for found in _values(model, _PRECISION) if found.isprintable()), "")


def profile_json(profile: Profile) -> dict[str, dict[str, list[int]]]:
    """Return a profile as it stands in sidecars and in keys."""
    return {
        name: {"min": list(of.least), "best": list(of.best), "max": list(of.most)}
        for name, of in profile.items()
    }


def _values(model: Path, key: bytes) -> list[str]:
    """Return the values of all of an ONNX file's string entries of that key, found by their bytes.

    An entry (StringStringEntryProto) is its key and its value, each after its tag and its length.
    """
    if not model.stat().st_size:
        return []
    head = re.escape(b"\x0a" + bytes([len(key)]) + key + b"\x12")
    entry = re.compile(head + rb"([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")
    values = []
    with model.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for found in entry.finditer(data):
            length = sum((byte & 0x7F) << (7 * at) for at, byte in enumerate(found[1]))
            values.append(data[found.end() : found.end() + length].decode("utf-8", "replace"))
    return values


def _compared(version: str) -> Sequence[str]:
    return version.split(".")[:_COMPARED]


def _spec_json(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _spec_of(document: Json) -> TensorSpec:
    if document["datatype"] not in DATATYPES:
        raise ValueError(f"{document['datatype']} is no datatype")
    return TensorSpec(
        name=str(document["name"]),
        datatype=document["datatype"],
        shape=tuple(int(size) for size in document["shape"]),
    )


def profile_of(document: Json) -> Profile:
    """Return the profile that `profile_json` wrote."""
    return {
        name: Range(*(tuple(int(size) for size in of[end]) for end in ("min", "best", "max")))
        for name, of in document.items()
    }
