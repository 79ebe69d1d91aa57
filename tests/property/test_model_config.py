"""Any configuration means the same as text, as a policy and as an answer, or is refused."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import event, given, settings
from hypothesis import strategies as st

from engines import fake
from engines.base import BatchPolicy, ModelMetadata, ModelSpec
from engines.errors import ModelLoadError
from engines.loading import batch_policy
from gateway.config import ModelsConfig
from gateway.model_config import ModelConfigs, read
from gateway.model_config.fields import HONOURED, REFUSED, map_values, set_fields, unknown_fields
from gateway.model_config.tensors import DATA_TYPES
from gateway.pb import model_config_pb2 as pb
from tests.support.models import write_fake

CONFIGS = ModelConfigs(settings=ModelsConfig(libraries={"rtx": "rtx.so"}), usable_cores=2)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
dims = st.lists(st.one_of(st.just(-1), st.integers(1, 1 << 40)), min_size=1, max_size=3)
counts = st.integers(0, 1 << 31)


@st.composite
def signatures(draw: st.DrawFn) -> tuple[list[pb.ModelInput], list[pb.ModelOutput]]:
    """Draw declared inputs and outputs; all are text or none, as the fake engine wants it."""
    numeric = sorted(set(DATA_TYPES.values()) - {"TYPE_STRING"})
    types = st.just("TYPE_STRING") if draw(st.booleans()) else st.sampled_from(numeric)
    tensors = st.tuples(names, types, dims)
    sides = st.lists(tensors, min_size=1, max_size=3, unique_by=lambda tensor: tensor[0])
    inputs = [pb.ModelInput(name=n, data_type=t, dims=d) for n, t, d in draw(sides)]
    outputs = [pb.ModelOutput(name=n, data_type=t, dims=d) for n, t, d in draw(sides)]
    return inputs, outputs


@st.composite
def schedules(draw: st.DrawFn, maximum: int) -> pb.ModelDynamicBatching:
    """Draw a dynamic_batching that fits the maximum."""
    levels = draw(st.integers(0, 5))
    return pb.ModelDynamicBatching(
        preferred_batch_size=draw(st.lists(st.integers(1, maximum), max_size=3)),
        max_queue_delay_microseconds=draw(counts),
        priority_levels=levels,
        default_priority_level=draw(st.integers(1, levels)) if levels else 0,
        default_queue_policy=pb.ModelQueuePolicy(
            default_timeout_microseconds=draw(counts),
            allow_timeout_override=draw(st.booleans()),
            max_queue_size=draw(counts),
        ),
    )


@st.composite
def configurations(draw: st.DrawFn) -> pb.ModelConfig:
    """Draw a configuration of a model that can be batched, made of honoured fields."""
    maximum = draw(st.integers(1, 1 << 12))
    inputs, outputs = draw(signatures())
    config = pb.ModelConfig(
        name=draw(st.sampled_from(["", "model"])),
        backend="fake",
        max_batch_size=maximum,
        input=inputs,
        output=outputs,
    )
    if draw(st.booleans()):
        config.dynamic_batching.CopyFrom(draw(schedules(maximum)))
    for count in draw(st.lists(st.integers(0, 4), max_size=2)):
        config.instance_group.add(count=count, kind=pb.ModelInstanceGroup.KIND_CPU)
    for rows in draw(st.lists(st.integers(1, maximum), max_size=2)):
        config.model_warmup.add(batch_size=rows, name=draw(names))
    if (latest := draw(st.integers(0, 3))) > 0:
        config.version_policy.latest.num_versions = latest
    return config


@given(config=configurations())
def test_a_configuration_survives_text_then_policy_then_description(
    config: pb.ModelConfig,
) -> None:
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root) / "model"
        path = write_signature(directory, config)
        (directory / "config.pbtxt").write_text(text_format.MessageToString(config))
        spec = CONFIGS.read_spec(directory)
        metadata = fake.load(path, spec.engine).metadata
    assert spec.instances == max(1, sum(group.count or 1 for group in config.instance_group))
    assert spec.warmup_batch_sizes == tuple(sample.batch_size for sample in config.model_warmup)
    policy = batch_policy(spec, metadata)
    check_policy(policy, config)

    document = CONFIGS.describe(spec, metadata, "1")
    described = pb.ModelConfig.FromString(document.wire)
    assert described.max_batch_size == policy.max_batch_size == config.max_batch_size
    assert described.HasField("dynamic_batching") == policy.dynamic
    assert described.dynamic_batching == config.dynamic_batching
    assert list(described.input) == list(config.input)
    assert list(described.output) == list(config.output)
    assert list(described.model_warmup) == list(config.model_warmup)
    assert json_format.Parse(document.json, pb.ModelConfig()) == described
    assert all(isinstance(d, int) for i in json.loads(document.json)["input"] for d in i["dims"])


def write_signature(directory: Path, config: pb.ModelConfig) -> Path:
    """Write a fake engine's script with the configuration's own signature."""
    protocol_names = {number: name for name, number in DATA_TYPES.items()}
    inputs, outputs = (
        [
            {
                "name": tensor.name,
                "datatype": protocol_names[pb.DataType.Name(tensor.data_type)],
                "shape": [-1, *tensor.dims],
            }
            for tensor in side
        ]
        for side in (config.input, config.output)
    )
    return write_fake(directory / "1" / "model.json", inputs=inputs, outputs=outputs)


def check_policy(policy: BatchPolicy, config: pb.ModelConfig) -> None:
    asked = config.dynamic_batching
    queue = asked.default_queue_policy
    assert policy.dynamic == config.HasField("dynamic_batching")
    assert list(policy.preferred_batch_sizes) == list(asked.preferred_batch_size)
    assert policy.max_queue_delay_us == asked.max_queue_delay_microseconds
    assert policy.priority_levels == asked.priority_levels
    assert policy.default_priority_level == asked.default_priority_level
    assert policy.default_timeout_us == queue.default_timeout_microseconds
    assert policy.max_queue_requests == queue.max_queue_size
    assert policy.max_queue_rows >= config.max_batch_size
    if queue.default_timeout_microseconds:
        assert policy.allow_timeout_override == queue.allow_timeout_override


@given(config=configurations())
def test_a_configuration_of_honoured_fields_has_nothing_to_warn_of(config: pb.ModelConfig) -> None:
    assert unknown_fields(config) == set()
    assert not {field.path for field in set_fields(config)} & set(REFUSED)


# Any value of a scalar field, likely and unlikely; unsigned fields take the first of each pair.
INTEGERS = st.sampled_from([0, 1, 2, 8, 65, 2_000])
SIGNED = st.one_of(INTEGERS, st.just(-1))
TEXTS = st.one_of(
    st.sampled_from(["", "x", "model", "fake", "onnxruntime_onnx", "tensorrt", "8", "../x"]),
    st.sampled_from(["1,8", "cuda", "rtx", "batch_buckets", "lanes", "strict", "sluice.device"]),
)
STRING = FieldDescriptor.CPPTYPE_STRING
UNSIGNED_TYPES = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}


@st.composite
def messages(draw: st.DrawFn, kind: Any) -> dict[str, object]:
    """Draw constructor arguments that set up to four fields of a message, and so on inside.

    Any: `kind` is a descriptor, of which each implementation of protobuf has its own classes.
    """
    fields = list(kind.fields)
    chosen = draw(st.sets(st.integers(0, len(fields) - 1), max_size=4)) if fields else ()
    out: dict[str, object] = {}
    choices_made = set()
    for field in (fields[number] for number in sorted(chosen)):
        choice = field.containing_oneof.name if field.containing_oneof else field.name
        if choice not in choices_made:
            choices_made.add(choice)
            out[field.name] = draw(field_values(field))
    return out


def field_values(field: FieldDescriptor) -> st.SearchStrategy[object]:
    of_map = map_values(field)
    item = of_map or field
    one = scalars(item) if item.message_type is None else messages(item.message_type)
    if of_map is not None:
        keys = scalars(field.message_type.fields_by_name["key"])  # type: ignore[union-attr]
        return st.dictionaries(keys, one, max_size=2)
    return st.lists(one, max_size=2) if field.is_repeated else one


def scalars(field: FieldDescriptor) -> st.SearchStrategy[object]:
    if field.enum_type is not None:
        return st.sampled_from([*field.enum_type.values_by_number, 77])
    if field.cpp_type == STRING:
        return TEXTS
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    return INTEGERS if field.cpp_type in UNSIGNED_TYPES else SIGNED


class Records(logging.Handler):
    """Keeps the fields that warnings name."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.fields += record.__dict__.get("fields", [])


