"""A `Memory` on an NVIDIA GPU, by the runtime API in the package cuda-bindings.

Knows no engine and no runtime above CUDA. The package is imported when the first `CudaMemory` is
made. It uses the device's primary context, the one that TensorRT, torch and ONNX Runtime use, so
that addresses and streams mean the same to all of them.

Every call of the bindings answers a tuple, its first element the error; they release the GIL while
they run. `FUNCTIONS`, `CONSTANTS` and `MEMBERS` name all that this file takes of them, for the test
that looks each one up in the installed package. Errors become ours in `error_of`, a pure function.

Threads. What is made belongs to the device that is current in the calling thread, so each call that
makes something says which one that is. Copies, events and launches go by their stream's device;
before them the device is set once per thread, for what the runtime itself keeps per thread. So is
the thread's capture mode: a runtime that records on its own may do it "globally" (ONNX Runtime
does), and would make allocations and waits of all other threads fail, and its own recording too.
"""

from __future__ import annotations

import importlib
import threading
from contextlib import suppress
from types import ModuleType
from typing import Any, Final, TypeVar

from engines import devices
from engines.errors import DeviceFailed, DeviceUnavailable, EngineError, OutOfMemory
from engines.gpu.memory import Block, CaptureFailed, Event, Graph, HostBlock, Stream, buffer_at

