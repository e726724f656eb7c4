"""The README's table of checks is true: every refusal is in it, with tests that exist."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from shared.trust.document import TrustError, WrongImage
from shared.trust.uptane import errors
from shared.trust.uptane.errors import Attack, MetadataRefused

HERE = Path(__file__).parent
README = Path(inspect.getfile(errors)).parents[1] / "README.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in README.read_text().split("## Checks")[1].split("## Time")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| check")
]
REFUSALS: dict[str, type[TrustError]] = {
    one.code: one
    for one in [*vars(errors).values(), WrongImage]
    if isinstance(one, type) and issubclass(one, TrustError) and one not in {TrustError, MetadataRefused}
}


def test_every_refusal_is_in_the_table() -> None:
    assert {row[2].strip("`") for row in ROWS} - {"(recovers)"} == set(REFUSALS)


def test_every_attack_of_the_standard_has_a_row() -> None:
    # Time is no matter of pure checks: whoever drives them refuses what comes too slowly.
    assert {row[3] for row in ROWS} - {""} == set(Attack) - {Attack.SLOW_RETRIEVAL}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_is_true(row: list[str]) -> None:
    _, _, code, attack, tests = row
    refusal = REFUSALS.get(code.strip("`"))
    if refusal is not None and issubclass(refusal, MetadataRefused):
        assert attack == refusal.attack
    names = re.findall(r"`(test_\w+)`", tests)
    assert names
    written = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    for name in names:
        assert f"def {name}(" in written
