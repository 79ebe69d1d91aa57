"""The four clients of tritonclient behind one way to call them, so that a check is written once.

A flavour hands every call to the unmodified client: `call` names one of the client's own methods,
and awaits what an asyncio client returns. What differs between the protocols by design (how binary
data is asked for, what a status is called) is stated here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

# These exist only in the environment of `make triton-venv`; mypy runs in the other one.
import numpy as np
import numpy.typing as npt
import tritonclient.grpc  # type: ignore[import-not-found]
import tritonclient.grpc.aio  # type: ignore[import-not-found]
import tritonclient.http  # type: ignore[import-not-found]
import tritonclient.http.aio  # type: ignore[import-not-found]
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]

Array = npt.NDArray[Any]  # Any: of every element type
Untyped = Any  # Any: tritonclient has no types

WAIT_S: Final = 20.0
"""Longest wait for an answer; only a hang takes so long."""
NAMES: Final = ("http", "grpc", "http.aio", "grpc.aio")


class Status(NamedTuple):
    """What an error is called over HTTP and over gRPC, in tritonclient's words."""

    http: str
    grpc: str


INVALID: Final = Status("400", "StatusCode.INVALID_ARGUMENT")
REFUSED: Final = Status("403", "StatusCode.PERMISSION_DENIED")
NOT_FOUND: Final = Status("404", "StatusCode.NOT_FOUND")
INTERNAL: Final = Status("500", "StatusCode.INTERNAL")
UNSUPPORTED: Final = Status("501", "StatusCode.UNIMPLEMENTED")
NOT_READY: Final = Status("503", "StatusCode.UNAVAILABLE")
EXPIRED: Final = Status("504", "StatusCode.DEADLINE_EXCEEDED")

StreamAnswer = tuple[Untyped, Untyped]
"""An InferResult or None, and an InferenceServerException or None."""


