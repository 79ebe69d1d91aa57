"""A model folder and its optional config.pbtxt, made into a ModelSpec.

Knows the folder's layout, the text format and which backend a file means; the parts of the spec
come from tensors.py, batching.py and placement.py. Blocking: called on the repository's loader
threads. Holds no state: the spec carries the message that it was made of, so that a version that
outlives a reload is still described by its own configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from google.protobuf import text_format

from engines.base import EngineConfig, ModelSpec, VersionPolicy
from engines.errors import ModelLoadError
from engines.folders import version_names
from gateway.config import ModelsConfig
from gateway.model_config import batching, placement
from gateway.model_config.fields import FieldError, refuse_unsupported, unknown_fields
from gateway.model_config.tensors import declared_tensors
from gateway.pb import model_config_pb2 as pb

logger = logging.getLogger(__name__)

FILENAME: Final = "config.pbtxt"


class Backend(NamedTuple):
    """One engine as a config.pbtxt names it."""

    platform: str
    filename: str
    """Of a model, unless the configuration gives another."""


BACKENDS: Final[Mapping[str, Backend]] = {
    "onnxruntime": Backend("onnxruntime_onnx", "model.onnx"),
    "fake": Backend("fake", "model.json"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredSpec(ModelSpec):
    """A ModelSpec and the configuration that it was made of, for `describe`."""

    source: bytes
    """The file's ModelConfig, serialized; empty where there was no file."""


def read_spec(directory: Path, settings: ModelsConfig, *, usable_cores: int) -> ConfiguredSpec:
    """Read a model folder's configuration; without a config.pbtxt, the defaults.

    What the file sets and Sluice does not do is named in one warning.

    Raises:
        ModelLoadError: the file cannot be read or served; the sentence names file and field.
    """
    try:
        config = _parse(directory)
        refuse_unsupported(config)
        spec = _spec(directory, config, settings, usable_cores=usable_cores)
        _report(config, spec)
    except FieldError as exc:
        raise ModelLoadError(f"{directory.name}/{FILENAME}: {exc}") from None
    except OSError as exc:
        raise ModelLoadError(f"{directory.name} cannot be read: {exc.strerror}") from exc
    return spec


def _parse(directory: Path) -> pb.ModelConfig:
    config = pb.ModelConfig()
    try:
        text = (directory / FILENAME).read_text(encoding="utf-8")
        text_format.Parse(text, config)
    except FileNotFoundError:
        return config
    except UnicodeDecodeError as exc:
        sentence = f"{FILENAME} is not UTF-8 text at byte {exc.start}"
        raise ModelLoadError(f"{directory.name}/{sentence}") from None
    except text_format.ParseError as exc:
        raise ModelLoadError(f"{directory.name}/{FILENAME}, {_where(exc)}") from None
    return config


def _where(exc: text_format.ParseError) -> str:
    """Return a parse error as line, column and sentence; protobuf's text has them in front."""
    line, column = exc.GetLine(), exc.GetColumn()
    sentence = str(exc).removeprefix(f"{line}:{column} : ")
    return f"line {line}, column {column}: {sentence}"


def _spec(
    directory: Path, config: pb.ModelConfig, settings: ModelsConfig, *, usable_cores: int
) -> ConfiguredSpec:
    if config.name not in ("", directory.name):
        raise FieldError("name", f"{config.name!r} is not the folder's name, {directory.name!r}")
    backend, filename = _backend(directory, config)
    maximum = batching.max_batch_size(config)
    has_batch_axis = maximum != 0
    inputs = declared_tensors("input", config.input, has_batch_axis=has_batch_axis)
    outputs = declared_tensors("output", config.output, has_batch_axis=has_batch_axis)
    device = placement.device_of(config)
    engine = EngineConfig(
        max_batch_size=maximum,
        default_max_batch_size=settings.default_max_batch_size,
        device=device,
        providers=placement.providers(config, device),
        intra_op_threads=placement.intra_op_threads(
            config, default=settings.intra_op_threads, usable_cores=usable_cores
        ),
        inter_op_threads=placement.inter_op_threads(config),
        inputs=inputs,
        outputs=outputs,
        parameters=placement.parameters(config),
    )
    return ConfiguredSpec(
        name=directory.name,
        directory=directory,
        backend=backend,
        filename=filename,
        instances=placement.instances(config),
        engine=engine,
        batching=batching.batch_policy(config, settings),
        versions=_version_policy(config),
        warmup_batch_sizes=batching.warmup_batch_sizes(config, settings, inputs),
        max_queue_rows=max(settings.max_queue_rows, settings.default_max_batch_size),
        source=config.SerializeToString(deterministic=True),
    )


