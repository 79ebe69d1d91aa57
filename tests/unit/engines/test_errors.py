"""The family of engine errors, and the sentences that callers read."""

from __future__ import annotations

import pytest

from engines.errors import (
    Cancelled,
    DeadlineExpired,
    DeviceUnavailable,
    EngineClosed,
    EngineError,
    InstanceFailed,
    ModelLoadError,
    QueueFull,
    UnknownModel,
    VersionNotReady,
)


def test_the_family_itself_cannot_be_raised() -> None:
    with pytest.raises(TypeError, match="raise one of its members"):
        raise EngineError


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UnknownModel(model="m"), "model 'm' is not known"),
        (
            UnknownModel(model="m", version="2", why="it is gone"),
            "version '2' of model 'm' is not known: it is gone",
        ),
        (VersionNotReady(model="m", why="it loads"), "model 'm' is not ready: it loads"),
        (
            VersionNotReady(model="m", version="2", why="it loads"),
            "model 'm' version 2 is not ready: it loads",
        ),
        (
            QueueFull(model="m", version="2", limit=8),
            "the queue of model 'm' version 2 is full: its limit is 8 rows",
        ),
        (
            DeadlineExpired(model="m", version="2", stage="queued", waited_ns=12_345_678),
            "deadline expired after 12.3 ms while the request was queued at model 'm' version 2",
        ),
        (Cancelled(), "the caller cancelled the request"),
        (
            InstanceFailed(model="m", version="2"),
            "model 'm' version 2 failed to execute the request",
        ),
        (EngineClosed(), "the engine is closed"),
    ],
)
def test_every_error_says_what_happened_and_to_whom(error: EngineError, sentence: str) -> None:
    assert str(error) == sentence


def test_a_missing_device_is_a_load_error() -> None:
    assert issubclass(DeviceUnavailable, ModelLoadError)
