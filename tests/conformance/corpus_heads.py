"""Calls whose head is particular: timeouts, encodings, metadata, and what no client should send."""

from __future__ import annotations

from typing import Final

from tests.conformance import frames
from tests.conformance.corpus_calls import ROW, infer_data
from tests.conformance.frames import DATA, END_STREAM, FieldList, frame
from tests.conformance.rpc import BASE, SERVICE, Body, Head, Raw, Rpc, message, with_fields
from tests.support.transports import Ask

GOOD: Final = message(infer_data(Ask(model="mlp", inputs=(ROW,), id="1")))
SLOW: Final = message(infer_data(Ask(model="slow", inputs=(ROW,))))
_LIVE: Final = SERVICE + "ServerLive"


def _call(name: str, fields: FieldList, data: bytes = GOOD, limit_s: float = 1.0) -> Rpc:
    body = frame(DATA, END_STREAM, 1, data)
    is_alone = data is SLOW  # so that it executes, and is not queued, when its time is up
    return Rpc(name=name, steps=(Head(fields), Raw(body)), limit_s=limit_s, is_alone=is_alone)


def _plus(*pairs: tuple[str, str]) -> FieldList:
    return BASE + pairs


def rpcs() -> list[Rpc]:
    """Return the calls."""
    return [*_timeouts(), *_types(), *_pseudo(), *_encodings(), *_metadata(), *_refused_fields()]


def _timeouts() -> list[Rpc]:
    good = ("1H", "2M", "3S", "4000m", "5000000u", "99999999n", "99999999H", "00000005S", "100000m")
    passed = ("0n", "0S", "0H")
    wrong = ("", "5", "S", "5s", "5 S", " 5S", "-1S", "+1S", "1.5S", "999999999S", "5SS", "5X", "é")
    return [
        *(_call(f"timeout: {text}", with_fields(grpc_timeout=text)) for text in good),
        *(_call(f"timeout passed: {text}", with_fields(grpc_timeout=text)) for text in passed),
        *(_call(f"timeout wrong: {text!r}", with_fields(grpc_timeout=text)) for text in wrong),
        _call("late: 1 ns", with_fields(grpc_timeout="1n"), SLOW, 3.0),
        _call("late: 1 us", with_fields(grpc_timeout="1u"), SLOW, 3.0),
        _call("late: 50 ms", with_fields(grpc_timeout="50m"), SLOW, 3.0),
        _call("late: 100 ms in u", with_fields(grpc_timeout="100000u"), SLOW, 3.0),
        _call("late: in time", with_fields(grpc_timeout="5S"), SLOW, 3.0),
        _call("timeout: twice", _plus(("grpc-timeout", "9S"), ("grpc-timeout", "8S"))),
        _call(
            "timeout: of a live call", with_fields(__path=_LIVE, grpc_timeout="1S"), message(b"")
        ),
    ]


def _types() -> list[Rpc]:
    types = (
        "application/grpc+proto",
        "application/grpc+json",
        "application/grpc+",
        "application/grpc;charset=utf-8",
        "application/grpc; charset=utf-8",
        "application/grpcx",
        "application/grpc-web",
        "application/grpc-web+proto",
        "APPLICATION/GRPC",
        "application/json",
        "text/plain",
        "application/x-protobuf",
        "",
        None,
    )
    tes = (None, "", "deflate", "trailers, deflate", "Trailers", "gzip")
    return [
        *(_call(f"content-type: {text}", with_fields(content_type=text)) for text in types),
        *(_call(f"te: {text}", with_fields(te=text)) for text in tes),
        _call("user-agent: none", with_fields(user_agent=None)),
        _call("accept: anything", with_fields(accept="*/*")),
    ]


def _pseudo() -> list[Rpc]:
    methods = ("GET", "PUT", "HEAD", "OPTIONS", "post", "", None)
    paths = (
        "",
        "*",
        "/",
        "//",
        "inference.GRPCInferenceService/ServerLive",
        _LIVE + "/",
        _LIVE + "?a=b",
        "/%69nference.GRPCInferenceService/ServerLive",
        "/" + "p" * 3_000,
        None,
    )
    schemes = ("https", "ftp", "", None)
    regular_first = (*BASE[4:], *BASE[:4])
    return [
        *(_call(f"method: {text}", with_fields(__method=text)) for text in methods),
        *(
            _call(f"path: {text and text[:60]}", with_fields(__path=text), message(b""))
            for text in paths
        ),
        *(_call(f"scheme: {text}", with_fields(__scheme=text)) for text in schemes),
        _call("authority: none", with_fields(__authority=None)),
        _call("authority: none but a host", with_fields(__authority=None, host="sluice")),
        _call("authority: and a host", with_fields(host="sluice")),
        _call("authority: empty", with_fields(__authority="")),
        _call("pseudo: after the others", regular_first),
        _call("pseudo: method twice", (BASE[0], *BASE)),
        _call("pseudo: path twice", (BASE[2], *BASE)),
        _call("pseudo: unknown", ((":else", "1"), *BASE)),
        _call("pseudo: of an answer", ((":status", "200"), *BASE)),
    ]


