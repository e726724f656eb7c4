"""One target under atheris, in a process of its own, which libFuzzer ends: 0 well, else a find.

python -P tests/fuzz/run_target.py TARGET [LIBFUZZER'S ARGUMENTS] CORPUS
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["firmware_flashers", "shared"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
