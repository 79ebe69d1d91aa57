from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo import picture

PIXELS = st.lists(st.integers(0, 16), min_size=64, max_size=64)


def test_a_picture_is_eight_lines_of_sixteen_characters() -> None:
    lines = picture.draw([0] * 64).split("\n")
    assert lines == [" " * 16] * 8


def test_rows_run_downwards_and_columns_to_the_right() -> None:
    pixels = [0] * 64
    pixels[1] = pixels[8] = 16
    lines = picture.draw(pixels).split("\n")
    assert lines[0] == "  ██" + " " * 12
    assert lines[1] == "██" + " " * 14


def test_the_five_shades_divide_the_range_evenly() -> None:
    drawn = picture.draw([0, 4, 8, 12, 16, *[0] * 59])
    assert drawn.startswith("  ░░▒▒▓▓██")


def test_values_outside_the_range_are_drawn_as_its_ends() -> None:
    assert picture.draw([-3, 99, *[0] * 62]).startswith("  ██")


@pytest.mark.parametrize("count", [0, 63, 65])
def test_another_number_of_pixels_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} pixels given, 64 expected"):
        picture.draw([0] * count)


@given(PIXELS)
def test_brighter_pixels_never_get_a_lighter_shade(pixels: list[int]) -> None:
    drawn = picture.draw(pixels).replace("\n", "")
    shades = [picture.SHADES.index(drawn[2 * n]) for n in range(64)]
    ordered = sorted(zip(pixels, shades, strict=True))
    assert [shade for _, shade in ordered] == sorted(shades)


@given(PIXELS)
def test_plain_shades_draw_the_same_picture(pixels: list[int]) -> None:
    table = str.maketrans(picture.SHADES, picture.PLAIN_SHADES)
    assert picture.draw(pixels).translate(table) == picture.draw(pixels, picture.PLAIN_SHADES)


def test_a_frame_surrounds_the_picture() -> None:
    lines = picture.framed(picture.draw([16] * 64))
    assert lines[0] == "┌" + "─" * 16 + "┐"
    assert lines[1] == "│" + "█" * 16 + "│"
    assert lines[-1] == "└" + "─" * 16 + "┘"
    assert len(lines) == 10


def test_a_plain_frame_is_ascii() -> None:
    drawing = picture.draw([16] * 64, picture.PLAIN_SHADES)
    assert all(line.isascii() for line in picture.framed(drawing, is_plain=True))


@pytest.mark.parametrize(
    ("encoding", "shades"),
    [
        ("utf-8", picture.SHADES),
        ("cp437", picture.SHADES),
        ("ascii", picture.PLAIN_SHADES),
        ("latin-1", picture.PLAIN_SHADES),
        ("no-such-encoding", picture.PLAIN_SHADES),
        (None, picture.PLAIN_SHADES),
    ],
)
def test_shades_are_those_that_a_terminal_can_write(encoding: str | None, shades: str) -> None:
    assert picture.shades_for(encoding) == shades
