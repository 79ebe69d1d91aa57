"""What a loaded engine says of itself: its tensors, its profiles; and what is served of it.

Knows an ICudaEngine's questions; runs nothing. A plan of any origin is asked, with a sidecar or
without one: the engine is what will run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines.base import EngineConfig, TensorSpec
from engines.buckets import powers_of_two
from engines.errors import ModelLoadError
from engines.trt import profiles
from engines.trt.api import Flavour
from engines.trt.parse import datatype_of
from engines.trt.profiles import Profile, Range
from engines.trt.surface import ICudaEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The tensors and profiles of an engine."""

    inputs: tuple[TensorSpec, ...]
    """-1 where the profiles differ or give a range."""
    outputs: tuple[TensorSpec, ...]
    """-1 where the engine does not say a number."""
    profiles: tuple[Profile, ...]
    """At least one; each names every input."""
    is_static: bool
    """Whether no input varies: then there is no profile to choose."""


def facts_of(flavour: Flavour, engine: ICudaEngine) -> Facts:
    """Ask an engine.

    Raises:
        ModelLoadError: it has a tensor that cannot be served.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    mode_of_input = flavour.module.TensorIOMode.__members__["INPUT"]
    inputs = [name for name in names if engine.get_tensor_mode(name) == mode_of_input]
    outputs = [name for name in names if name not in inputs]
    ranges = tuple(
        {name: _range(engine, name, number) for name in inputs}
        for number in range(max(engine.num_optimization_profiles, 1))
    )
    asked = [_spec(flavour, engine, "input", name) for name in inputs]
    return Facts(
        inputs=tuple(replace(spec, shape=profiles.fixed_by(ranges, spec)) for spec in asked),
        outputs=tuple(_spec(flavour, engine, "output", name) for name in outputs),
        profiles=ranges,
        is_static=all(-1 not in spec.shape for spec in asked),
    )


def config_of(config: EngineConfig, facts: Facts) -> EngineConfig:
    """Return the configuration with the rows and buckets that the profiles allow.

    Raises:
        ModelLoadError: they do not allow what is configured.
    """
    batched = [spec.name for spec in facts.inputs if spec.shape[:1] == (-1,)]
    limit = profiles.most_rows(facts.profiles, batched)
    if not limit:
        return config
    rows = config.max_batch_size
    if rows is None:
        rows = config.buckets[-1] if config.buckets else limit
    if rows > limit:
        raise ModelLoadError(
            f"max_batch_size is {rows}, and the plan's profiles take at most {limit} rows"
        )
    if not rows:
        return config
    best = {p[name].best[0] for p in facts.profiles for name in batched}
    wanted = config.buckets or sorted(n for n in {*powers_of_two(rows), *best} if n <= rows)
    taken = tuple(n for n in wanted if _takes(facts.profiles, batched, n))
    for bucket in wanted:
        if bucket not in taken and (config.buckets or bucket == rows):
            raise ModelLoadError(f"no profile of the plan takes a batch of {bucket} rows")
    return replace(config, default_max_batch_size=rows, buckets=taken)


def _takes(ranges: Sequence[Profile], batched: Sequence[str], rows: int) -> bool:
    return any(
        all(profile[name].least[0] <= rows <= profile[name].most[0] for name in batched)
        for profile in ranges
    )


def _range(engine: ICudaEngine, name: str, profile: int) -> Range:
    ends = [tuple(dims) for dims in engine.get_tensor_profile_shape(name, profile)]
    return Range(*ends) if len(ends) == 3 else Range(*[tuple(engine.get_tensor_shape(name))] * 3)


def _spec(flavour: Flavour, engine: ICudaEngine, kind: str, name: str) -> TensorSpec:
    module = flavour.module
    if engine.get_tensor_format(name) != module.TensorFormat.__members__["LINEAR"]:
        raise ModelLoadError(
            f"{kind} {name!r} of the plan is {engine.get_tensor_format(name).name}, and only "
            "LINEAR tensors can be served: build the plan without formats of its own"
        )
    on_device = engine.get_tensor_location(name) == module.TensorLocation.__members__["DEVICE"]
    if not on_device or engine.is_shape_inference_io(name):
        raise ModelLoadError(
            f"{kind} {name!r} of the plan is a shape, not a tensor on the device: not to be served"
        )
    return TensorSpec(
        name=name,
        datatype=datatype_of(kind, name, engine.get_tensor_dtype(name)),
        shape=tuple(engine.get_tensor_shape(name)),
    )
