"""Batching of a config.pbtxt: the maximum, the buckets, the queue's policy, the warm-up sizes.

Knows ModelConfig and the engines' BatchPolicy; knows no queue.

The maximum means three things, because proto3 cannot tell 0 from absent:
  - N > 0: the model has a batch axis, which `dims` leave out;
  - 0 with declared inputs or outputs: it has none, and `dims` are whole shapes (Triton's meaning);
  - 0 without any: nothing was said, and the engine tells from the model file.
"""

from __future__ import annotations

from engines.base import BatchPolicy, TensorSpec
from gateway.config import ModelsConfig
from gateway.model_config import parameters
from gateway.model_config.fields import FieldError
from gateway.model_config.tensors import datatype_of
from gateway.pb import model_config_pb2 as pb


def max_batch_size(config: pb.ModelConfig) -> int | None:
    """Return the maximum in rows, 0 for no batch axis, None where the engine is to tell.

    Raises:
        FieldError: it is negative.
    """
    if config.max_batch_size < 0:
        raise FieldError("max_batch_size", f"{config.max_batch_size} is negative")
    if config.max_batch_size == 0 and not config.input and not config.output:
        return None
    return config.max_batch_size


def default_rows(config: pb.ModelConfig, settings: ModelsConfig) -> int:
    """Return the rows of the largest batch where the file has no maximum: its last bucket, if any.

    Raises:
        FieldError: the buckets cannot be.
    """
    found = parameters.buckets(config, None)
    return found[-1] if found else settings.default_max_batch_size


def buckets(config: pb.ModelConfig, settings: ModelsConfig, *, has_graphs: bool) -> tuple[int, ...]:
    """Return the row counts to pad batches up to: the file's, else those of its CUDA graphs.

    Raises:
        FieldError: they cannot be.
    """
    maximum = max_batch_size(config)
    rows = default_rows(config, settings) if maximum is None else maximum
    of_graphs = parameters.graph_buckets(config, maximum, rows)
    return parameters.buckets(config, maximum) or (of_graphs if has_graphs else ())


def batch_policy(config: pb.ModelConfig, settings: ModelsConfig) -> BatchPolicy | None:
    """Return the queue's policy; None: nothing was said, decide from the loaded engine.

    Dynamic batching is what `dynamic_batching` asks for by its presence, as in Triton: a maximum
    without it bounds a request and joins none. Without a batch axis it still bounds the queue.

    Raises:
        FieldError: a size or level that contradicts another field.
    """
    maximum = max_batch_size(config)
    is_asked = config.HasField("dynamic_batching")
    if not is_asked and not maximum:
        return None
    limit = default_rows(config, settings) if maximum is None else maximum
    asked = config.dynamic_batching
    _check_sizes(asked, limit)
    _check_priorities(asked)
    policy = asked.default_queue_policy
    default_timeout_us = policy.default_timeout_microseconds
    return BatchPolicy(
        max_batch_size=max(limit, 1),
        dynamic=is_asked and limit > 0,
        preferred_batch_sizes=tuple(asked.preferred_batch_size),
        max_queue_delay_us=asked.max_queue_delay_microseconds if limit else 0,
        # A request of the largest size must fit into an empty queue.
        max_queue_rows=max(settings.max_queue_rows, limit),
        max_queue_requests=policy.max_queue_size,
        priority_levels=asked.priority_levels,
        default_priority_level=asked.default_priority_level if asked.priority_levels else 0,
        default_timeout_us=default_timeout_us,
        # The flag guards the default; where there is none, a request's own timeout holds.
        allow_timeout_override=policy.allow_timeout_override or not default_timeout_us,
    )


def _check_sizes(asked: pb.ModelDynamicBatching, limit: int) -> None:
    for number, size in enumerate(asked.preferred_batch_size):
        at = f"dynamic_batching.preferred_batch_size[{number}]"
        if size < 1:
            raise FieldError(at, f"{size} is less than 1")
        if size > limit:
            raise FieldError(at, f"{size} is more than max_batch_size {limit}")


def _check_priorities(asked: pb.ModelDynamicBatching) -> None:
    levels, default = asked.priority_levels, asked.default_priority_level
    if levels and not 1 <= default <= levels:
        raise FieldError(
            "dynamic_batching.default_priority_level",
            f"{default} is not between 1 and priority_levels {levels}",
        )
    policy = asked.default_queue_policy
    if policy.timeout_action not in pb.ModelQueuePolicy.TimeoutAction.values():
        raise FieldError(
            "dynamic_batching.default_queue_policy.timeout_action",
            f"{policy.timeout_action} is neither REJECT nor DELAY",
        )


def warmup_batch_sizes(
    config: pb.ModelConfig, settings: ModelsConfig, inputs: tuple[TensorSpec, ...]
) -> tuple[int, ...]:
    """Return the batch sizes of the warm-up samples, in the file's order.

    Raises:
        FieldError: a size or an input that the model cannot take.
    """
    maximum = max_batch_size(config)
    limit = default_rows(config, settings) if maximum is None else max(maximum, 1)
    for number, sample in enumerate(config.model_warmup):
        at = f"model_warmup[{number}]"
        if sample.batch_size < 1:
            raise FieldError(f"{at}.batch_size", "is missing: it must be at least 1")
        if sample.batch_size > limit:
            sentence = f"{sample.batch_size} is more than the model takes, {limit}"
            raise FieldError(f"{at}.batch_size", sentence)
        for name in sorted(sample.inputs):
            _check_sample(f"{at}.inputs[{name!r}]", name, sample.inputs[name], inputs)
    return tuple(sample.batch_size for sample in config.model_warmup)


def _check_sample(
    location: str, name: str, sample: pb.ModelWarmup.Input, inputs: tuple[TensorSpec, ...]
) -> None:
    datatype = datatype_of(f"{location}.data_type", sample.data_type)
    for position, size in enumerate(sample.dims):
        if size < 1:
            raise FieldError(f"{location}.dims[{position}]", f"{size} is less than 1")
    if not inputs:
        return
    declared = next((spec for spec in inputs if spec.name == name), None)
    if declared is None:
        raise FieldError(location, "the model declares no such input")
    if declared.datatype != datatype:
        sentence = f"{datatype} is given, the input is declared {declared.datatype}"
        raise FieldError(f"{location}.data_type", sentence)


def without_effect(config: pb.ModelConfig, inputs: tuple[TensorSpec, ...]) -> set[str]:
    """Return the honoured fields whose values ask for something that is not done."""
    asked = config.dynamic_batching
    declared = {spec.name: spec.shape for spec in inputs}
    samples = [entry for sample in config.model_warmup for entry in sample.inputs.items()]
    cases = {
        "dynamic_batching.default_queue_policy.timeout_action": (
            asked.default_queue_policy.timeout_action == pb.ModelQueuePolicy.DELAY
        ),
        "dynamic_batching.default_priority_level": (
            asked.default_priority_level > 0 and asked.priority_levels == 0
        ),
        "dynamic_batching.max_queue_delay_microseconds": (
            asked.max_queue_delay_microseconds > 0 and max_batch_size(config) == 0
        ),
        "model_warmup.count": any(sample.count > 1 for sample in config.model_warmup),
        # Warm-up takes 1 for a dimension that varies, whatever the sample says.
        "model_warmup.inputs.dims": any(
            declared.get(name) != tuple(sample.dims) for name, sample in samples
        ),
    }
    return {path for path, is_case in cases.items() if is_case}
