"""Heads of requests: what they say, which are infer calls, and that memory changes nothing."""

from __future__ import annotations

import gc
import weakref
from typing import Final
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match, Route

from gateway.http_api.fast.heads import BadHead, Head, Heads, match


def read(*lines: str, heads: Heads | None = None) -> Head:
    """Read a head."""
    return (heads or Heads()).read(block(*lines))


def block(*lines: str) -> bytes:
    """Return the bytes of a head."""
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


INFER: Final = "POST /v2/models/m/infer HTTP/1.1"


def test_a_head_says_what_its_lines_say() -> None:
    head = read(
        INFER,
        "Content-Length: 12 ",
        "Content-Encoding: gzip",
        "Accept-Encoding: br, deflate",
        "Inference-Header-Content-Length: 7",
        "X-Sluice-Timeout-Ms: 30",
        "Expect: 100-Continue",
    )
    assert (head.method, head.http_version, head.target) == ("POST", "1.1", ("m", ""))
    assert (head.length, head.is_chunked, head.is_keep_alive) == (12, False, True)
    assert (head.encoding, head.accepted) == ("gzip", "deflate")
    assert (head.json_length, head.timeout, head.expects_continue) == ("7", "30", True)


def test_what_is_not_said_is_none() -> None:
    head = read(INFER)
    assert (head.length, head.is_chunked, head.expects_continue) == (0, False, False)
    assert (head.encoding, head.accepted, head.json_length, head.timeout) == (None,) * 4
    assert head.header("x") is None
    assert head.header("€") is None


def test_lines_keep_their_order_and_the_first_of_a_name_is_the_header() -> None:
    head = read(INFER, "A: 1", "b: \xfc", "a: 2", "c:")
    assert head.lines == [(b"a", b"1"), (b"b", b"\xfc"), (b"a", b"2"), (b"c", b"")]
    assert [head.header(name) for name in "abc"] == ["1", "ü", ""]


@pytest.mark.parametrize(
    ("version", "connection", "is_keep_alive"),
    [
        ("1.1", "", True),
        ("1.1", "close", False),
        ("1.1", "x, Close", False),
        ("1.1", "keep-alive", True),
        ("1.0", "", False),
        ("1.0", "keep-alive", False),
    ],
)
def test_a_connection_goes_on_as_uvicorn_lets_it(
    version: str, connection: str, is_keep_alive: bool
) -> None:
    lines = [f"connection: {connection}"] if connection else []
    assert read(f"GET / HTTP/{version}", *lines).is_keep_alive is is_keep_alive


@pytest.mark.parametrize(
    "lines",
    [
        ("transfer-encoding: chunked", "transfer-encoding: chunked"),
        ("transfer-encoding: gzip, chunked",),
        ("transfer-encoding: identity",),
        ("transfer-encoding:",),
        ("content-length: 1", "transfer-encoding: chunked"),
    ],
)
def test_a_body_whose_end_could_be_read_in_two_ways_is_refused(lines: tuple[str, ...]) -> None:
    assert read(INFER, "transfer-encoding: Chunked").is_chunked
    with pytest.raises(BadHead):
        read(INFER, *lines)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST /v2/models/m/infer HTTP/1.1\r\n",
        block(INFER) * 2,
        block(INFER, "content-length: 3") + b"abc",
        block(INFER, "content-length: 3") + b"a",
        b"\r\n\r\n",
        block("POST a:1 HTTP/1.1"),
    ],
)
def test_only_exactly_one_head_is_a_head(data: bytes) -> None:
    with pytest.raises(BadHead):
        Heads().read(data)


def test_a_head_is_remembered_by_its_bytes() -> None:
    heads = Heads()
    first = read(INFER, "a: 1", heads=heads)
    assert heads.known.get(block(INFER, "a: 1")) is first
    assert heads.known.get(block(INFER, "a: 2")) is None


def test_memory_is_bounded_in_entries_and_in_their_size() -> None:
    heads = Heads()
    for number in range(5_000):
        read(f"POST /v2/models/m{number}/infer HTTP/1.1", heads=heads)
    assert len(heads.known) <= 1_024
    before = len(heads.known)
    read(INFER, f"a: {'x' * 5_000}", heads=heads)
    assert len(heads.known) == before
    assert heads.known.get(block(INFER, f"a: {'x' * 5_000}")) is None


def test_a_head_that_is_not_kept_is_freed_without_the_garbage_collector() -> None:
    class Watched(Heads):
        """Can be watched, as it has no slots."""

    gc.disable()
    try:
        heads = Watched()
        watch = weakref.ref(heads)
        read(INFER, heads=heads)
        with pytest.raises(BadHead):
            heads.read(b"nonsense\r\n\r\n")
        del heads
        assert watch() is None
    finally:
        gc.enable()


def nothing() -> None:
    """Stand for an endpoint."""


ROUTES: Final = [
    Route("/v2/models/{name}/versions/{version}/infer", nothing, methods=["POST"]),
    Route("/v2/models/{name}/infer", nothing, methods=["POST"]),
]
PIECES: Final = st.sampled_from(
    [
        "v2",
        "models",
        "versions",
        "infer",
        "m",
        "1",
        "",
        "%2F",
        "%41",
        "a%20b",
        "%0A",
        "%ff",
        "?",
        ".",
    ]
)


@given(st.lists(PIECES, min_size=3, max_size=8), st.sampled_from(["/", "/v2/models/"]))
def test_the_same_paths_are_infer_calls_as_the_router_would_take(
    pieces: list[str], begin: str
) -> None:
    url = begin + "/".join(pieces)
    path = unquote(url.partition("?")[0])
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "root_path": ""}
    expected = None
    for route in ROUTES:
        found, child = route.matches(scope)
        if found is Match.FULL:
            params = child["path_params"]
            expected = params["name"], params.get("version", "")
            break
    assert match(url.encode()) == expected
    heads = Heads()
    if "\n" not in url:
        for _ in range(2):
            assert read(f"POST {url} HTTP/1.1", heads=heads).target == expected
        assert read(f"GET {url} HTTP/1.1", heads=heads).target is None
