"""Streams: ModelStreamInfer, health's Watch, reflection; how they begin, go on and end."""

from __future__ import annotations

import gzip
from typing import Final

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.conformance import frames
from tests.conformance.corpus_calls import HEALTH, REFLECTION, infer_data
from tests.conformance.frames import FieldList
from tests.conformance.rpc import (
    SERVICE,
    Answered,
    Body,
    Head,
    Raw,
    Rest,
    Rpc,
    Step,
    message,
    with_fields,
)
from tests.support.served import FAIL_ON
from tests.support.transports import Ask, Given

_PATH: Final = SERVICE + "ModelStreamInfer"
_STREAM: Final = with_fields(__path=_PATH)


def _row(request_id: str, model: str = "echo_fp32", value: float = 1.0) -> bytes:
    given = Given(name="x", datatype="FP32", shape=(1, 4), elements=[value] * 4)
    return infer_data(Ask(model=model, inputs=(given,), id=request_id))


def _call(name: str, *steps: Step, fields: FieldList = _STREAM, limit_s: float = 3.0) -> Rpc:
    is_alone = any(word in name for word in ("failing", "late", "slow", "under way"))
    return Rpc(
        name=f"stream: {name}", steps=(Head(fields), *steps), limit_s=limit_s, is_alone=is_alone
    )


def rpcs() -> list[Rpc]:
    """Return the calls."""
    return [*_whole(), *_broken(), *_ended(), *_watches(), *_split()]


def _whole() -> list[Rpc]:
    one = message(_row("1"))
    ten = b"".join(message(_row(str(n), value=float(n))) for n in range(10))
    many = b"".join(message(_row(str(n))) for n in range(1_500))
    mixed = message(_row("slow", "slow")) + message(_row("quick"))
    zipped = message(gzip.compress(_row("1"), mtime=0), 1)
    encoded = with_fields(__path=_PATH, grpc_encoding="gzip")
    return [
        Rpc(name="stream: nothing", steps=(Head(_STREAM, end=True),)),
        _call("nothing, by an empty frame", Body(b"")),
        _call("one", Body(one)),
        _call("one, half closed later", Body(one, end=False), Answered(5), Body(b"")),
        _call("ten", Body(ten)),
        _call("ten, a byte a frame", Body(ten, piece=1)),
        _call("ten, three bytes a frame", Body(ten, piece=3)),
        _call("more than are taken at once", Body(many), limit_s=10.0),
        _call("a slow one first", Body(mixed)),
        _call("gzip", Body(zipped), fields=encoded),
        _call("gzip, then plain", Body(zipped + one), fields=encoded),
        _call(
            "to and fro",
            Body(one, end=False),
            Answered(5),
            Body(one, end=False),
            Rest(0.1),
            Body(one),
        ),
        _call("a deadline in time", Body(ten), fields=with_fields(__path=_PATH, grpc_timeout="9S")),
        _call("metadata", Body(one), fields=with_fields(__path=_PATH, x_request_id="a-header")),
    ]


def _broken() -> list[Rpc]:
    one, wrong = message(_row("1")), message(b"\xff")
    unknown = message(_row("2", "nobody"))
    failing = message(_row("3", "failing", float(FAIL_ON)))
    encoded = with_fields(__path=_PATH, grpc_encoding="gzip")
    unsupported = with_fields(__path=_PATH, grpc_encoding="snappy")
    return [
        _call("a malformed one", Body(wrong)),
        _call("an empty one", Body(message(b""))),
        _call("a malformed one between", Body(one + wrong + one)),
        _call("an unknown model between", Body(one + unknown + one)),
        _call("a failing one between", Body(one + failing + one)),
        _call("all wrong, one failing", Body(wrong + unknown + failing)),
        _call("the prefix cut off", Body(one + one[:3])),
        _call("the message cut off", Body(one + one[:-1])),
        _call("flag without an encoding", Body(message(_row("1"), 1))),
        _call(
            "flag without an encoding, after one",
            Body(one, end=False),
            Answered(5),
            Body(message(b"", 1)),
        ),
        _call("flag 2", Body(message(_row("1"), 2))),
        _call("noise for gzip", Body(message(b"noise", 1)), fields=encoded),
        _call("an unknown encoding", Body(message(b"noise", 1)), fields=unsupported),
        _call("a length over the limit", Body(b"\0\x7f\xff\xff\xff", end=False)),
        _call(
            "a length over the limit, after one",
            Body(one, end=False),
            Answered(5),
            Body(b"\0\x7f\xff\xff\xff"),
        ),
    ]


def _ended() -> list[Rpc]:
    one, slow = message(_row("1")), message(_row("2", "slow"))
    late = with_fields(__path=_PATH, grpc_timeout="100m")
    gone = Raw(frames.reset(1))
    return [
        _call("reset at once", gone, limit_s=0.3),
        _call("reset after an answer", Body(one, end=False), Answered(5), gone, limit_s=0.3),
        _call("reset while one is under way", Body(slow, end=False), Rest(0.05), gone, limit_s=0.5),
        _call("late with one under way", Body(slow), fields=late),
        _call("late after one", Body(one + slow), fields=late),
        _call("late and idle", Body(one, end=False), fields=late),
        _call("late without a message", fields=late),
        _call(
            "the deadline has passed",
            Body(one),
            fields=with_fields(__path=_PATH, grpc_timeout="0n"),
        ),
        _call("never half closed", Body(one, end=False), limit_s=0.5),
        _call("unknown method", Body(one), fields=with_fields(__path=SERVICE + "ModelStream")),
        _call(
            "wrong content-type", Body(one), fields=with_fields(__path=_PATH, content_type="text/x")
        ),
    ]


def _watches() -> list[Rpc]:
    ours = message(health_pb2.HealthCheckRequest(service=SERVICE.strip("/")).SerializeToString())
    nobody = message(health_pb2.HealthCheckRequest(service="someone.Else").SerializeToString())
    watch = with_fields(__path=HEALTH + "Watch")
    late = with_fields(__path=HEALTH + "Watch", grpc_timeout="100m")
    listed = reflection_pb2.ServerReflectionRequest(list_services="")
    asked = message(listed.SerializeToString())
    reflection = with_fields(__path=REFLECTION)
    return [
        _call("watch the service", Body(ours), fields=watch, limit_s=0.3),
        _call("watch the server", Body(message(b"")), fields=watch, limit_s=0.3),
        _call("watch nobody", Body(nobody), fields=watch, limit_s=0.3),
        _call(
            "watch and cancel",
            Body(ours),
            Answered(5),
            Raw(frames.reset(1)),
            fields=watch,
            limit_s=0.3,
        ),
        _call("watch until late", Body(ours), fields=late, limit_s=1.0),
        _call("watch, not half closed", Body(ours, end=False), fields=watch, limit_s=0.3),
        _call("watch two", Body(ours + nobody), fields=watch, limit_s=0.3),
        _call("reflect twice", Body(asked * 2), fields=reflection),
        _call(
            "reflect to and fro",
            Body(asked, end=False),
            Answered(5),
            Body(asked),
            fields=reflection,
        ),
        _call("reflect, then malformed", Body(asked + message(b"\xff")), fields=reflection),
        _call("reflect nothing", Body(b""), fields=reflection),
    ]


def _split() -> list[Rpc]:
    """Cut two messages at every byte of theirs into two frames."""
    two = message(_row("1")) + message(_row("2", value=2.0))
    return [
        _call(f"two frames: byte {n}", Body(two[:n], end=False), Body(two[n:]))
        for n in range(1, len(two), 3)
    ]
