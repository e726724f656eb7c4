"""`quarry demo`: the whole system on this machine, with faults and attacks, ending by itself."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shared.logs import set_up_logs
from sim.scenarios.first_truck import MOST_TRUCKS, play
from sim.scenarios.report import Picture, Report

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

COLOURS = {"done": "green", "error": "red", "flashing": "yellow", "downloading": "cyan"}


def coloured(state: str) -> str:
    """A job's state as people look for it."""
    return f"[{COLOURS.get(state, 'white')}]{state}[/]"


def live_table(picture: Picture) -> Table:
    """What happens now: a row a truck."""
    table = Table(title=picture.stage, title_justify="left", expand=True)
    table.add_column("truck", no_wrap=True)
    for component in picture.rows[0].ecus if picture.rows else ():
        table.add_column(component, no_wrap=True, min_width=14)
    table.add_column("job", no_wrap=True)
    table.add_column("step", no_wrap=True)
    table.add_column("", min_width=10)
    table.add_column("what happens", ratio=1)
    for row in picture.rows:
        bar = ProgressBar(total=100, completed=row.progress or 0, width=10)
        table.add_row(row.device_id, *row.ecus.values(), coloured(row.state), row.step, bar, Text(row.note))
    return table


class Shown:
    """Prints each line once; where there is a terminal, above a live table."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed = 0

    def lines(self, picture: Picture) -> None:
        """Print what is new."""
        for line in picture.lines[self._printed :]:
            style = "bold" if not line.startswith(" ") else "green" if line.startswith("  ok") else ""
            self._console.print(escape(line), style=style, highlight=False, soft_wrap=True)
        self._printed = len(picture.lines)


def summary(report: Report) -> RenderableType:
    """What happened: a row a job, and the alarms that the office has raised."""
    table = Table(title=f"What happened, in {report.seconds:.1f} s", title_justify="left", expand=True)
    for name in ("truck", "job", "release", "why", "its ECUs run", "statuses"):
        table.add_column(name, no_wrap=name in {"truck", "job", "why"}, overflow="fold")
    for truck in report.trucks:
        for number, job in enumerate(truck.jobs):
            last = number == len(truck.jobs) - 1
            ecus = "\n".join(f"{ecu.component} {ecu.version}" for ecu in truck.ecus)
            right = all(ecu.is_right for ecu in truck.ecus)
            table.add_row(
                truck.device_id,
                coloured(job.state),
                version_of(job.release),
                job.code or "",
                (f"[{'green' if right else 'red'}]{ecus}[/]") if last else "",
                f"{truck.statuses}, {truck.duplicates or 'none'} twice" if last else "",
            )
    alarms = Table(title="Alarms that the office has raised", title_justify="left", expand=True)
    for name in ("truck", "alarm", "about"):
        alarms.add_column(name)
    for alarm in report.alarms:
        alarms.add_row(alarm["device_id"], alarm["alarm"], alarm["about"] or alarm["serial"])
    return Group(table, alarms)


def version_of(release: str | None) -> str:
    """A release's name and version, out of its path."""
    return "" if release is None else " ".join(release.split("/")[1:3])


@app.command()
def demo(
    trucks: Annotated[int, typer.Option(min=1, max=MOST_TRUCKS, help="How many trucks.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and no pictures.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data folder and say where it is.")] = False,
) -> None:
    """Update two-ECU trucks through the real office, agents, trust chain and CAN protocol, and attack them.

    Releases for an STM32 (one slot) and an ESP32 (two slots) are signed offline, two keys of three. One
    truck waits for its parking brake, one's link is cut, one's agent is killed (SIGKILL) while it flashes,
    one is sent a tampered image; then the office is captured, and a release whose ESP32 never comes up goes
    back whole. Exits 0 only if all of it ended as it must and every ECU holds exactly its bytes, else 1.
    """
    folder = Path(tempfile.mkdtemp(prefix="quarry-demo-"))
    console = Console(stderr=as_json)
    log = (folder / "demo.log").open("w", encoding="utf-8")
    set_up_logs("quarry-demo", stream=log)
    shown = Shown(console)
    try:
        if as_json:
            report = asyncio.run(play(folder, trucks=trucks, show=lambda _: None))
        elif not console.is_terminal:
            report = asyncio.run(play(folder, trucks=trucks, show=shown.lines))
        else:
            with Live(console=console, refresh_per_second=8) as live:

                def show(picture: Picture) -> None:
                    shown.lines(picture)
                    live.update(live_table(picture) if picture.rows else "")

                report = asyncio.run(play(folder, trucks=trucks, show=show))
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
        wrong = ", ".join(one.name for one in report.scenes if not one.ok)
        wrong = wrong or "not every ECU holds its release, or not every manifest says so"
        sys.stderr.write(f"quarry: not as it must be: {wrong}; --keep keeps the logs of a next run.\n")
        raise typer.Exit(1)