def _backend(directory: Path, config: pb.ModelConfig) -> tuple[str, str]:
    """Return the backend and the file name inside each version's folder.

    The backend is the one that `backend` names, else the one whose `platform` is given, else the
    one that the file's name, given or found in a version folder, speaks for.
    """
    name = config.backend or _backend_of_platform(config) or _backend_of_files(directory, config)
    if name not in BACKENDS:
        raise FieldError("backend", f"{name!r} is not one of {', '.join(sorted(BACKENDS))}")
    backend = BACKENDS[name]
    if config.platform not in ("", backend.platform):
        sentence = f"{config.platform!r} is not {backend.platform!r}, that of backend {name!r}"
        raise FieldError("platform", sentence)
    filename = config.default_model_filename or backend.filename
    path = PurePosixPath(filename)
    if path.is_absolute() or ".." in path.parts:
        raise FieldError("default_model_filename", f"{filename!r} leaves the version's folder")
    return name, filename


def _backend_of_platform(config: pb.ModelConfig) -> str:
    if not config.platform:
        return ""
    for name, backend in BACKENDS.items():
        if backend.platform == config.platform:
            return name
    known = ", ".join(sorted(backend.platform for backend in BACKENDS.values()))
    raise FieldError("platform", f"{config.platform!r} is not one of {known}")


def _backend_of_files(directory: Path, config: pb.ModelConfig) -> str:
    given = config.default_model_filename
    versions = version_names(directory)
    for name, backend in BACKENDS.items():
        if given:
            is_found = PurePosixPath(given).suffix == PurePosixPath(backend.filename).suffix
        else:
            is_found = any((directory / v / backend.filename).exists() for v in versions)
        if is_found:
            return name
    if given:
        sentence = f"{given!r} speaks for no backend: name one in the field backend"
        raise FieldError("default_model_filename", sentence)
    known = " or ".join(backend.filename for backend in BACKENDS.values())
    raise ModelLoadError(f"no version folder of {directory.name} holds a {known}")


def _version_policy(config: pb.ModelConfig) -> VersionPolicy:
    """Return which versions are served; nothing said: all on disk."""
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "latest":
        return VersionPolicy(latest=policy.latest.num_versions or 1)
    if choice != "specific":
        return VersionPolicy()
    versions = list(policy.specific.versions)
    if not versions:
        raise FieldError("version_policy.specific.versions", "names no version")
    if min(versions) < 1:
        sentence = f"{min(versions)} is no version, which are numbers from 1"
        raise FieldError("version_policy.specific.versions", sentence)
    return VersionPolicy(specific=tuple(str(version) for version in versions))


def _report(config: pb.ModelConfig, spec: ModelSpec) -> None:
    """Log what of the configuration has no effect, and what a user may not expect of it."""
    ignored = (
        unknown_fields(config)
        | batching.without_effect(config, spec.engine.inputs)
        | placement.without_effect(config, spec.engine.device)
    )
    if ignored:
        fields = sorted(ignored)
        logger.warning("config.pbtxt fields ignored", extra={"model": spec.name, "fields": fields})
    missing = sorted(set(spec.versions.specific) - set(version_names(spec.directory)), key=int)
    if missing:
        logger.warning(
            "config.pbtxt names versions that are not on disk",
            extra={"model": spec.name, "versions": missing},
        )
    if config.max_batch_size and not config.HasField("dynamic_batching"):
        logger.info(
            "dynamic batching is off",
            extra={"model": spec.name, "max_batch_size": config.max_batch_size},
        )
