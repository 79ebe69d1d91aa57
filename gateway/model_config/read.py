"""A model folder and its optional config.pbtxt, made into a ModelSpec.

Knows the folder's layout and the text format; the parts of the spec come from backends.py,
tensors.py, batching.py, placement.py, accelerators.py and parameters.py. Blocking: called on the
repository's loader threads. Holds no state: the spec carries the message that it was made of, so
that a version that outlives a reload is still described by its own configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import text_format

from engines.base import EngineConfig, ModelSpec, VersionPolicy
from engines.errors import ModelLoadError
from engines.folders import version_names
from gateway.config import ModelsConfig
from gateway.model_config import batching, parameters
from gateway.model_config.accelerators import ACCELERATORS_AT, providers
from gateway.model_config.backends import backend_of
from gateway.model_config.fields import FieldError, refuse_unsupported, unknown_fields
from gateway.model_config.placement import Placement, place
from gateway.model_config.tensors import declared_tensors
from gateway.pb import model_config_pb2 as pb

logger = logging.getLogger(__name__)

FILENAME: Final = "config.pbtxt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a model's configuration is read with."""

    settings: ModelsConfig
    usable_cores: int
    base: Path = Path()
    """Folder that the settings' paths are relative to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredSpec(ModelSpec):
    """A ModelSpec and the configuration that it was made of, for `describe`."""

    source: bytes
    """The file's ModelConfig, serialized; empty where there was no file."""
    asked_by: Mapping[str, str]
    """Device -> the field that asks for it; empty: [models] device of the settings."""
    ignored: tuple[str, ...]
    """What the file sets and nothing looks at, by the fields' paths."""


def read_spec(directory: Path, surroundings: Surroundings) -> ConfiguredSpec:
    """Read a model folder's configuration; without a config.pbtxt, the defaults.

    Raises:
        ModelLoadError: the file cannot be read or served; the sentence names file and field.
    """
    try:
        config = _parse(directory)
        refuse_unsupported(config)
        return _spec(directory, config, surroundings)
    except FieldError as exc:
        raise ModelLoadError(f"{directory.name}/{FILENAME}: {exc}") from None
    except OSError as exc:
        raise ModelLoadError(f"{directory.name} cannot be read: {exc.strerror}") from exc


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


def _spec(directory: Path, config: pb.ModelConfig, surroundings: Surroundings) -> ConfiguredSpec:
    if config.name not in ("", directory.name):
        raise FieldError("name", f"{config.name!r} is not the folder's name, {directory.name!r}")
    settings = surroundings.settings
    backend, filename = backend_of(directory, config)
    placement = place(config, backend, settings.device)
    engine = _engine(config, surroundings, backend, placement)
    is_on_one_device = len(set(placement.devices)) == 1
    return ConfiguredSpec(
        name=directory.name,
        directory=directory,
        backend=backend,
        filename=filename,
        instances=len(placement.devices),
        devices=() if is_on_one_device else placement.devices,
        engine=engine,
        batching=batching.batch_policy(config, settings),
        versions=_version_policy(config),
        warmup_batch_sizes=batching.warmup_batch_sizes(config, settings, engine.inputs),
        max_queue_rows=max(settings.max_queue_rows, engine.default_max_batch_size),
        source=config.SerializeToString(deterministic=True),
        asked_by=placement.asked_by,
        ignored=tuple(sorted(_ignored(config, backend, engine, placement))),
    )


def _engine(
    config: pb.ModelConfig, surroundings: Surroundings, backend: str, placement: Placement
) -> EngineConfig:
    """Return how an instance is to be loaded, on the device of the first of them."""
    settings, base = surroundings.settings, surroundings.base
    maximum = batching.max_batch_size(config)
    has_graphs = config.optimization.cuda.graphs and not placement.is_cpu
    accelerators = providers(config, backend, settings.libraries)
    parameters.check_strict(config)
    return EngineConfig(
        max_batch_size=maximum,
        default_max_batch_size=batching.default_rows(config, settings),
        device=placement.devices[0],
        providers=() if placement.is_cpu else accelerators,
        intra_op_threads=parameters.intra_op_threads(
            config,
            default=settings.intra_op_threads,
            share=surroundings.usable_cores // len(placement.devices),
        ),
        inter_op_threads=parameters.inter_op_threads(config),
        inputs=declared_tensors("input", config.input, has_batch_axis=maximum != 0),
        outputs=declared_tensors("output", config.output, has_batch_axis=maximum != 0),
        parameters=parameters.parameters(config),
        buckets=batching.buckets(config, settings, has_graphs=has_graphs),
        cache=base / settings.cache if settings.cache else None,
        libraries={name: base / path for name, path in settings.libraries.items()},
        lanes=parameters.lanes(config),
        has_graphs=has_graphs,
        memory_limit_bytes=parameters.memory_limit_bytes(config),
        memory_reserve_bytes=settings.gpu_reserve_bytes,
    )


def _ignored(
    config: pb.ModelConfig, backend: str, engine: EngineConfig, placement: Placement
) -> set[str]:
    out = unknown_fields(config) | batching.without_effect(config, engine.inputs)
    out |= parameters.without_effect(config, backend, is_cpu=placement.is_cpu)
    if placement.is_cpu and config.optimization.execution_accelerators.gpu_execution_accelerator:
        out.add(ACCELERATORS_AT)
    return out


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


def report(spec: ConfiguredSpec) -> None:
    """Log what of the configuration has no effect, and what a user may not expect of it."""
    if spec.ignored:
        fields = list(spec.ignored)
        logger.warning("config.pbtxt fields ignored", extra={"model": spec.name, "fields": fields})
    missing = sorted(set(spec.versions.specific) - set(version_names(spec.directory)), key=int)
    if missing:
        logger.warning(
            "config.pbtxt names versions that are not on disk",
            extra={"model": spec.name, "versions": missing},
        )
    policy = spec.batching
    if spec.engine.max_batch_size and policy is not None and not policy.dynamic:
        logger.info(
            "dynamic batching is off",
            extra={"model": spec.name, "max_batch_size": spec.engine.max_batch_size},
        )
