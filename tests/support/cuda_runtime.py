"""A stand-in for `cuda.bindings.runtime` over a HostMemory, for machines without a driver.

It shows that `CudaMemory` calls the right functions with the right arguments in the right order;
it shows nothing of CUDA. Constants, enums and handle types are the installed package's, and every
call is checked against the installed function's own signature.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from engines.errors import DeviceFailed, OutOfMemory
from engines.gpu.host import HostMemory
from engines.gpu.memory import Block, CaptureFailed, Event, Graph, HostBlock, Stream

# Any throughout: the bindings have no types, and their answers are tuples of whatever.
Answer = tuple[Any, ...]


def _method(name: str) -> str:
    """Return the name here of a function there: ``cudaFreeHost`` is `_free_host`."""
    return re.sub("([A-Z])", r"_\1", name.removeprefix("cuda")).lower()


class FakeRuntime(ModuleType):
    """The functions of the runtime that CudaMemory may call.

    Args:
        real: the installed module.
        memory: what stands for the device.
        devices: how many there are.
    """

    def __init__(self, real: ModuleType, memory: HostMemory, devices: int = 2) -> None:
        super().__init__("fake of cuda.bindings.runtime")
        self.host = memory
        self.called: list[tuple[str, tuple[Any, ...]]] = []
        self.answers_next: dict[str, Any] = {}
        """By function: what it answers once, having done nothing: an error, or the whole tuple."""
        self.devices_of: list[tuple[str, int]] = []
        """What was made, and on which device."""
        self.capture_modes: dict[int, Any] = {}
        """By thread."""
        self._real = real
        self._devices = devices
        self._thread = threading.local()
        self._blocks: dict[int, Block] = {}
        self._recorded: dict[int, Graph] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not callable(real) or isinstance(real, type):
            return real

        def call(*arguments: Any) -> Answer:
            inspect.signature(real).bind(*arguments)
            self.called.append((name, arguments))
            return self._answer(name, getattr(self, _method(name)), arguments)

        return call

    def _answer(
        self, name: str, function: Callable[..., Answer | None], arguments: tuple[Any, ...]
    ) -> Answer:
        errors = self._real.cudaError_t
        nothing = (None,) * (2 if name == "cudaMemGetInfo" else 1)
        if (given := self.answers_next.pop(name, None)) is not None:
            return given if isinstance(given, tuple) else (given, *nothing)
        try:
            answer = function(*arguments)
        except OutOfMemory:
            return (errors.cudaErrorMemoryAllocation, *nothing)
        except CaptureFailed:
            return (errors.cudaErrorStreamCaptureUnsupported, *nothing)
        except DeviceFailed:
            return (errors.cudaErrorIllegalAddress, *nothing)
        return (errors.cudaSuccess, *(answer or ()))

    def _made(self, what: str) -> None:
        self.devices_of.append((what, self._thread.device))

    def _get_device_count(self) -> Answer:
        return (self._devices,)

    def _set_device(self, device: int) -> None:
        self._thread.device = device

    def _thread_exchange_stream_capture_mode(self, mode: Any) -> Answer:
        self.capture_modes[threading.get_ident()] = mode
        return (self._real.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal,)

    def _get_error_name(self, error: Any) -> Answer:
        return (error.name.encode(),)

    def _get_error_string(self, error: Any) -> Answer:
        said: Answer = self._real.cudaGetErrorString(error)
        return said[1:]

    def _get_last_error(self) -> None:
        return None

    def _host_alloc(self, size: int, flags: int) -> Answer:
        assert flags == self._real.cudaHostAllocPortable
        block = self.host.pinned(size)
        self._blocks[block.address] = block
        return (block.address,)

    def _malloc(self, size: int) -> Answer:
        block = self.host.allocate(size)
        self._blocks[block.address] = block
        self._made("block")
        return (block.address,)

    def _free(self, address: int) -> None:
        block = self._blocks.pop(address)
        assert not isinstance(block, HostBlock)
        self.host.free(block)

    def _free_host(self, address: int) -> None:
        block = self._blocks.pop(address)
        assert isinstance(block, HostBlock)
        self.host.free(block)

    def _stream_create_with_flags(self, flags: int) -> Answer:
        assert flags == self._real.cudaStreamNonBlocking
        self._made("stream")
        return (self._real.cudaStream_t(self.host.stream().handle),)

    def _stream_destroy(self, stream: int) -> None:
        self.host.drop(Stream(stream))

    def _event_create_with_flags(self, flags: int) -> Answer:
        rt = self._real
        assert flags == rt.cudaEventBlockingSync + rt.cudaEventDisableTiming
        self._made("event")
        return (rt.cudaEvent_t(self.host.event().handle),)

    def _event_destroy(self, event: int) -> None:
        self.host.drop(Event(event))

    def _event_record(self, event: int, stream: int) -> None:
        self.host.record(Event(event), Stream(stream))

    def _event_synchronize(self, event: int) -> None:
        self.host.wait(Event(event))

    def _stream_wait_event(self, stream: int, event: int, flags: int) -> None:
        assert flags == 0
        self.host.hold(Stream(stream), Event(event))

    def _memcpy_async(self, to: int, source: int, size: int, kind: Any, stream: int) -> None:
        target, given = self._blocks[to], self._blocks[source]
        if isinstance(target, HostBlock):
            assert kind is self._real.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self.host.copy_out(target, given, size, Stream(stream))
        else:
            assert kind is self._real.cudaMemcpyKind.cudaMemcpyHostToDevice
            assert isinstance(given, HostBlock)
            self.host.copy_in(target, given, size, Stream(stream))

    def _stream_begin_capture(self, stream: int, mode: Any) -> None:
        assert mode is self._real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.host.begin_capture(Stream(stream))

    def _stream_end_capture(self, stream: int) -> Answer:
        graph = self.host.end_capture(Stream(stream))
        self._recorded[graph.handle] = graph
        return (self._real.cudaGraph_t(graph.handle),)

    def _graph_instantiate(self, graph: int, flags: int) -> Answer:
        assert flags == 0
        return (self._real.cudaGraphExec_t(self._recorded[graph].handle),)

    def _graph_destroy(self, graph: int) -> None:
        del self._recorded[graph]

    def _graph_exec_destroy(self, graph: int) -> None:
        self.host.drop(Graph(graph))

    def _graph_launch(self, graph: int, stream: int) -> None:
        self.host.launch(Graph(graph), Stream(stream))

    def _mem_get_info(self) -> Answer:
        return self.host.memory_info()
