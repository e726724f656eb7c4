"""`quarry demo`: the whole system on this machine, with faults, ending by itself."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from shared.logs import set_up_logs
from sim.scenarios.first_truck import MOST_TRUCKS, Picture, Report, play

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

COLOURS = {"done": "green", "error": "red", "flashing": "yellow", "downloading": "cyan"}


def coloured(state: str) -> str:
    """A job's state as people look for it."""
    return f"[{COLOURS.get(state, 'white')}]{state}[/]"


def live_table(picture: Picture) -> Table:
    """What happens now: a row a truck."""
    table = Table(title=picture.stage, title_justify="left", expand=True)
    table.add_column("truck", no_wrap=True)
    table.add_column("job", no_wrap=True)
    table.add_column("step", no_wrap=True)
    table.add_column("progress", min_width=12)
    table.add_column("what happens", ratio=1)
    for row in picture.rows:
        bar = ProgressBar(total=100, completed=row.progress or 0, width=20)
        table.add_row(row.device_id, coloured(row.state), row.step, bar, row.note)
    return table


def summary(report: Report) -> Table:
    """What happened: a row a job."""
    table = Table(title=f"What happened, in {report.seconds:.1f} s", title_justify="left", expand=True)
    for name in ("truck", "job", "refused because", "MCU holds", "statuses", "twice"):
        table.add_column(name, no_wrap=name != "refused because")
    for truck in report.trucks:
        for number, job in enumerate(truck.jobs):
            last = number == len(truck.jobs) - 1
            right = truck.mcu_sha256 == truck.expected_sha256
            table.add_row(
                truck.device_id,
                coloured(job.state),
                job.refused_reason or "",
                ("[green]the release[/]" if right else f"[red]{truck.mcu_sha256[:12]}[/]") if last else "",
                str(truck.statuses) if last else "",
                str(truck.duplicates) if last else "",
            )
    return table


@app.command()
def demo(
    trucks: Annotated[int, typer.Option(min=1, max=MOST_TRUCKS, help="How many trucks.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and no pictures.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data folder and say where it is.")] = False,
) -> None:
    """Update simulated trucks from 1.0.0 to 1.1.0 through the real office, agents and CAN protocol.

    Meanwhile one truck's link is cut, another's agent is killed (SIGKILL) while it flashes, and a third is
    sent a tampered image, which it must refuse. Exits 0 only if every truck's MCU holds exactly
    the bytes of the release, 1 otherwise.
    """
    folder = Path(tempfile.mkdtemp(prefix="quarry-demo-"))
    console = Console(stderr=as_json)
    log = (folder / "demo.log").open("w", encoding="utf-8")
    set_up_logs("quarry-demo", stream=log)
    try:
        if as_json or not console.is_terminal:
            report = asyncio.run(play(folder, trucks=trucks, show=lambda _: None))
        else:
            with Live(console=console, refresh_per_second=8) as live:
                report = asyncio.run(
                    play(folder, trucks=trucks, show=lambda picture: live.update(live_table(picture)))
                )
    finally:
        log.close()
        if keep:
            sys.stderr.write(f"quarry: everything is kept in {folder}\n")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
    else:
        console.print(summary(report))
    if not report.ok:
        sys.stderr.write("quarry: not every truck holds the release; --keep keeps the logs of a next run.\n")
        raise typer.Exit(1)
