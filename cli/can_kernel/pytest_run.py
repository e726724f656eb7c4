"""The tests on kernel SocketCAN, as a part of `quarry test`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from cli.can_kernel.choice import WISH_VARIABLE, Wish, choose, is_failure
from cli.can_kernel.guest import Job
from cli.can_kernel.run import look_at_this_machine, prepare
from cli.check import CHECKOUT
from shared.errors import OtaError

FOLDER = "tests/integration/socketcan"
NO_TESTS = 5  # pytest's exit code when none was selected
TIME_OUT_S = 900.0
LONG_TIME_OUT_S = 3600.0


def on_socketcan(paths: Sequence[str]) -> bool:
    """Whether tests on SocketCAN are among what is named: their folder, one above it, or one of them."""
    return any(f"{FOLDER}/".startswith(f"{path.rstrip('/')}/") or path.startswith(FOLDER) for path in paths)


def only_socketcan(paths: Sequence[str]) -> bool:
    """Whether nothing else is named, so that there is no other pytest run."""
    return bool(paths) and all(path.startswith(FOLDER) for path in paths)


def worst(codes: Sequence[int]) -> int:
    """One exit code of several pytest runs: the first failure; "none selected" only if all say so."""
    failures = [code for code in codes if code not in (0, NO_TESTS)]
    if failures:
        return failures[0]
    return NO_TESTS if all(code == NO_TESTS for code in codes) else 0


def pytest_command(passed_on: Sequence[str], *, long: bool, colour: bool) -> list[str]:
    """The pytest run of the tests on SocketCAN: one process, since each costs the guest seconds."""
    paths = [one for one in passed_on if one.startswith(FOLDER)] or [FOLDER]
    others = [one for one in passed_on if not one.startswith("tests/")]
    return [
        *(sys.executable, "-P", "-m", "pytest", *paths),
        # The other rooms' fixtures (PostgreSQL, MQTT) take long to import there.
        *(f"--confcutdir={FOLDER}", "-p", "no:cacheprovider", "-p", "no:xdist"),
        f"--color={'yes' if colour else 'no'}",
        *("-m", "socketcan" if long else "socketcan and not long"),
        *others,
    ]


def run_on_socketcan(passed_on: Sequence[str], wish: Wish, *, long: bool) -> int:
    """Run them; says loudly on stderr what can't be. Returns 0, 1 or NO_TESTS.

    A selection of pytest's that leaves none of them costs no guest.
    """
    command = pytest_command(passed_on, long=long, colour=sys.stdout.isatty())
    if passed_on and not any(one.startswith(FOLDER) for one in passed_on):
        looked = subprocess.run(
            [*command, "--collect-only", "-q"], cwd=CHECKOUT, capture_output=True, check=False
        )
        if looked.returncode == NO_TESTS:
            return NO_TESTS
    if wish is Wish.OFF:
        return tell("SKIPPED", f"left out by --no-kernel-can or {WISH_VARIABLE}=off", failed=False)
    size = shutil.get_terminal_size()
    job = Job(
        command=command,
        cwd=CHECKOUT,
        environment={"COLUMNS": str(size.columns), "LINES": str(size.lines)} | dict(os.environ),
        time_out_s=LONG_TIME_OUT_S if long else TIME_OUT_S,
    )
    try:
        place = prepare(choose(look_at_this_machine(CHECKOUT)), CHECKOUT)
        sys.stderr.write(f"quarry: the tests on kernel SocketCAN, in {place}:\n")
        code = place.run(job)
    except OtaError as error:
        failed = is_failure(error, wish)
        return tell("FAILED" if failed else "SKIPPED", sentence(error), failed=failed)
    if code not in (0, NO_TESTS):
        return tell("FAILED", f"pytest ended with {code} in {place}", failed=True)
    if place.no_isotp is not None:
        failed = is_failure(place.no_isotp, wish)
        what = f"those on the kernel's ISO-TP: {sentence(place.no_isotp)}"
        tell("FAILED" if failed else "SKIPPED", what, failed=failed)
        return 1 if failed else code
    return code


def sentence(error: OtaError) -> str:
    """An error and what to do."""
    return f"{error.message} -- {error.advice}"


def tell(word: str, reason: str, *, failed: bool) -> int:
    """The one loud line of the summary; returns the exit code that belongs to it."""
    sys.stderr.write(f"quarry: {word}: the tests on kernel SocketCAN: {reason}\n")
    return 1 if failed else 0
