"""Which language a client likes best, of those that the office has."""

from __future__ import annotations

import pytest

from control_plane.languages import MOST_RANGES, best_language


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        (None, "en"),
        ("", "en"),
        ("ru", "ru"),
        ("ru-RU,ru;q=0.9,en-US;q=0.8,en;q=0.7", "ru"),
        ("en-US,en;q=0.9,ru;q=0.8", "en"),
        ("de-DE,de;q=0.9,ru;q=0.2,en;q=0.1", "ru"),
        ("de", "en"),
        ("*", "en"),
        ("ru;q=0", "en"),
        ("en;q=0.3, RU ; q=0.4", "ru"),
        ("ru;q=much", "en"),
        ("ru;q=nan", "en"),
        ("ru;q=7", "en"),
        (";;,=,q=1;ru", "en"),
        ("x," * MOST_RANGES + "ru", "en"),
        ("\x00" * 5000, "en"),
    ],
)
def test_accept_language(accept: str | None, best: str) -> None:
    assert best_language(accept) == best