FUNCTIONS: Final = (
    "cudaEventCreateWithFlags",
    "cudaEventDestroy",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaFree",
    "cudaFreeHost",
    "cudaGetDeviceCount",
    "cudaGetErrorName",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaHostAlloc",
    "cudaMalloc",
    "cudaMemGetInfo",
    "cudaMemcpyAsync",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamWaitEvent",
    "cudaThreadExchangeStreamCaptureMode",
)
CONSTANTS: Final = (
    "cudaEventBlockingSync",
    "cudaEventDisableTiming",
    "cudaHostAllocPortable",
    "cudaStreamNonBlocking",
)
MEMBERS: Final = {
    "cudaMemcpyKind": ("cudaMemcpyDeviceToHost", "cudaMemcpyHostToDevice"),
    "cudaStreamCaptureMode": ("cudaStreamCaptureModeThreadLocal",),
}
LOST: Final = frozenset(
    {
        "cudaErrorAssert",
        "cudaErrorContained",
        "cudaErrorContextIsDestroyed",
        "cudaErrorDevicesUnavailable",
        "cudaErrorECCUncorrectable",
        "cudaErrorExternalDevice",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalAddress",
        "cudaErrorIllegalInstruction",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorMisalignedAddress",
        "cudaErrorMpsClientTerminated",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorTensorMemoryLeak",
        "cudaErrorUnknown",
    }
)
"""Errors after which the context is of no use; any call may report one that came before it."""
_CAPTURING: Final = frozenset(
    {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"}
)
"""Calls that may fail and leave the device as it was."""

_T = TypeVar("_T", bound=Block | Stream | Event | Graph)
_threads: Final = threading.local()
"""`.device`: the one set last in the thread, by any memory: two of them may share a thread."""


def error_of(device: str, call: str, name: str, why: str) -> EngineError | CaptureFailed:
    """Return our error for a failed call.

    Args:
        device: such as cuda:0.
        call: the runtime's function.
        name: the error's, such as cudaErrorIllegalAddress.
        why: what the runtime says of it.
    """
    if name == "cudaErrorMemoryAllocation":
        return OutOfMemory(device)
    sentence = f"{call} answered {name}: {why}"
    is_of_capture = call in _CAPTURING or name.startswith("cudaErrorStreamCapture")
    if is_of_capture and name not in LOST:
        return CaptureFailed(sentence)
    return DeviceFailed(device, sentence)


def _runtime(device: str) -> ModuleType:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as exc:
        raise DeviceUnavailable(
            f"{device}: the package cuda-bindings is needed and does not import: {exc}"
        ) from exc


class CudaMemory:
    """See the top of the file.

    Args:
        index: the device's, among those that the process may see.

    Raises:
        DeviceUnavailable: the package, the driver or the device is not there.
    """

    def __init__(self, index: int) -> None:
        self.device = f"cuda:{index}"
        self._index = index
        self._runtime = _runtime(self.device)
        self._left: dict[tuple[type, int], Block | Stream | Event | Graph] = {}
        """What was made and not given back, by kind and address or handle."""
        rt = self._runtime
        self._to_device = rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._capture_mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        # The waiting thread sleeps: the cores are the event loop's. Times are not asked for.
        self._event_flags = rt.cudaEventBlockingSync | rt.cudaEventDisableTiming
        self._find()

    def _find(self) -> None:
        rt = self._runtime
        error, count = rt.cudaGetDeviceCount()
        if error or self._index >= count:
            said = f"{self.device}: {self._said(error)[1]}" if error else ""
            found = f"{self.device}: CUDA finds {count} GPUs"
            raise DeviceUnavailable(devices.why_not(self.device) or said or found)
        try:
            self._make_current()
        except EngineError as exc:
            raise DeviceUnavailable(str(exc)) from exc

    def pinned(self, size_bytes: int) -> HostBlock:
        """Allocate page-locked host memory, so to every context."""
        rt = self._make_current()
        flags = rt.cudaHostAllocPortable
        address = self._value("cudaHostAlloc", rt.cudaHostAlloc(max(size_bytes, 1), flags))
        return self._keep(HostBlock(address, size_bytes, buffer_at(address, size_bytes)))

    def allocate(self, size_bytes: int) -> Block:
        """Allocate device memory, at a multiple of 256."""
        rt = self._make_current()
        address = self._value("cudaMalloc", rt.cudaMalloc(max(size_bytes, 1)))
        return self._keep(Block(address, size_bytes))

    def free(self, block: Block) -> None:
        """Give a block back; waits for what the device does with it."""
        rt = self._make_current()
        self._forget(block)
        if isinstance(block, HostBlock):
            self._check("cudaFreeHost", rt.cudaFreeHost(block.address))
        else:
            self._check("cudaFree", rt.cudaFree(block.address))

    def stream(self) -> Stream:
        """Make a stream that does not wait for the default one either."""
        rt = self._make_current()
        answer = rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking)
        return self._keep(Stream(self._value("cudaStreamCreateWithFlags", answer)))

    def event(self) -> Event:
        """Make an event; who waits for it sleeps."""
        rt = self._make_current()
        answer = rt.cudaEventCreateWithFlags(self._event_flags)
        return self._keep(Event(self._value("cudaEventCreateWithFlags", answer)))

    def copy_in(self, to: Block, source: HostBlock, size_bytes: int, stream: Stream) -> None:
        """Queue a copy to the device."""
        rt = self._enter()
        answer = rt.cudaMemcpyAsync(
            to.address, source.address, size_bytes, self._to_device, stream.handle
        )
        self._check("cudaMemcpyAsync", answer)

    def copy_out(self, to: HostBlock, source: Block, size_bytes: int, stream: Stream) -> None:
        """Queue a copy to the host."""
        rt = self._enter()
        answer = rt.cudaMemcpyAsync(
            to.address, source.address, size_bytes, self._to_host, stream.handle
        )
        self._check("cudaMemcpyAsync", answer)

    def record(self, event: Event, stream: Stream) -> None:
        """Let the event stand for all that is queued on the stream."""
        rt = self._enter()
        self._check("cudaEventRecord", rt.cudaEventRecord(event.handle, stream.handle))

    def hold(self, stream: Stream, event: Event) -> None:
        """Let the stream wait for the event."""
        rt = self._enter()
        self._check("cudaStreamWaitEvent", rt.cudaStreamWaitEvent(stream.handle, event.handle, 0))

    def wait(self, event: Event) -> None:
        """Block the calling thread until the event has come to pass."""
        rt = self._enter()
        self._check("cudaEventSynchronize", rt.cudaEventSynchronize(event.handle))

    def begin_capture(self, stream: Stream) -> None:
        """Record what this thread queues; other threads may call what they like meanwhile."""
        rt = self._enter()
        answer = rt.cudaStreamBeginCapture(stream.handle, self._capture_mode)
        self._check("cudaStreamBeginCapture", answer)

    def end_capture(self, stream: Stream) -> Graph:
        """Make what was recorded executable."""
        rt = self._make_current()
        answer = rt.cudaStreamEndCapture(stream.handle)
        recorded = self._value("cudaStreamEndCapture", answer)
        if not recorded:
            raise CaptureFailed("cudaStreamEndCapture returned no graph")
        try:
            made = self._value("cudaGraphInstantiate", rt.cudaGraphInstantiate(recorded, 0))
        finally:
            self._check("cudaGraphDestroy", rt.cudaGraphDestroy(recorded))
        return self._keep(Graph(made))

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Queue a recorded graph."""
        rt = self._enter()
        self._check("cudaGraphLaunch", rt.cudaGraphLaunch(graph.handle, stream.handle))

    def drop(self, thing: Stream | Event | Graph) -> None:
        """Give a stream, an event or a graph back."""
        rt = self._make_current()
        self._forget(thing)
        if isinstance(thing, Stream):
            self._check("cudaStreamDestroy", rt.cudaStreamDestroy(thing.handle))
        elif isinstance(thing, Event):
            self._check("cudaEventDestroy", rt.cudaEventDestroy(thing.handle))
        else:
            self._check("cudaGraphExecDestroy", rt.cudaGraphExecDestroy(thing.handle))

    def memory_info(self) -> tuple[int, int]:
        """Return the device's free and total bytes, whoever holds the rest."""
        error, free_bytes, total_bytes = self._make_current().cudaMemGetInfo()
        self._check("cudaMemGetInfo", (error,))
        return int(free_bytes), int(total_bytes)

    def close(self) -> None:
        """Give everything back that is left; of a lost device nothing is, and nothing is said."""
        rank = {Graph: 0, Event: 1, Stream: 2}
        for thing in sorted(self._left.values(), key=lambda left: rank.get(type(left), 3)):
            with suppress(EngineError, CaptureFailed):
                if isinstance(thing, Block):
                    self.free(thing)
                else:
                    self.drop(thing)

    # Any: the module has no types.
    def _enter(self) -> Any:
        """Return the runtime, with the device set in this thread, unless another library's is."""
        if getattr(_threads, "device", None) != self._index:
            return self._make_current()
        return self._runtime

    # Any: see _enter.
    def _make_current(self) -> Any:
        """Return the runtime, with the device set in this thread."""
        rt = self._runtime
        self._check("cudaSetDevice", rt.cudaSetDevice(self._index))
        if getattr(_threads, "device", None) is None:
            answer = rt.cudaThreadExchangeStreamCaptureMode(self._capture_mode)
            self._check("cudaThreadExchangeStreamCaptureMode", answer)
        _threads.device = self._index
        return rt

    # Any: the runtime's own values.
    def _check(self, call: str, answer: tuple[Any, ...]) -> None:
        if answer[0]:
            raise self._error(call, answer[0])

    # Any: see _check.
    def _value(self, call: str, answer: tuple[Any, Any]) -> int:
        error, value = answer
        if error:
            raise self._error(call, error)
        return int(value)

    # Any: see _check.
    def _error(self, call: str, error: Any) -> EngineError | CaptureFailed:
        self._runtime.cudaGetLastError()  # or the thread's next call may report it once more
        name, why = self._said(error)
        return error_of(self.device, call, name, why)

    # Any: see _check.
    def _said(self, error: Any) -> tuple[str, str]:
        """Return an error's name and what it means."""
        rt = self._runtime
        name, why = (
            bytes(say(error)[1] or b"").decode()
            for say in (rt.cudaGetErrorName, rt.cudaGetErrorString)
        )
        return name, why

    def _keep(self, thing: _T) -> _T:
        self._left[_key(thing)] = thing
        return thing

    def _forget(self, thing: Block | Stream | Event | Graph) -> None:
        self._left.pop(_key(thing), None)


def _key(thing: Block | Stream | Event | Graph) -> tuple[type, int]:
    return type(thing), thing.address if isinstance(thing, Block) else thing.handle
