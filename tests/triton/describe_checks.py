"""Checks of the calls around inference: health, metadata, configuration, statistics, the index."""

from __future__ import annotations

from typing import Final

from tests.triton import names
from tests.triton.check import Check, check, check_of
from tests.triton.flavours import NOT_FOUND, REFUSED, UNSUPPORTED, Flavour, Untyped

EXTENSIONS: Final = {
    "statistics",
    "binary_tensor_data",
    "model_configuration",
    "schedule_policy",
    "parameters",
}
_ECHO: Final = names.ECHO["FP32"]
_STAGES: Final = ("success", "queue", "compute_input", "compute_infer", "compute_output")
_ROWS_EACH: Final = 2
_REQUESTS: Final = 3


def server_is_live_and_ready(flavour: Flavour) -> None:
    assert flavour.call("is_server_live") is True
    assert flavour.call("is_server_ready") is True


def model_is_ready(flavour: Flavour, subject: str) -> None:
    name, version = _parts(subject)
    assert flavour.call("is_model_ready", name, version) is True


def unknown_names_are_not_ready(flavour: Flavour) -> None:
    assert flavour.call("is_model_ready", names.ABSENT) is False
    assert flavour.call("is_model_ready", _ECHO, "9") is False
    assert flavour.call("is_model_ready", names.ROUTE, "9") is False


def server_metadata_lists_the_extensions(flavour: Flavour) -> None:
    found = flavour.document("get_server_metadata")
    assert found["name"] == "sluice", found
    assert found["version"], found
    missing = EXTENSIONS - set(found["extensions"])
    assert not missing, f"not among the extensions: {missing}"


def server_metadata_is_a_message(flavour: Flavour) -> None:
    found = flavour.call("get_server_metadata")
    assert set(found.extensions) >= EXTENSIONS, found


def model_metadata(flavour: Flavour, subject: str) -> None:
    name, version = _parts(subject)
    found = flavour.document("get_model_metadata", name, version)
    versions = ["1", "2"] if name != _ECHO else ["1"]
    datatype, width = ("FP32", names.ECHO_WIDTH) if name == _ECHO else ("INT64", 1)
    assert found["name"] == name, found
    assert found["versions"] == ([version] if version else versions), found
    assert found["platform"] == "onnxruntime_onnx", found
    assert _tensors(found["inputs"]) == [("x", datatype, [-1, width])], found
    assert _tensors(found["outputs"]) == [("y", "FP32", [-1, width])], found


def model_config(flavour: Flavour, subject: str) -> None:
    name, version = _parts(subject)
    found = flavour.document("get_model_config", name, version)
    config = found if flavour.is_http else found["config"]
    data_type, width = ("TYPE_FP32", names.ECHO_WIDTH) if name == _ECHO else ("TYPE_INT64", 1)
    assert config["name"] == name, config
    assert config["max_batch_size"] == names.MAX_ROWS, config
    assert "dynamic_batching" in config, config
    (x,), (y,) = config["input"], config["output"]
    assert (x["name"], x["data_type"], [int(d) for d in x["dims"]]) == ("x", data_type, [width])
    assert (y["name"], y["data_type"], [int(d) for d in y["dims"]]) == ("y", "TYPE_FP32", [width])


def model_config_is_a_message(flavour: Flavour) -> None:
    config = flavour.call("get_model_config", names.LEVELS).config
    assert config.max_batch_size == names.MAX_ROWS
    assert config.dynamic_batching.priority_levels == names.PRIORITY_LEVELS
    assert list(config.input[0].dims) == [names.ECHO_WIDTH]


def statistics_grow_by_what_was_answered(flavour: Flavour, subject: str) -> None:
    name, version = _parts(subject)
    before = _statistics(flavour, name, version)
    inputs = flavour.floats() if name == _ECHO else flavour.indices(3, 4)
    for _ in range(_REQUESTS):
        flavour.infer(name, inputs, model_version=version)
    after = _statistics(flavour, name, version)
    assert after["name"] == name if not version else after["version"] == version, after
    grown = _count(after, "inference_count") - _count(before, "inference_count")
    assert grown == _REQUESTS * _ROWS_EACH, f"inference_count grew by {grown}"
    batches = _count(after, "execution_count") - _count(before, "execution_count")
    assert batches == _REQUESTS, f"execution_count grew by {batches}"
    assert _count(after, "last_inference") > 1_600_000_000_000, after
    for stage in _STAGES:
        new, old = (row["inference_stats"][stage] for row in (after, before))
        assert _count(new, "count") - _count(old, "count") == _REQUESTS, stage
        assert _count(new, "ns") > _count(old, "ns"), stage


