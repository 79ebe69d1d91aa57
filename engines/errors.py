"""What can go wrong between a checked request and its rows, as few typed errors.

Constructors take data and the class writes the sentence, so that both protocols say the same words.
No error here knows a status code: gateway/errors.py translates, once.
"""

from __future__ import annotations


class EngineError(Exception):
    """Family of everything an engine, a batcher or the model repository raises."""

    def __new__(cls, *args: object, **kwargs: object) -> EngineError:
        """Refuse to make the family itself."""
        if cls is EngineError:
            raise TypeError("EngineError is a family: raise one of its members")
        return super().__new__(cls)


class InvalidInput(EngineError):
    """The request contradicts the model's signature; the sentence names the field."""


class UnknownModel(EngineError):
    """No model, or no version of it, has that name."""

    def __init__(self, *, model: str, version: str = "", why: str = "") -> None:
        subject = f"version {version!r} of model {model!r}" if version else f"model {model!r}"
        super().__init__(f"{subject} is not known" + (f": {why}" if why else ""))


class VersionNotReady(EngineError):
    """The version exists and cannot serve now: it is loading, draining, unloaded or broken."""

    def __init__(self, *, model: str, version: str = "", why: str) -> None:
        subject = f"model {model!r}" + (f" version {version}" if version else "")
        super().__init__(f"{subject} is not ready: {why}")


class QueueFull(EngineError):
    """Admission refused: the queue of this version holds as many rows as it may."""

    def __init__(self, *, model: str, version: str, limit: int, unit: str = "rows") -> None:
        super().__init__(
            f"the queue of model {model!r} version {version} is full: its limit is {limit} {unit}"
        )


class DeadlineExpired(EngineError):
    """The deadline passed while the request was queued or executing."""

    def __init__(self, *, model: str, version: str, stage: str, waited_ns: int) -> None:
        super().__init__(
            f"deadline expired after {waited_ns / 1e6:.1f} ms while the request was {stage} "
            f"at model {model!r} version {version}"
        )
        self.stage = stage
        """queued or executing."""


class Cancelled(EngineError):
    """The caller went away before the answer; nobody reads this but the log."""

    def __init__(self) -> None:
        super().__init__("the caller cancelled the request")


class InstanceFailed(EngineError):
    """The engine raised something it should not have; the details are in the server's log."""

    def __init__(self, *, model: str, version: str) -> None:
        super().__init__(f"model {model!r} version {version} failed to execute the request")


class OutOfMemory(EngineError):
    """The device has no room for this batch; a smaller one may fit."""

    def __init__(self, device: str) -> None:
        super().__init__(f"{device} has no memory for a batch of this size")


class DeviceFailed(EngineError):
    """The device's state is lost (an illegal access, say), and the instance with it."""

    def __init__(self, device: str, why: str) -> None:
        super().__init__(f"{device} failed: {why}")


class ModelLoadError(EngineError):
    """The files of a version cannot be made into a serving engine; the sentence says why."""


class DeviceUnavailable(ModelLoadError):
    """The device that the configuration asks for is not there; never answered by a slower one."""


class EngineClosed(EngineError):
    """The engine was used after close."""

    def __init__(self) -> None:
        super().__init__("the engine is closed")