def read_and_listen(config: pb.ModelConfig) -> tuple[ModelSpec, set[str]]:
    """Read a configuration from its text; return the fields that the log named too."""
    records = Records()
    reader = logging.getLogger(read.__name__)
    reader.addHandler(records)
    try:
        with tempfile.TemporaryDirectory() as root:
            directory = Path(root) / "model"
            write_fake(directory / "1" / "model.json")
            (directory / "config.pbtxt").write_text(text_format.MessageToString(config))
            return CONFIGS.read_spec(directory), set(records.fields)
    finally:
        reader.removeHandler(records)


@settings(max_examples=300)
@given(values=messages(pb.ModelConfig.DESCRIPTOR))
def test_any_configuration_is_refused_or_all_of_it_is_honoured_or_named(
    values: dict[str, Any],  # Any: arguments of a message's constructor
) -> None:
    config = pb.ModelConfig(**values)
    try:
        spec, named = read_and_listen(config)
    except ModelLoadError as exc:
        event(str(exc).split(":")[1])
        return
    event("read")
    tables = HONOURED | set(REFUSED)
    for path in (field.path for field in set_fields(config) if field.is_leaf):
        asks_for_nothing = any(known.startswith(f"{path}.") for known in tables)
        assert path in HONOURED | named or asks_for_nothing
    metadata = ModelMetadata(
        inputs=(),
        outputs=(),
        max_batch_size=spec.engine.max_batch_size or 0,
        platform="fake",
        engine="fake 1",
        device="cpu",
    )
    document = CONFIGS.describe(spec, metadata, "1")
    wire = pb.ModelConfig.FromString(document.wire)
    assert json_format.Parse(document.json, pb.ModelConfig()) == wire
