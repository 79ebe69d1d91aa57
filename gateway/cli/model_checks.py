"""What `sluice check` says of the models: what cannot be served, and what a user may not expect.

Reads every config.pbtxt and asks which files, packages and devices are there. No model is loaded,
so a file that is broken inside, or does not fit its declaration, is not found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from engines import devices, registry
from engines.errors import ModelLoadError
from engines.folders import model_names, version_names
from gateway.config import Config
from gateway.model_config import ModelConfigs
from gateway.model_config.placement import AUTO, CPU
from gateway.model_config.read import FILENAME, ConfiguredSpec

_FIRST_GPU: Final = "cuda:0"
_DEVICE_AT: Final = "$.models.device"


@dataclass(slots=True)
class Findings:
    """Lines for people; each begins with the file that it is about."""

    faults: list[str] = field(default_factory=list)
    """What cannot be served as it is configured, on this machine."""
    notes: list[str] = field(default_factory=list)


def look_through(config: Config, path: Path, root: Path) -> Findings:
    """Check every model of a repository.

    Args:
        config: checked.
        path: of the configuration file.
        root: the repository's folder.
    """
    # The cores only decide on threads, which are not looked at here.
    configs = ModelConfigs(settings=config.models, usable_cores=1, base=path.parent)
    found = Findings()
    by_default: dict[str, list[str]] = {}
    """Device of the settings -> the models that take it."""
    for name in sorted(model_names(root)):
        try:
            spec = configs.look(root / name)
        except ModelLoadError as exc:
            found.faults.append(_with_folder(root, name, str(exc)))
            continue
        file = _file(spec)
        found.faults += [f"{file}: {fault}" for fault in _faults(spec)]
        if spec.ignored:
            found.notes.append(f"{file}: note: nothing looks at {', '.join(spec.ignored)}")
        for device, asked_by in spec.asked_by.items():
            if not asked_by:
                by_default.setdefault(device, []).append(name)
    _check_default(found, path, by_default)
    return found


def _faults(spec: ConfiguredSpec) -> Iterator[str]:
    """Yield what is wrong with one model alone, after the fields at fault."""
    if why := _no_file(spec):
        yield why
    if why := registry.missing(spec.backend, spec.engine.device):
        yield f"backend: {why}"
    for device, asked_by in spec.asked_by.items():
        if why := devices.why_not(device):
            if asked_by:
                yield f"{asked_by}: {_asked_for(device, why)}"
        elif device not in (CPU, AUTO):
            engine = replace(spec.engine, device=device)
            if why := registry.lacking(spec.backend, engine):
                yield f"{asked_by or 'backend'}: {why}"


def _no_file(spec: ConfiguredSpec) -> str:
    """Say which versions have no model file, of those that would be served; or nothing."""
    versions = spec.versions.select(version_names(spec.directory))
    if not versions:
        return "no version folder is selected"
    lacking = [v for v in versions if not (spec.directory / v / spec.filename).exists()]
    return f"there is no {', '.join(f'{v}/{spec.filename}' for v in lacking)}" if lacking else ""


def _check_default(found: Findings, path: Path, models: dict[str, list[str]]) -> None:
    """Say once what is wrong with the device of the settings."""
    for device, names in models.items():
        if device == AUTO:
            if why := devices.why_not(_FIRST_GPU):
                sentence = f"{AUTO} means the CPU here, for {', '.join(names)}: {why}"
                found.notes.append(f"{path}: note: {_DEVICE_AT}: {sentence}")
        elif why := devices.why_not(device):
            found.faults.append(f"{path}: {_DEVICE_AT}: {_asked_for(device, why)}")


def _asked_for(device: str, why: str) -> str:
    return f"{device} was asked for: {why.removeprefix(f'{device}: ')}"


def _file(spec: ConfiguredSpec) -> Path:
    """Return the model's configuration, or its folder where it has none."""
    return spec.directory / FILENAME if spec.source else spec.directory


def _with_folder(root: Path, name: str, sentence: str) -> str:
    """Return a sentence of `read_spec` with the path that it begins with, or should begin with."""
    return f"{root}/{sentence}" if sentence.startswith(f"{name}/") else f"{root / name}: {sentence}"
