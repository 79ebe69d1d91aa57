"""docs/configuration.md says what gateway/config.py does."""

from __future__ import annotations

from tests.support import configuration_reference as reference


def test_the_configuration_page_is_made_from_the_source() -> None:
    assert reference.PAGE.read_text() == reference.page(), (
        "run: python -m tests.support.configuration_reference"
    )


def test_every_field_of_the_page_has_a_meaning() -> None:
    rows = [line for line in reference.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 20
    assert not [row for row in rows if row.rstrip(" |").endswith("`")]
