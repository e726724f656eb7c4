"""kill -9 at every line that writes credentials: the old pair or the new one, never a mismatched one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHILD = Path(__file__).with_name("credentials_child.py")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Any:
    done = subprocess.run(
        [sys.executable, "-P", str(CHILD), str(tmp_path_factory.mktemp("credentials"))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("writer", ["enrolment", "renewal", "next key"])
def test_a_kill_at_any_line_leaves_the_old_or_the_new(said: Any, writer: str) -> None:
    kills = said[writer]
    assert len(kills) > 10
    # Once it is new it stays new: the rename is the one moment.
    turned = kills.index("new")
    assert turned > 0
    assert kills == ["old"] * turned + ["new"] * (len(kills) - turned)
