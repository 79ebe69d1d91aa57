"""The table of stream states, and the queue of a stream."""

from __future__ import annotations

import pytest

from gateway.http2.stream import REACTIONS, OutputQueue, Reaction, State
from tests.support.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    RST,
    WINDOW,
    Client,
    frame,
    rst,
    window,
)


def in_state(state: State) -> tuple[Client, int]:
    """Return a client of a connection with a stream in the state, and the stream's number."""
    client = Client()
    if state is State.IDLE:
        return client, 1
    client.send(client.request(1, is_last=state in (State.HALF_CLOSED, State.CLOSED)))
    connection = client.connection
    if state is State.RESET:
        connection.fault(client.heard[1], 8)  # type: ignore[arg-type]  # a plain number will do
    if state is State.CLOSED:
        connection.send_end(client.heard[1], b"\x88")
    client.read()
    assert connection.state_of(1) is state
    return client, 1


def send(client: Client, kind: int, stream_id: int) -> None:
    client.send(
        {
            DATA: lambda: frame(DATA, 0, stream_id, b"abc"),
            HEADERS: lambda: frame(HEADERS, END_HEADERS | END_STREAM, stream_id, client.block()),
            RST: lambda: rst(stream_id),
            WINDOW: lambda: window(stream_id, 10),
        }[kind]()
    )


@pytest.mark.parametrize("kind", [DATA, HEADERS, RST, WINDOW], ids=["DATA", "HEAD", "RST", "WIN"])
@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
def test_the_connection_does_what_the_table_says(state: State, kind: int) -> None:
    client, stream_id = in_state(state)
    send(client, kind, stream_id)
    reaction = REACTIONS[state][kind]
    answers = [(found.kind, found.code) for found in client.read() if found.kind in (RST, GOAWAY)]
    if reaction is Reaction.FAULT:
        assert answers == [(GOAWAY, 1)]
    elif reaction is Reaction.CLOSED_FAULT:
        assert answers == [(GOAWAY, 5)]
    elif reaction is Reaction.RESET:
        assert answers == [(RST, 5)]
    elif (state, kind) == (State.OPEN, HEADERS):
        assert answers == [(RST, 1)], "a second head has pseudo-headers: no trailers"
    else:
        assert answers == []


def test_every_state_says_what_every_frame_of_a_stream_does() -> None:
    assert {state: set(row) for state, row in REACTIONS.items()} == {
        state: {DATA, HEADERS, RST, WINDOW} for state in State
    }


def test_a_queue_is_taken_in_any_portions_without_a_copy() -> None:
    queue = OutputQueue(0)
    source = b"abcdefghij"
    for piece in (source[:3], source[3:4], source[4:]):
        queue.pieces.append(memoryview(piece))
        queue.size_bytes += len(piece)
    out: list[bytes | memoryview] = []
    for size in (2, 3, 0, 4, 1):
        queue.take(size, out)
    assert b"".join(out) == source
    assert all(isinstance(piece, memoryview) for piece in out)
    assert not queue.pieces
    assert queue.size_bytes == 0