class Flavour:
    """One of the four clients, connected to a gateway.

    Args:
        name: one of NAMES.
        address: host:port of the protocol that the name says.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.is_http = name.startswith("http")
        self.is_async = name.endswith("aio")
        self.address = address
        self._module = _MODULES[name]
        self._tensors = tritonclient.http if self.is_http else tritonclient.grpc
        self._loop = asyncio.new_event_loop() if self.is_async else None
        self.client: Untyped = self.make_client()

    def make_client(self, **options: object) -> Untyped:
        """Return one more client of this flavour, for checks that need options."""
        if not self.is_async:
            if self.is_http:
                options.setdefault("concurrency", 8)
            return self._module.InferenceServerClient(self.address, **options)

        async def make() -> Untyped:
            return self._module.InferenceServerClient(self.address, **options)

        return self.run(make())

    def close(self) -> None:
        """Close the client."""
        self.call("close")
        if self._loop is not None:
            self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, Untyped]) -> Untyped:  # Any: unused by run
        """Run a coroutine on the flavour's own event loop."""
        assert self._loop is not None, f"{self.name} has no event loop"
        return self._loop.run_until_complete(asyncio.wait_for(coroutine, WAIT_S))

    def call(self, method: str, *args: object, **options: object) -> Untyped:
        """Call a method of the client and return what it returns, awaited."""
        return self.call_on(self.client, method, *args, **options)

    def call_on(self, client: Untyped, method: str, *args: object, **options: object) -> Untyped:
        """Call a method of one of this flavour's clients."""
        if self._loop is None:
            return getattr(client, method)(*args, **options)

        async def call() -> Untyped:
            answer = getattr(client, method)(*args, **options)
            return await answer if inspect.isawaitable(answer) else answer

        return self.run(call())

    def document(self, method: str, *args: object) -> Untyped:
        """Return an answer as plain JSON; over gRPC 64-bit integers come as text."""
        return self.call(method, *args) if self.is_http else self.call(method, *args, as_json=True)

    def tensor(self, name: str, datatype: str, array: Array, *, is_binary: bool = True) -> Untyped:
        """Return an input; `is_binary` is HTTP's choice, gRPC has only one form."""
        tensor = self._tensors.InferInput(name, list(array.shape), datatype)
        if self.is_http:
            tensor.set_data_from_numpy(array, binary_data=is_binary)
        else:
            tensor.set_data_from_numpy(array)
        return tensor

    def floats(self, array: Array | None = None, name: str = "x") -> Untyped:
        """Return an FP32 input, two rows of four unless given."""
        values = np.arange(8).reshape(2, 4) if array is None else array
        return self.tensor(name, "FP32", values.astype(np.float32))

    def indices(self, *values: int) -> Untyped:
        """Return an INT64 input of one row per value."""
        return self.tensor("x", "INT64", np.array(values, dtype=np.int64).reshape(-1, 1))

    def output(self, name: str, *, is_binary: bool = True, **options: object) -> Untyped:
        """Return a requested output."""
        if self.is_http:
            options["binary_data"] = is_binary
        return self._tensors.InferRequestedOutput(name, **options)

    def infer(self, model: str, *inputs: Untyped, **options: object) -> Untyped:
        """Return the result of an inference."""
        return self.call("infer", model, list(inputs), **options)

    def response(self, result: Untyped) -> dict[str, Untyped]:
        """Return a result's head (names, id, outputs) as plain JSON."""
        document: dict[str, Untyped] = (
            result.get_response() if self.is_http else result.get_response(as_json=True)
        )
        return document

    def error(self, method: str, *args: object, **options: object) -> Untyped:
        """Return the exception of a call that must fail."""
        try:
            answer = self.call(method, *args, **options)
        except InferenceServerException as exc:
            return exc
        raise AssertionError(f"{method} was answered with {answer!r}, an error was expected")

    def expect_error(
        self, status: Status, words: Iterable[str], method: str, *args: object, **options: object
    ) -> str:
        """Check that a call fails with a status and a sentence that has all words; return it."""
        error = self.error(method, *args, **options)
        wanted = status.http if self.is_http else status.grpc
        assert error.status() == wanted, f"status {error.status()}, expected {wanted}: {error}"
        sentence = error.message()
        assert isinstance(sentence, str), f"the message is {sentence!r}"
        assert sentence, "the message is empty"
        for word in words:
            assert word in sentence, f"{word!r} is not in the message: {sentence}"
        return sentence

    def stream(
        self, requests: Sequence[dict[str, Untyped]], **options: object
    ) -> list[StreamAnswer]:
        """Send requests through one ModelStreamInfer; return what came, in order of arrival.

        A stream that ends with a status is one more answer, with that error.
        """
        assert not self.is_http, "HTTP has no streams"
        if self.is_async:
            return self.run(self._stream_async(requests, options))  # type: ignore[no-any-return]
        answers: SimpleQueue[StreamAnswer] = SimpleQueue()
        self.client.start_stream(lambda result, error: answers.put((result, error)), **options)
        try:
            # A stream that has ended already takes no request: its end is among the answers.
            with contextlib.suppress(InferenceServerException):
                for request in requests:
                    self.client.async_stream_infer(**request)
        finally:
            self.client.stop_stream()  # waits for the answers
        return [answers.get_nowait() for _ in range(answers.qsize())]

    async def _stream_async(
        self, requests: Sequence[dict[str, Untyped]], options: dict[str, object]
    ) -> list[StreamAnswer]:
        async def given() -> AsyncIterator[dict[str, Untyped]]:
            for request in requests:
                yield request

        answers = []
        try:
            async for answer in self.client.stream_infer(given(), **options):
                answers.append(answer)  # noqa: PERF401 - an error must not lose what came before
        except Exception as exc:  # the asyncio client lets grpcio's own errors through
            answers.append((None, exc))
        return answers


_MODULES: Final = {
    "http": tritonclient.http,
    "grpc": tritonclient.grpc,
    "http.aio": tritonclient.http.aio,
    "grpc.aio": tritonclient.grpc.aio,
}
