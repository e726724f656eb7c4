"""`quarry test`: every test on this machine, with real parts that the tests start themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from enum import StrEnum
from typing import Annotated

import typer

from cli.can_kernel.choice import WISH_VARIABLE, Wish, wish_of
from cli.can_kernel.pytest_run import NO_TESTS, on_socketcan, only_socketcan, run_on_socketcan, worst
from cli.check import CHECKOUT

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Kind(StrEnum):
    """A folder of `tests/`."""

    UNIT = "unit"
    PROPERTY = "property"
    CONTRACT = "contract"
    INTEGRATION = "integration"
    CHAOS = "chaos"
    FUZZ = "fuzz"
    E2E = "e2e"


@app.command("test")
def run_tests(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="KIND [-- PYTEST ARGS]", help=f"Of {', '.join(Kind)}.")
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="Soaks and full matrices too.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Test processes at once.")] = min(
        2, os.cpu_count() or 1
    ),
    no_kernel_can: Annotated[
        bool, typer.Option("--no-kernel-can", help="Leave out the tests on kernel SocketCAN.")
    ] = False,
) -> None:
    """Run the tests. What stands behind `--` goes to pytest: `quarry test unit -- -k merge -x`.

    Those on real SocketCAN run last: on this machine's kernel where it has vcan, else in Debian's
    user-mode Linux, fetched by apt into .cache/can-kernel once.

    Exits 0 when all passed, 1 when one failed, 2 on wrong use. A service that can't be had on this
    machine is a loud skip with its reason; one that can be had and is not there is a failure.
    QUARRY_KERNEL_CAN=off leaves out the tests on SocketCAN, QUARRY_KERNEL_CAN=required makes a skip
    of them a failure.
    """
    # The parser drops the '--' itself, so where pytest's arguments begin is read from argv.
    passed_on = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    kinds = (words or [])[: len(words or []) - len(passed_on)]
    for kind in kinds:
        if kind not in set(Kind):
            sys.stderr.write(f"quarry: there is no kind of test '{kind}'; choose of {', '.join(Kind)}.\n")
            raise typer.Exit(2)
    wish = Wish.OFF if no_kernel_can else wish_of(os.environ.get(WISH_VARIABLE))
    paths = [argument for argument in passed_on if argument.startswith("tests/")]
    folders = [f"tests/{kind}" for kind in kinds] or ([] if paths else ["tests"])
    selection = "not socketcan" if long else "not long and not socketcan"
    command = [
        *(sys.executable, "-P", "-m", "pytest", *folders),
        *(["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []),
        *("-m", selection),
        *passed_on,
    ]
    codes = []
    if kinds or not only_socketcan(paths):
        codes.append(subprocess.run(command, cwd=CHECKOUT, check=False).returncode)
    if on_socketcan(folders or paths):
        codes.append(run_on_socketcan(passed_on, wish, long=long))
    code = worst(codes)
    if code == NO_TESTS:
        sys.stderr.write("quarry: no test was selected; check the kind and what stands behind '--'.\n")
        code = 2
    raise typer.Exit(code)
