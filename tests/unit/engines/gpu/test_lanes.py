"""A lane's states, the room of its buffers, and where tensors lie in them."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from engines.base import TensorSpec
from engines.errors import InvalidInput, ModelLoadError, OutOfMemory
from engines.gpu.host import HostMemory
from engines.gpu.lanes import ALIGN_BYTES, MAX_ARRANGEMENTS, Lane, Shapes, Side, State, side_of
from engines.gpu.memory import Graph

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
K = TensorSpec(name="k", datatype="INT8", shape=(-1,))
Y = TensorSpec(name="y", datatype="FP64", shape=(-1, 2))

MOVES = ("acquire", "submit", "collect", "fail", "release")
# The table of the module's docstring, once more: a state's successor per move; None: misuse.
TABLE: dict[State, tuple[State | None, ...]] = {
    State.FREE: (State.LEASED, None, None, None, None),
    State.LEASED: (None, State.SUBMITTED, None, State.FAILED, State.FREE),
    State.SUBMITTED: (None, None, State.COLLECTED, State.FAILED, None),
    State.COLLECTED: (None, None, None, State.FAILED, State.FREE),
    State.FAILED: (None, None, None, None, State.FREE),
}


def make_lane(memory: HostMemory, held: ExitStack | None = None) -> Lane:
    sides = side_of("input", (X, K), 4, {}), side_of("output", (Y,), 4, {})
    return Lane(7, memory, *sides, held or ExitStack())


def outputs_of(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {"y": (shapes["x"][0], 2)}


def shapes_of(rows: int) -> dict[str, tuple[int, ...]]:
    return {"x": (rows, 3), "k": (rows,)}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("move", MOVES)
def test_a_lane_goes_where_the_table_says_and_refuses_the_rest(state: State, move: str) -> None:
    lane = make_lane(HostMemory())
    lane.state = state
    expected = TABLE[state][MOVES.index(move)]
    if expected is not None:
        lane.move(move)
        assert lane.state is expected
        return
    with pytest.raises(RuntimeError, match=f"lane 7 is {state.value}: it cannot {move}"):
        lane.move(move)
    assert lane.state is state


def test_room_is_that_of_the_largest_batch_each_tensor_aligned() -> None:
    assert side_of("input", (X, K), 100, {}).size_bytes == 1280 + 256
    assert side_of("input", (X, K), 100, {"x": 5000}).size_bytes == 5120 + 256


def test_a_model_without_a_batch_axis_has_room_for_its_own_shapes() -> None:
    fixed = TensorSpec(name="a", datatype="FP32", shape=(100, 3))
    assert side_of("input", (fixed,), 0, {}).size_bytes == 1280


def test_a_size_that_cannot_be_told_must_be_declared() -> None:
    free = TensorSpec(name="text", datatype="INT64", shape=(-1, -1))
    with pytest.raises(ModelLoadError, match=r"input 'text' has the shape \[-1, -1\].*declared"):
        side_of("input", (free,), 8, {})
    with pytest.raises(ModelLoadError, match="output 'x'"):
        side_of("output", (X,), 0, {})


def test_text_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="BYTES"):
        side_of("input", (TensorSpec(name="t", datatype="BYTES", shape=(-1,)),), 8, {"t": 8})


def test_tensors_lie_one_behind_the_other_at_aligned_places() -> None:
    lane = make_lane(HostMemory())
    arrangement = lane.arrange(shapes_of(3), outputs_of)
    start = lane.device_in.address
    assert arrangement.input_addresses == {"x": start, "k": start + ALIGN_BYTES}
    assert arrangement.copied_in_bytes == ALIGN_BYTES + 3
    assert arrangement.copied_out_bytes == 3 * 2 * 8
    assert arrangement.output_addresses == {"y": lane.device_out.address}


def test_the_arrays_are_views_of_the_pinned_blocks_and_the_answers_read_only() -> None:
    lane = make_lane(HostMemory())
    arrangement = lane.arrange(shapes_of(2), outputs_of)
    arrangement.inputs["x"][...] = 1.5
    arrangement.inputs["k"][...] = 9
    whole = lane.pinned_in.array(np.dtype("u1"), (lane.pinned_in.size_bytes,))
    assert whole[:24].tobytes() == np.full(6, 1.5, "<f4").tobytes()
    assert whole[ALIGN_BYTES : ALIGN_BYTES + 2].tolist() == [9, 9]
    assert arrangement.outputs["y"].shape == (2, 2)
    with pytest.raises(ValueError, match="read-only"):
        arrangement.outputs["y"][0, 0] = 1


def test_shapes_that_were_seen_are_not_arranged_again() -> None:
    lane = make_lane(HostMemory())
    first = lane.arrange(shapes_of(2), outputs_of)
    assert lane.arrange(shapes_of(3), outputs_of) is not first
    assert lane.arrange({"k": (2,), "x": (2, 3)}, outputs_of) is first


def test_a_tensor_over_its_room_is_refused_by_name_and_limit() -> None:
    lane = make_lane(HostMemory())
    lane.arrange(shapes_of(4), outputs_of)
    with pytest.raises(InvalidInput, match=r"input 'x'.*\[5, 3\] takes 60 .*limit is 48"):
        lane.arrange(shapes_of(5), outputs_of)
    with pytest.raises(InvalidInput, match=r"output 'y'.*limit is 64"):
        lane.arrange(shapes_of(3), lambda shapes: {"y": (3, 3)})
    with pytest.raises(InvalidInput, match="input 'k' is missing"):
        lane.arrange({"x": (1, 3)}, outputs_of)
    with pytest.raises(InvalidInput, match="output 'y' is missing"):
        lane.arrange(shapes_of(1), lambda shapes: {})


def test_empty_tensors_have_a_place() -> None:
    lane = make_lane(HostMemory())
    arrangement = lane.arrange({"x": (0, 3), "k": (0,)}, outputs_of)
    assert arrangement.copied_in_bytes == arrangement.copied_out_bytes == 0
    assert arrangement.inputs["x"].shape == (0, 3)


def test_a_side_without_tensors_still_has_a_block() -> None:
    assert Side("output", ()).size_bytes == ALIGN_BYTES


def test_of_too_many_shapes_those_used_longest_ago_go_and_their_graphs_with_them() -> None:
    memory = HostMemory()
    side = side_of("input", (K,), MAX_ARRANGEMENTS + 1, {})
    lane = Lane(0, memory, side, Side("output", ()), ExitStack())
    stream = memory.stream()

    def recorded(rows: int) -> Graph:
        arrangement = lane.arrange({"k": (rows,)}, lambda shapes: {})
        if arrangement.graph is None:
            memory.begin_capture(stream)
            arrangement.graph = memory.end_capture(stream)
        return arrangement.graph

    graphs = [recorded(rows) for rows in range(MAX_ARRANGEMENTS)]
    assert recorded(0) == graphs[0]  # used again: rows 1 is now the oldest
    newest = recorded(MAX_ARRANGEMENTS)
    assert set(lane.graphs()) == {*graphs, newest} - {graphs[1]}
    assert memory.live().count("Graph") == MAX_ARRANGEMENTS
    assert recorded(0) == graphs[0]
    assert recorded(1) != graphs[1]


def test_what_a_lane_holds_is_given_back_also_when_its_last_buffer_does_not_fit() -> None:
    memory = HostMemory()
    memory.fail_next("pinned", OutOfMemory("host"), after=1)
    with ExitStack() as held:
        with pytest.raises(OutOfMemory):
            make_lane(memory, held)
        assert len(memory.live()) == 3
    assert memory.live() == ()
