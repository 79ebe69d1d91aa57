"""The page: whole in itself, safe against names, and rendered by a real browser."""

from __future__ import annotations

import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gateway.drift import page
from gateway.drift.report import Report
from tests.support import chromium
from tests.support.drift import mixed_table, normal_table, reference_of, report_of

EVIL = "in.</title><script>alert(1)</script>\"'&"
in_a_browser = pytest.mark.skipif(chromium.CHROMIUM is None, reason="Chromium is not installed")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.open_now: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        if tag != "meta":
            self.open_now.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_now.pop() == tag


def drifting() -> Report:
    reference = reference_of(mixed_table(1, 1_000))
    window = mixed_table(2, 600)
    window["in.age"] = window["in.age"] + 40
    window["in.city"] = np.where(window["in.city"] == "a", "elsewhere", window["in.city"])
    return report_of(reference, window)


def parsed(text: str) -> _Tags:
    tags = _Tags()
    tags.feed(text)
    tags.close()
    assert tags.open_now == []
    return tags


def test_the_page_is_whole_and_asks_nobody_for_anything() -> None:
    text = page.page(drifting())
    tags = parsed(text)
    assert not {"script", "link", "img", "iframe"} & set(tags.opened)
    assert not [value for name, value in tags.attributes if name in ("src", "href", "style")]
    assert "url(" not in text
    assert "@import" not in text
    assert 'lang="en"' in text
    assert "prefers-color-scheme:dark" in text


def test_every_column_has_a_row_and_a_picture_that_says_in_words_what_it_shows() -> None:
    text = page.page(drifting())
    assert text.count('<th scope="row">') == 8
    titles = re.findall(r"<svg [^>]*role=\"img\"[^>]*><title>([^<]+)</title>", text)
    assert len(titles) == 8
    assert titles[0].startswith("Histograms of in.age: psi ")
    assert titles[0].endswith("drift")
    assert "DRIFT (data): 2 of 6 features, 0 of 2 outputs" in text
    assert ">else…</text>" in text


def test_names_and_notes_of_strangers_stay_text() -> None:
    table = {EVIL: np.random.default_rng(1).normal(size=200)}
    labels = np.array(["<b>bold</b>"] * 100 + ["&amp;"] * 100, np.object_)
    reference = reference_of(table | {"in.words": labels}, source="<i>file</i>")
    text = page.page(report_of(reference, table | {"in.words": labels}, model=EVIL))
    tags = parsed(text)
    assert not {"script", "b", "i"} & set(tags.opened)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_page_of_very_many_columns_has_a_bounded_number_of_pictures() -> None:
    reference = reference_of(normal_table(1, 40, 300))
    text = page.page(report_of(reference, normal_table(2, 40, 300)))
    assert text.count("<svg ") == page.MAX_PICTURES
    assert "100 more columns are in the table only." in text
    assert text.count('<th scope="row">') == 300


def test_a_window_that_was_not_judged_has_a_page_too() -> None:
    reference = reference_of(normal_table(1, 100, 2))
    text = page.page(report_of(reference, normal_table(2, 5, 2)))
    parsed(text)
    assert "NOT JUDGED: 5 rows are too few" in text


@in_a_browser
def test_a_browser_shows_the_page_in_light_and_in_dark(tmp_path: Path) -> None:
    path = tmp_path / "drift.html"
    path.write_text(page.page(drifting()), encoding="utf-8")
    document = chromium.dumped(path, tmp_path / "profile")
    assert document.count("<svg ") == 8
    assert "DRIFT (data): 2 of 6 features" in document
    colours = {}
    for name, options in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        picture = tmp_path / f"{name}.png"
        chromium.pictured(path, tmp_path / "profile", picture, *options)
        colours[name] = _colours(picture)
        assert len(colours[name]) > 50  # text, areas and outlines, not a blank sheet
    assert _brightness(colours["light"]) > 220
    assert _brightness(colours["dark"]) < 60


def _colours(picture: Path) -> dict[bytes, int]:
    """Return how often each colour is in a PNG of 8-bit RGB or RGBA."""
    raw = picture.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", raw[16:26])
    assert (depth, kind) in {(8, 2), (8, 6)}
    at, packed = 8, b""
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        if raw[at + 4 : at + 8] == b"IDAT":
            packed += raw[at + 8 : at + 8 + size]
        at += size + 12
    channels = 3 if kind == 2 else 4
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, -1)
    pixels = _unfiltered(lines, channels).reshape(height * width, channels)[:, :3]
    found, counts = np.unique(pixels[::7], axis=0, return_counts=True)
    return {colour.tobytes(): int(n) for colour, n in zip(found, counts, strict=True)}


def _unfiltered(
    lines: np.ndarray[tuple[int, int], np.dtype[np.uint8]], channels: int
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Undo PNG's filters, a line at a time."""
    made = np.zeros((len(lines) + 1, lines.shape[1] - 1), np.uint8)
    for n, line in enumerate(lines):
        kind, row, above = int(line[0]), line[1:].astype(np.int32), made[n].astype(np.int32)
        if kind == 2:
            row = row + above
        elif kind:
            for place in range(len(row)):
                left = int(row[place - channels]) if place >= channels else 0
                corner = int(above[place - channels]) if place >= channels else 0
                up = int(above[place])
                row[place] = (int(row[place]) + _predicted(kind, left, up, corner)) & 255
        made[n + 1] = (row & 255).astype(np.uint8)
    return made[1:]


def _predicted(kind: int, left: int, up: int, corner: int) -> int:
    if kind == 1:
        return left
    if kind == 3:
        return (left + up) // 2
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


def _brightness(colours: dict[bytes, int]) -> float:
    """Return the mean of the channels of the most frequent colour."""
    most = max(colours, key=lambda colour: colours[colour])
    return sum(most) / len(most)
