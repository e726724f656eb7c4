"""`quarry bench`: figures, the limits that they are held against, and the ratio."""

from __future__ import annotations

import fnmatch
import importlib
import json
import sys
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.benches.report import Case, Row, document, unmeasured
from shared.logs import set_up_logs

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

BENCHES = {
    "flash": ("cli.benches.flash", "flashing over CAN: the wire's ceiling, the host's own cost"),
    "agent": ("cli.benches.agent", "the truck's gateway: memory, CPU, wear, backlog, deltas, trust"),
}
MISSED = 1


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(BENCHES)}.")],
    case: Annotated[
        list[str] | None,
        typer.Option(help="Only these cases; may have * and be given again: --case 'uds.*'."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit 1 when a goal is missed or not measured.")] = False,
) -> None:
    """Measure, and hold each figure against its limit.

    A figure that could not be measured says why, and its goal counts as missed. Exits 0, with --strict 1
    when a goal is missed, 2 on wrong use.
    """
    set_up_logs("quarry-bench", level="error")
    if name not in BENCHES:
        raise typer.BadParameter(f"there is no bench {name[:40]!r}; there are {', '.join(BENCHES)}")
    known: list[Case] = importlib.import_module(BENCHES[name][0]).CASES
    wanted = [one for one in known if not case or any(fnmatch.fnmatch(one.name, like) for like in case)]
    if not wanted:
        raise typer.BadParameter(
            f"no case is like {' '.join(case or [])}; there are {', '.join(c.name for c in known)}"
        )
    started = time.monotonic()
    rows = _measure(wanted, show=not as_json)
    seconds = time.monotonic() - started
    if as_json:
        sys.stdout.write(json.dumps(document(name, seconds, rows)) + "\n")
    else:
        console = Console()
        console.print(_table(name, seconds, rows))
        console.print(_remarks(rows), highlight=False, markup=False)
    if strict and any(row.met is False for row in rows):
        raise typer.Exit(MISSED)


def _measure(cases: list[Case], *, show: bool) -> list[Row]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    rows: list[Row] = []
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as bar:
        task = bar.add_task("", total=len(cases))
        for number, one in enumerate(cases, start=1):
            bar.update(task, description=f"{number} of {len(cases)}: {one.name}")
            try:
                rows.append(one.measure())
            except Exception as error:
                rows.append(unmeasured(one, f"{type(error).__name__}: {error}"[:300]))
    return rows


def _table(name: str, seconds: float, rows: list[Row]) -> Table:
    table = Table(title=f"bench {name}, {seconds:.0f} s", title_justify="left")
    for column in ("case", "value", "unit", "limit", "ratio", "goal", "met"):
        table.add_column(column, no_wrap=column in _WHOLE, justify="right" if column in _NUMBERS else "left")
    marks = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}
    for row in rows:
        table.add_row(
            row.case,
            _number(row.value),
            row.unit,
            _number(row.limit),
            _number(row.ratio),
            row.goal,
            marks[row.met],
        )
    return table


def _remarks(rows: list[Row]) -> str:
    """What each figure is held against and leaves out; the same words once for all that share them."""
    by_text: dict[str, list[str]] = {}
    for row in rows:
        text = f"not measured: {row.why}" if row.why else "; ".join(filter(None, (row.limit_is, row.apart)))
        if text:
            by_text.setdefault(text, []).append(row.case)
    return "\n".join(f"{', '.join(cases)}: {text}." for text, cases in by_text.items())


_NUMBERS = {"value", "limit", "ratio"}
_WHOLE = {"case", *_NUMBERS}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
