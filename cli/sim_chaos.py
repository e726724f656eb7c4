"""`quarry sim chaos`: many updates of simulated trucks under seeded faults, judged at their end."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from shared.logs import set_up_logs
from sim.chaos.fleet import By
from sim.chaos.run import MOST_TRUCKS, MOST_UPDATES, Report, play


def chaos(
    updates: Annotated[int, typer.Option(min=1, max=MOST_UPDATES, help="How many updates in all.")] = 10,
    trucks: Annotated[int, typer.Option(min=1, max=MOST_TRUCKS, help="How many trucks they are of.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same faults at the same points.")] = 1,
    by: Annotated[
        By, typer.Option(help="Releases of two ECUs on the trust chain, or signed documents of one ECU each.")
    ] = By.RELEASES,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data folder and say where it is.")] = False,
) -> None:
    """Update simulated trucks while links are cut, power fails, disks are full and clocks jump.

    The office, the agents and the CAN protocol are the real ones. Exits 0 only if each update ended whole-new
    or whole-old with one final status at the office, and nothing was lost, came twice, or was bricked; 1
    otherwise. Power cuts that lose unsynced pages, full disks and wrong clocks take a C compiler; without one
    they are left out, and that is said.
    """
    folder = Path(tempfile.mkdtemp(prefix="quarry-chaos-"))
    log = (folder / "chaos.log").open("w", encoding="utf-8")
    set_up_logs("quarry-sim-chaos", stream=log)

    def show(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    try:
        report = asyncio.run(play(folder, updates=updates, trucks=trucks, seed=seed, by=by, show=show))
    finally:
        log.close()
        if keep:
            sys.stderr.write(f"quarry: everything is kept in {folder}\n")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
    else:
        sys.stdout.write(in_words(report))
    for sentence in report.wrong:
        sys.stderr.write(f"quarry: {sentence}\n")
    if not report.ok:
        raise typer.Exit(1)


def in_words(report: Report) -> str:
    """The report for people."""

    def counted(of: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(of.items())) or "none"

    return (
        f"{report.updates} updates of {report.trucks} trucks by {report.by} in {report.seconds:.0f} s, "
        f"seed {report.seed}: {counted(report.ends)}\n"
        f"faults that happened: {counted(report.happened)}\n"
        f"left out: {', '.join(report.left_out) or 'nothing'}\n"
        f"agents started again {report.restarts} times; {report.doubled_messages} messages came twice\n"
        f"statuses at the office: {report.statuses}; lost {report.lost}, twice {report.duplicates}, "
        f"dead letters {report.dead_letters}\n"
    )