def _encodings() -> list[Rpc]:
    names = ("identity", "gzip", "deflate", "snappy", "zstd", "br", "GZIP", "", "gzip, deflate")
    return [
        *(_call(f"encoding: {text!r}, plain", with_fields(grpc_encoding=text)) for text in names),
        *(_call(f"accepts: {text!r}", with_fields(grpc_accept_encoding=text)) for text in names),
        _call("content-encoding: gzip", with_fields(content_encoding="gzip")),
    ]


def _metadata() -> list[Rpc]:
    many = tuple((f"x-many-{n}", str(n)) for n in range(100))
    fields = {
        "one": (("x-one", "1"),),
        "empty": (("x-empty", ""),),
        "repeated": (("x-more", "1"), ("x-more", "2")),
        "a hundred": many,
        "binary": (("x-bin", "AAECAw=="),),
        "binary without padding": (("x-bin", "AAECAw"),),
        "binary, two in one": (("x-bin", "AAECAw==,BAUG"),),
        "binary, empty": (("x-bin", ""),),
        "binary, repeated": (("x-bin", "AA"), ("x-bin", "AQ")),
        "reserved": (("grpc-else", "1"),),
        "previous attempts": (("grpc-previous-rpc-attempts", "2"),),
        "a trace": (("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),),
        "tags": (("grpc-tags-bin", "AAA"), ("grpc-trace-bin", "AAA")),
        "an id": (("x-request-id", "from-a-header"),),
        "4 KB": (("x-long", "v" * 4_000),),
        "7 KB": (("x-long", "v" * 7_000),),
        "cookies": (("cookie", "a=b"), ("cookie", "c=d")),
        "authorization": (("authorization", "Bearer nobody"),),
        "a length": (("content-length", str(len(GOOD))),),
        "an expectation": (("expect", "100-continue"),),
        "odd names": (("x_a.b-c", "1"), ("9", "2")),
    }
    user = (("x-user-id", "somebody"),)
    split = message(infer_data(Ask(model="split", inputs=(ROW,))))
    return [
        *(_call(f"metadata: {what}", _plus(*pairs)) for what, pairs in fields.items()),
        _call("metadata: the key of a route", _plus(*user), split),
        _call("metadata: the key, twice", _plus(*user, ("x-user-id", "another")), split),
        Rpc(
            name="metadata: in a CONTINUATION",
            steps=(Head(_plus(("x-a", "b")), cut=40), Body(GOOD)),
        ),
        Rpc(
            name="metadata: an empty CONTINUATION",
            steps=(Head(BASE, cut=0), Body(GOOD)),
        ),
    ]


def _refused_fields() -> list[Rpc]:
    fields = {
        "a capital letter": (("X-One", "1"),),
        "connection": (("connection", "close"),),
        "keep-alive": (("keep-alive", "5"),),
        "transfer-encoding": (("transfer-encoding", "chunked"),),
        "upgrade": (("upgrade", "h2c"),),
        "proxy-connection": (("proxy-connection", "a"),),
        "an empty name": (("", "1"),),
        "a space in a name": (("x one", "1"),),
        "a colon in a name": (("x:one", "1"),),
        "a line feed in a value": (("x-one", "1\n2"),),
        "a NUL in a value": (("x-one", "1\0"),),
        "byte over 127 in a value": (("x-one", "\xff"),),
        "space round a value": (("x-one", " 1 "),),
        "a length that is too small": (("content-length", "3"),),
        "a length that is too large": (("content-length", "100000"),),
        "a length that is no number": (("content-length", "many"),),
        "binary that is none": (("x-bin", "%%%"),),
        "40 KB": (("x-long", "v" * 40_000),),
        "40 KB in many": tuple((f"x-{n}", "v" * 100) for n in range(400)),
    }
    found = []
    for what, pairs in fields.items():
        head = Head(_plus(*pairs)) if "40 KB" not in what else Head(_plus(*pairs), cut=10_000)
        if "40 KB" in what:
            found.append(_long(f"field: {what}", _plus(*pairs)))
        else:
            body = Raw(frame(DATA, END_STREAM, 1, GOOD))
            found.append(Rpc(name=f"field: {what}", steps=(head, body), limit_s=1.0))
    return found


def _long(name: str, fields: FieldList) -> Rpc:
    """Return a call whose head takes several frames."""
    block = frames.literals(fields)
    parts = [block[start : start + 16_000] for start in range(0, len(block), 16_000)]
    kinds = [frames.HEADERS] + [frames.CONTINUATION] * (len(parts) - 1)
    data = b"".join(
        frame(kind, frames.END_HEADERS if part is parts[-1] else 0, 1, part)
        for kind, part in zip(kinds, parts, strict=True)
    )
    return Rpc(name=name, steps=(Raw(data), Raw(frame(DATA, END_STREAM, 1, GOOD))), limit_s=1.0)
