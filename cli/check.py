"""`quarry check`: the house rules that a machine can hold; the same that CI runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CHECKOUT = Path(__file__).resolve().parent.parent
_TRUCK = [word for room in ("shared", "firmware_flashers", "edge_agent") for word in ("-p", room)]
"""What runs on Python 3.10 too."""


def tool(name: str) -> str:
    """A program of the checkout's own environment."""
    return str(Path(sys.executable).parent / name)


@app.command()
def check(
    fix: Annotated[bool, typer.Option("--fix", help="Format and mend what can be mended first.")] = False,
) -> None:
    """Format, lint, types (mypy strict) and import contracts. Exits 1 when one of them complains.

    The truck's half is typed for Python 3.10 as well.
    """
    ruff = [tool("ruff"), "--quiet"]
    steps = {
        "format": [*ruff, "format", *([] if fix else ["--diff"]), "."],
        "lint": [*ruff, "check", *(["--fix"] if fix else []), "."],
        "types": [tool("mypy"), "--no-error-summary"],
        "3.10": [tool("mypy"), "--no-error-summary", "--python-version", "3.10", *_TRUCK],
        "imports": [tool("lint-imports"), "--no-cache"],
    }
    failed = []
    for name, command in steps.items():
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"NO_COLOR": "1"},
        )
        sys.stdout.write(f"{name:<8} {'ok' if done.returncode == 0 else 'FAILED'}\n")
        if done.returncode != 0:
            sys.stdout.write(done.stdout + done.stderr)
            failed.append(name)
    if failed:
        sys.stderr.write(f"quarry: {', '.join(failed)} must be mended; see above.\n")
        raise typer.Exit(1)
