"""ModelInferRequest: the decoder by hand and protobuf's say the same of any bytes, twice over.

Each input is decoded as it stands, again now that it may have been remembered, and then with an id
and with raw contents put behind it, which must not disturb what is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from engines.errors import InvalidInput
from engines.tensors import DATATYPES
from gateway.errors import MalformedRequest, PayloadTooLarge
from gateway.grpc_api import codec, wire
from gateway.request import InferRequest
from tests.support.transports import Ask, Given, infer_message

CALLERS_FAULT: Final = (MalformedRequest, InvalidInput, PayloadTooLarge)
LATER_FIELDS: Final = (b"", b"", b"\x1a\x02ab", b"\x1a\x01\xff", b"\x3a\x04abcd", b"\x12\x012")
WORDS: Final = (
    *(datatype.encode() for datatype in DATATYPES),
    b"\x0a\x01m",
    b"\x12\x011",
    b"\x1a\x017",
    b"\x22\x00",
    b"\x2a\x05\x0a\x01x\x12\x00",
    b"\x32\x03\x0a\x01y",
    b"\x3a\x04\x00\x00\x00\x00",
    b"\x3a\x84\x80\x00",
    b"\x1a\x02\x01\x02",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"shared_memory_region",
    b"classification",
)


def seeds() -> list[bytes]:
    """Return a call of each datatype, raw and typed, with and without what is optional."""
    made = []
    for datatype in DATATYPES:
        elements: list[object] = [b"a", b"bc"] if datatype == "BYTES" else [1, 0]
        given = Given(name="x", datatype=datatype, shape=(1, 2), elements=elements)
        for ask in (
            Ask(model="m", inputs=(given,)),
            Ask(
                model="m",
                version="2",
                id="id-7",
                inputs=(given, given),
                outputs=("y", "z"),
                parameters={"b": True, "i": -1, "f": 0.5, "s": "text"},
            ),
        ):
            made += [
                infer_message(ask, is_raw=is_raw).SerializeToString() for is_raw in (True, False)
            ]
    made.append(b"\x1a\x03abc" + made[0])
    return made


def one(data: bytes) -> None:
    """Compare the decoders on an input and on what it may be continued with."""
    for more in LATER_FIELDS:
        compare(data + more)


def compare(data: bytes) -> None:
    """Decode with both."""
    by_hand, by_protobuf = outcome(wire.decode, data), outcome(codec.decode, data)
    assert by_hand == by_protobuf, f"{by_hand!r} is not {by_protobuf!r} for {data!r}"


def outcome(decode: Callable[[bytes], InferRequest], data: bytes) -> tuple[object, ...]:
    """Return what a decoder makes of a message, comparable: a request's parts, or its error."""
    try:
        request = decode(data)
    except CALLERS_FAULT as error:
        return type(error), str(error)
    return (
        request.name,
        request.version,
        request.id,
        repr(sorted(request.parameters.items())),
        tuple((t.name, t.datatype, tuple(t.shape), bytes(t.data)) for t in request.inputs),
        request.outputs,
        request.protocol,
    )
