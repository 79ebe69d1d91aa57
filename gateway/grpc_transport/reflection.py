"""grpc.reflection for our transport: which services there are, and the files that describe them.

Knows the descriptors that protobuf holds in this process and the transport's calls; no service in
particular. v1alpha is what grpcio's servicer speaks, and its answers are ours to the byte. v1 has
the same messages under another name, so both names are served by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from gateway.grpc_transport.call import Call
from gateway.grpc_transport.head import Method, Raw
from gateway.grpc_transport.health import unexpected

SERVICE: Final[str] = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
SERVICE_V1: Final = "grpc.reflection.v1.ServerReflection"

_UNKNOWN: Final = 2
_INVALID: Final = (3, "invalid argument")
_NOT_FOUND: Final = (5, "not found")

_Descriptor = Any  # Any: what protobuf's descriptor pool holds is not typed
_Request = Any  # Any: generated without types here
_Answer = Any  # Any: as above


def methods(names: Iterable[str]) -> Mapping[str, Method]:
    """Return the methods of both versions; `names` are the services to list."""
    reflection = Reflection(names)

    def start(call: Call) -> Callable[[Raw | None], None]:
        return lambda message: _converse(call, reflection, message)

    method = Method(start, is_streaming=True)
    return {f"/{name}/ServerReflectionInfo": method for name in (SERVICE, SERVICE_V1)}


def _converse(call: Call, reflection: Reflection, message: Raw | None) -> None:
    if call.is_done:
        return
    if message is None:
        call.finish()
        return
    try:
        answer = reflection.answer(bytes(message))
    except DecodeError as exc:
        call.fail(_UNKNOWN, unexpected(exc))
    else:
        call.send(answer)


class Reflection:
    """Answers questions about the descriptors of this process.

    Args:
        names: full names of the services to list.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)
        self._pool = descriptor_pool.Default()
        self._asked: Mapping[str, Callable[[_Request, _Answer], None]] = {
            "file_by_filename": self._file_by_filename,
            "file_containing_symbol": self._file_containing_symbol,
            "file_containing_extension": self._file_containing_extension,
            "all_extension_numbers_of_type": self._extension_numbers,
            "list_services": self._list_services,
        }

    def answer(self, message: bytes) -> bytes:
        """Return the answer to one request; raises DecodeError if it is none."""
        request = reflection_pb2.ServerReflectionRequest.FromString(message)
        answer = reflection_pb2.ServerReflectionResponse(original_request=request)
        asked = request.WhichOneof("message_request")
        if asked is None:
            _set_error(answer, _INVALID)
        else:
            try:
                self._asked[asked](request, answer)
            except KeyError:  # how the pool says that it does not know a name
                _set_error(answer, _NOT_FOUND)
        data: bytes = answer.SerializeToString()
        return data

    def _file_by_filename(self, request: _Request, answer: _Answer) -> None:
        _describe(self._pool.FindFileByName(request.file_by_filename), answer)

    def _file_containing_symbol(self, request: _Request, answer: _Answer) -> None:
        _describe(self._pool.FindFileContainingSymbol(request.file_containing_symbol), answer)

    def _file_containing_extension(self, request: _Request, answer: _Answer) -> None:
        asked = request.file_containing_extension
        extended = self._pool.FindMessageTypeByName(asked.containing_type)
        extension = self._pool.FindExtensionByNumber(extended, asked.extension_number)
        _describe(self._pool.FindFileContainingSymbol(extension.full_name), answer)

    def _extension_numbers(self, request: _Request, answer: _Answer) -> None:
        extended = self._pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
        numbers = sorted(found.number for found in self._pool.FindAllExtensions(extended))
        response = answer.all_extension_numbers_response
        response.base_type_name = extended.full_name
        response.extension_number.extend(numbers)

    def _list_services(self, _: _Request, answer: _Answer) -> None:
        answer.list_services_response.SetInParent()
        for name in self._names:
            answer.list_services_response.service.add(name=name)


def _set_error(answer: _Answer, error: tuple[int, str]) -> None:
    answer.error_response.error_code, answer.error_response.error_message = error


def _describe(file: _Descriptor, answer: _Answer) -> None:
    """Put a file and all that it imports into an answer, the file first."""
    found: dict[str, _Descriptor] = {}
    _collect(file, found)
    for descriptor in found.values():
        proto = descriptor_pb2.FileDescriptorProto()
        descriptor.CopyToProto(proto)
        answer.file_descriptor_response.file_descriptor_proto.append(proto.SerializeToString())


def _collect(file: _Descriptor, found: dict[str, _Descriptor]) -> None:
    """Collect a file and its imports; imports cannot go round in a circle."""
    found[file.name] = file
    for imported in file.dependencies:
        if imported.name not in found:
            _collect(imported, found)
