"""`quarry test`: every test on this machine, with real parts that the tests start themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from enum import StrEnum
from typing import Annotated

import typer

from cli.check import CHECKOUT

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
NO_TESTS = 5


class Kind(StrEnum):
    """A folder of `tests/`."""

    UNIT = "unit"
    PROPERTY = "property"
    CONTRACT = "contract"
    INTEGRATION = "integration"
    CHAOS = "chaos"
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
) -> None:
    """Run the tests. What stands behind `--` goes to pytest: `quarry test unit -- -k merge -x`.

    Exits 0 when all passed, 1 when one failed, 2 on wrong use. A service that can't be had on this
    machine is a loud skip with its reason.
    """
    # The parser drops the '--' itself, so where pytest's arguments begin is read from argv.
    passed_on = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    kinds = (words or [])[: len(words or []) - len(passed_on)]
    for kind in kinds:
        if kind not in set(Kind):
            sys.stderr.write(f"quarry: there is no kind of test '{kind}'; choose of {', '.join(Kind)}.\n")
            raise typer.Exit(2)
    named = any(argument.startswith("tests/") for argument in passed_on)
    folders = [f"tests/{kind}" for kind in kinds] or ([] if named else ["tests"])
    command = [
        *(sys.executable, "-P", "-m", "pytest", *folders),
        *(["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []),
        *([] if long else ["-m", "not long"]),
        *passed_on,
    ]
    code = subprocess.run(command, cwd=CHECKOUT, check=False).returncode
    if code == NO_TESTS:
        sys.stderr.write("quarry: no test was selected; check the kind and what stands behind '--'.\n")
        code = 2
    raise typer.Exit(code)
