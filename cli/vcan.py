"""`quarry vcan`: a command on a Linux kernel with SocketCAN, whatever kernel this machine has."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cli.can_kernel.choice import choose
from cli.can_kernel.guest import Job, RanTooLong
from cli.can_kernel.run import look_at_this_machine, prepare
from cli.check import CHECKOUT
from shared.errors import OtaError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
TIMED_OUT = 124
NOT_RUN = 125


@app.command("vcan", context_settings={"allow_interspersed_args": False})
def vcan_command(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="Behind --, with its arguments.")],
    guest: Annotated[
        bool, typer.Option("--guest", help="Take the guest even where this machine's kernel has vcan.")
    ] = False,
    time_out: Annotated[float, typer.Option(min=1, help="Seconds after which the command is killed.")] = 600,
) -> None:
    """Run a command where vcan0 and vcan1 are real CAN interfaces, classic and FD.

    quarry vcan -- candump -n 5 vcan0
    quarry vcan -- .venv/bin/python -m pytest tests/integration/socketcan
    quarry vcan --guest -- sh -c 'one-program & another-program; wait'

    Where this machine's kernel has vcan, the command gets a network namespace
    of its own with the two interfaces in it; nothing of the machine's network
    is touched. Elsewhere it runs in a guest: Debian's user-mode Linux, fetched
    by apt into .cache/can-kernel once. Nothing is installed, no root is needed.

    The guest has this machine's files, read and written as you are, while
    /dev, /proc, /run and $TMPDIR are its own. It has one CPU and no network but
    CAN; computing is as fast as here, a system call takes some 20 us. What the
    command leaves running ends with it. Standard input is empty.

    Exits with the command's own code; 124 when it ran too long, 125 when there
    is no such kernel or it did not run the command.
    """
    machine = look_at_this_machine(CHECKOUT)
    if guest:
        machine = replace(machine, namespace_refusal="the guest was asked for", interfaces=())
    job = Job(command=command, cwd=Path.cwd(), environment=as_seen_here(), time_out_s=time_out)
    try:
        place = prepare(choose(machine), CHECKOUT)
        if place.no_isotp is not None:
            sys.stderr.write(f"quarry: without the kernel's ISO-TP: {place.no_isotp.message}\n")
        code = place.run(job)
    except OtaError as error:
        sys.stderr.write(f"quarry: {error.message} -- {error.advice}\n")
        code = TIMED_OUT if isinstance(error, RanTooLong) else NOT_RUN
    raise typer.Exit(code)


def as_seen_here() -> dict[str, str]:
    """The environment, and the terminal's size, which a command behind a pipe can't ask for."""
    size = shutil.get_terminal_size()
    return {"COLUMNS": str(size.columns), "LINES": str(size.lines)} | dict(os.environ)
