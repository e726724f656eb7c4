"""The truck's rooms on each Python that gateways have: every module is imported, every unit test runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

OTHERS = [
    python
    for python in ("3.10", "3.11", "3.12", "3.13")
    if python != f"{sys.version_info.major}.{sys.version_info.minor}"
]

pytestmark = pytest.mark.timeout(1800)


def test_jetpack_6_imports_all_of_it(half: Callable[[str], Any]) -> None:
    done = half("3.10").run("-W", "error", "-c", "import stand_ins, sys; print(sys.version_info[:2])")
    assert (done.returncode, done.stdout, done.stderr) == (0, "(3, 10)\n", "")


@pytest.mark.long
@pytest.mark.parametrize("python", OTHERS)
def test_the_unit_tests_pass_on_it(half: Callable[[str], Any], python: str, install: Any) -> None:
    here = half(python)
    install(python, here.tools)
    # The conftest above tests/unit is for rooms that don't run there.
    done = here.run(
        *("-m", "pytest", "-p", "stand_ins", "-p", "no:cacheprovider", "--confcutdir", "tests/unit"),
        *("-q", "-n", "2", "--dist", "loadfile", "-m", "not long and not socketcan"),
        *(f"tests/unit/{room}" for room in ("edge_agent", "shared", "firmware_flashers")),
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 1000
