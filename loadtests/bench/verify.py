"""Asks one question with a real client before a case is measured, and checks the numbers.

h2load sees HTTP's status only and wrk does not look at bodies: a server that answers nonsense, or
gRPC errors, would look fast.
"""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from typing import Any

import grpc

from loadtests import asking
from loadtests.bench.generator import Where
from loadtests.bench.questions import ModelFiles, Question, WrongAnswer, check
from loadtests.payloads import HEADER_LENGTH

_LIMIT_S = 30.0
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))


def verify(asked: Question, where: Where, files: ModelFiles) -> None:
    """Ask once; return if the answer is right.

    Raises:
        WrongAnswer: it is not, or there is none.
    """
    if asked.is_grpc:
        check(asked, _ask_grpc(asked, where), None, files)
    else:
        answer, json_bytes = _ask_http(asked, where)
        check(asked, answer, json_bytes, files)


def _ask_http(asked: Question, where: Where) -> tuple[bytes, int | None]:
    answer, length = post(where, asked.path, asked.body, asked.headers)
    return answer, int(length) if length is not None else None


def post(where: Where, path: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, str | None]:
    """POST once; return the body and the length of its JSON header.

    Raises:
        WrongAnswer: no answer, or another status than 200.
    """
    host, port = where.address
    connection: http.client.HTTPConnection
    if where.certificate is not None:
        context = asking.unverified()
        connection = http.client.HTTPSConnection(host, port, timeout=_LIMIT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_LIMIT_S)
    with contextlib.closing(connection):
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise WrongAnswer(f"{where.url}{path}: {exc!r}") from exc
        if answer.status != http.client.OK:
            raise WrongAnswer(f"{where.url}{path}: {answer.status}: {content[:300]!r}")
        return content, answer.getheader(HEADER_LENGTH)


def _ask_grpc(asked: Question, where: Where) -> bytes:
    # Any: bytes in, bytes out; grpcio's types want a serializer to tell.
    with channel(where) as open_channel:
        try:
            if asked.protocol == "stream":
                stream: Any = open_channel.stream_stream(asked.path)
                answers: list[bytes] = list(stream(iter([asked.body]), timeout=_LIMIT_S))
                return answers[0]
            unary: Any = open_channel.unary_unary(asked.path)
            answer: bytes = unary(asked.body, timeout=_LIMIT_S)
        except grpc.RpcError as exc:
            raise WrongAnswer(f"{asked.path}: {exc}") from exc
        return answer


@contextlib.contextmanager
def channel(where: Where) -> Iterator[grpc.Channel]:
    """Open a channel of the synchronous client."""
    host, port = where.address
    target = f"{host}:{port}"
    if where.certificate is None:
        made = grpc.insecure_channel(target, options=_OPTIONS)
    else:
        roots = where.certificate.read_bytes()
        credentials = grpc.ssl_channel_credentials(root_certificates=roots)
        made = grpc.secure_channel(target, credentials, options=_OPTIONS)
    with made as open_channel:
        yield open_channel
