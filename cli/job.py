"""`quarry job`: one release on one truck, from order to end."""

from __future__ import annotations

import secrets
import sys
import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.office import (
    AsJson,
    OfficeClient,
    OfficeUnreachable,
    print_json,
    print_rows,
    short_time,
    with_office,
)
from shared.states import JOB_TERMINAL, JobState

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="The job's id.")]
POLL_S = 0.5
MOST_UNANSWERED = 20


@app.command()
@with_office
def create(
    client: OfficeClient,
    device_id: Annotated[str, typer.Argument(help="The truck.")],
    component: Annotated[str, typer.Argument(help="Its ECU.")],
    version: Annotated[str, typer.Argument(help="The published version that it is to get.")],
    at: Annotated[
        datetime | None,
        typer.Option(help="Not before this time, UTC; without it, now.", formats=["%Y-%m-%dT%H:%M:%SZ"]),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Watch it to its end; exit 1 unless it is done.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Order an update: quarry job create truck-001 brake 1.1.0 --wait"""
    body = {"device_id": device_id, "component": component, "version": version}
    if at is not None:
        body["scheduled_at"] = f"{at.isoformat()}Z"
    job = client.call("POST", "/jobs", json=body, headers={"Idempotency-Key": secrets.token_hex(16)})
    if wait:
        follow(client, job["job_id"], as_json=as_json)
    elif as_json:
        print_json(job)
    else:
        typer.echo(f"{job['job_id']} {job['state']}")


@app.command("list")
@with_office
def list_jobs(
    client: OfficeClient,
    device_id: Annotated[str | None, typer.Option("--device", help="Only this truck's.")] = None,
    state: Annotated[JobState | None, typer.Option(help="Only in this state.")] = None,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    jobs = client.pages("/jobs", most=most, device_id=device_id, state=state)
    if as_json:
        print_json(jobs)
        return
    print_rows(
        (
            (
                one["job_id"],
                one["device_id"],
                ", ".join(f"{t['component']} {t['version']}" for t in one["targets"]),
                one["state"],
                one["step"],
                short_time(one["created_at"]),
            )
            for one in jobs
        ),
        ("job", "truck", "target", "state", "step", "created"),
        title="Jobs",
        none="There is no such job.",
    )


@app.command()
@with_office
def show(
    client: OfficeClient,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """A job's whole story: every change with its time and cause."""
    job = client.call("GET", f"/jobs/{job_id}")
    if as_json:
        print_json(job)
    else:
        print_story(job)


def print_story(job: dict[str, Any]) -> None:
    """What `show` and the end of `watch` print."""
    target = ", ".join(f"{t['component']} {t['version']}" for t in job["targets"])
    print_rows(
        (
            (
                short_time(line["at"]),
                line["to_state"] or "",
                line["step"],
                line["progress"],
                line["cause"],
                line["reason"] or (line["error"] or {}).get("text"),
            )
            for line in job["history"]
        ),
        ("time (UTC)", "state", "step", "%", "cause", "reason"),
        title=f"{job['job_id']}: {target} on {job['device_id']} is {job['state']}",
        none="Nothing happened yet.",
    )
    if job["error"]:
        typer.echo(f"{job['error']['text']} -- {job['error']['advice']}")


@app.command()
@with_office
def watch(
    client: OfficeClient,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """Watch a job to its end. Exits 0 when it is done, 1 when it ended otherwise."""
    follow(client, job_id, as_json=as_json)


def follow(client: OfficeClient, job_id: str, *, as_json: bool) -> None:
    """Show progress until the job ends; a short outage of the office is waited out."""
    columns = (
        TextColumn("{task.fields[state]:<11} {task.fields[step]:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    job = client.call("GET", f"/jobs/{job_id}")
    unanswered = 0
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=100, state=job["state"], step="")
        while JobState(job["state"]) not in JOB_TERMINAL:
            bar.update(task, completed=job["progress"] or 0, state=job["state"], step=job["step"] or "")
            time.sleep(POLL_S)
            try:
                job = client.call("GET", f"/jobs/{job_id}")
                unanswered = 0
            except OfficeUnreachable:
                unanswered += 1
                if unanswered == MOST_UNANSWERED:
                    raise
    if as_json:
        print_json(job)
    else:
        print_story(job)
    if job["state"] != JobState.DONE:
        raise typer.Exit(1)


@app.command()
@with_office
def cancel(client: OfficeClient, job_id: JobId, as_json: AsJson = False) -> None:
    """Ask a truck to stop; it does so unless flashing has begun."""
    _change(client, job_id, "cancel", as_json=as_json)


@app.command()
@with_office
def abandon(client: OfficeClient, job_id: JobId, as_json: AsJson = False) -> None:
    """Give a job up without the truck's word, for a truck that will not come back."""
    _change(client, job_id, "abandon", as_json=as_json)


def _change(client: OfficeClient, job_id: str, act: str, *, as_json: bool) -> None:
    job = client.change(f"/jobs/{job_id}", act)
    if as_json:
        print_json(job)
    else:
        typer.echo(f"{job['job_id']} {job['state']}")