def statistics_over_http_are_whole_numbers(flavour: Flavour) -> None:
    flavour.infer(names.ROUTE, flavour.indices(1))
    row = _statistics(flavour, names.ROUTE, "")
    stages = row["inference_stats"]
    found = [row["inference_count"], row["execution_count"]]
    for stage in (*_STAGES, "cache_hit", "cache_miss"):
        found += [stages[stage]["count"], stages[stage]["ns"]]
    assert all(type(number) is int for number in found), found
    assert isinstance(row["version"], str), row


def statistics_of_all_models(flavour: Flavour) -> None:
    rows = flavour.document("get_inference_statistics")["model_stats"]
    found = {(row["name"], row["version"]) for row in rows}
    wanted = {(model, "1") for model in (*names.ECHO.values(), names.PAIR, names.LOOKUP)}
    wanted |= {(names.LOOKUP, "2"), (names.ROUTE, "1")}
    assert found >= wanted, f"without a row: {wanted - found}"


def statistics_of_an_unknown_name_are_refused(flavour: Flavour) -> None:
    flavour.expect_error(NOT_FOUND, [names.ABSENT], "get_inference_statistics", names.ABSENT)


def metadata_of_an_unknown_name_is_refused(flavour: Flavour) -> None:
    flavour.expect_error(NOT_FOUND, [names.ABSENT], "get_model_metadata", names.ABSENT)
    flavour.expect_error(NOT_FOUND, [names.ABSENT], "get_model_config", names.ABSENT)
    flavour.expect_error(NOT_FOUND, [names.ROUTE, "'9'"], "get_model_metadata", names.ROUTE, "9")


def repository_index_lists_every_version(flavour: Flavour) -> None:
    found = flavour.document("get_model_repository_index")
    rows = found if flavour.is_http else found["models"]
    states = {(row["name"], row["version"]): row["state"] for row in rows}
    for subject in ((names.LOOKUP, "1"), (names.LOOKUP, "2"), (_ECHO, "1"), (names.SLOW, "1")):
        assert states.get(subject) == "READY", f"{subject}: {states.get(subject)}"


def load_and_unload_are_refused(flavour: Flavour) -> None:
    for method in ("load_model", "unload_model"):
        flavour.expect_error(REFUSED, ["not allowed"], method, _ECHO)
    assert flavour.call("is_model_ready", _ECHO) is True
    flavour.infer(_ECHO, flavour.floats())


def extensions_that_are_not_there_say_so(flavour: Flavour) -> None:
    region = ("region", "/region", 64)
    for method, arguments in (
        ("get_system_shared_memory_status", ()),
        ("register_system_shared_memory", region),
        ("unregister_system_shared_memory", ()),
        ("get_cuda_shared_memory_status", ()),
        ("get_trace_settings", ()),
        ("get_log_settings", ()),
        ("update_log_settings", ({"log_verbose_level": 1},)),
    ):
        flavour.expect_error(UNSUPPORTED, [], method, *arguments)


def _parts(subject: str) -> tuple[str, str]:
    """Return name and version of ``name`` or ``name/version``."""
    name, _, version = subject.partition("/")
    return name, version


def _tensors(specs: list[Untyped]) -> list[tuple[str, str, list[int]]]:
    return [(s["name"], s["datatype"], [int(d) for d in s["shape"]]) for s in specs]


def _statistics(flavour: Flavour, name: str, version: str) -> Untyped:
    rows = flavour.document("get_inference_statistics", name, version)["model_stats"]
    assert len(rows) == 1, f"{name}/{version} has {len(rows)} rows: {rows}"
    return rows[0]


def _count(row: Untyped, key: str) -> int:
    """Return a count; JSON made of a protobuf message leaves zeros out and writes text."""
    return int(row.get(key, 0))


_SUBJECTS: Final = (
    (_ECHO, "a model"),
    (names.ROUTE, "a route"),
    (f"{names.ROUTE}/2", "a version of a route"),
    (f"{names.LOOKUP}/1", "a version of a model"),
)
CHECKS: Final[tuple[Check, ...]] = (
    check(server_is_live_and_ready),
    *(check_of(model_is_ready, subject, shown=shown) for subject, shown in _SUBJECTS),
    check(unknown_names_are_not_ready),
    check(server_metadata_lists_the_extensions),
    check(server_metadata_is_a_message, "grpc grpc.aio"),
    *(check_of(model_metadata, subject, shown=shown) for subject, shown in _SUBJECTS),
    *(check_of(model_config, subject, shown=shown) for subject, shown in _SUBJECTS),
    check(model_config_is_a_message, "grpc grpc.aio"),
    *(
        check_of(statistics_grow_by_what_was_answered, subject, shown=shown)
        for subject, shown in _SUBJECTS
    ),
    check(statistics_over_http_are_whole_numbers, "http http.aio"),
    check(statistics_of_all_models),
    check(statistics_of_an_unknown_name_are_refused),
    check(metadata_of_an_unknown_name_is_refused),
    check(repository_index_lists_every_version),
    check(load_and_unload_are_refused),
    check(extensions_that_are_not_there_say_so),
)
