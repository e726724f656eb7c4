"""Parsers under a fuzzer that is guided by coverage: nothing but the promised errors, for any bytes.

Bounded in runs and time. A find is shown with its input; `run_target.py TARGET FILE` repeats it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import SEEDS, TARGETS

RUNNER = Path(__file__).with_name("run_target.py")
MOST_RUNS = {"isotp": 200_000, "uds": 200_000, "images": 200_000, "profile": 60_000}
MOST_S = 60
MOST_INPUT_BYTES = 4096


def seed_corpus(target: str, folder: Path) -> Path:
    """The seeds as files."""
    folder.mkdir()
    for number, seed in enumerate(SEEDS[target]):
        (folder / f"seed-{number}").write_bytes(seed)
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_pass(target: str) -> None:
    for seed in SEEDS[target]:
        TARGETS[target](seed)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_the_promised_errors(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this Python or machine; hypothesis tries the same targets")
    done = subprocess.run(
        [
            *(sys.executable, "-P", str(RUNNER), target),
            *(f"-runs={MOST_RUNS[target]}", f"-max_total_time={MOST_S}", f"-max_len={MOST_INPUT_BYTES}"),
            *("-seed=1", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"),
            f"-artifact_prefix={tmp_path}/",
            str(seed_corpus(target, tmp_path / "corpus")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=MOST_S + 50,
        check=False,
    )
    finds = {one.name: one.read_bytes().hex() for one in tmp_path.iterdir() if one.is_file()}
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\n{finds}"
    assert "stat::number_of_executed_units" in done.stderr
