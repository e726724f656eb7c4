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

from cli.local_installs import find_install, find_installs, newest_first, print_install, targets_of
from cli.office import (
    AsJson,
    OfficeClient,
    OfficeUnreachable,
    print_json,
    print_rows,
    short_time,
    with_office,
)
from shared.causes import Language
from shared.ids import is_local_job
from shared.states import JOB_TERMINAL, JobState

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="The job's id.")]
Lang = Annotated[
    Language | None,
    typer.Option("--lang", help="The language of the reasons: en, ru. Without it, the office's."),
]
POLL_S = 0.5
MOST_UNANSWERED = 20


@app.command()
@with_office
def create(
    client: OfficeClient,
    device_id: Annotated[str, typer.Argument(help="The truck.")],
    component: Annotated[str | None, typer.Argument(help="Its ECU, where no --release is given.")] = None,
    version: Annotated[
        str | None, typer.Argument(help="The published version that this ECU is to get.")
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(
            help="A signed release for all of its ECUs: NAME/VERSION, or its path as `quarry release list`"
            " shows it."
        ),
    ] = None,
    at: Annotated[
        datetime | None,
        typer.Option(help="Not before this time, UTC; without it, now.", formats=["%Y-%m-%dT%H:%M:%SZ"]),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Watch it to its end; exit 1 unless it is done.")
    ] = False,
    lang: Lang = None,
    as_json: AsJson = False,
) -> None:
    """Order an update: a signed release for the whole truck, or one firmware for one ECU.

    quarry job create truck-001 --release haul/1.2.0 --wait
    quarry job create truck-001 brake 1.1.0 --wait

    Exits 0 when it is ordered, with --wait when it is done; 1 when it is refused or ended otherwise.
    """
    if release is not None and component is None:
        body = {"device_id": device_id, "release": release}
    elif release is None and component is not None and version is not None:
        body = {"device_id": device_id, "component": component, "version": version}
    else:
        raise typer.BadParameter("give COMPONENT and VERSION, or --release")
    if at is not None:
        body["scheduled_at"] = f"{at.isoformat()}Z"
    job = client.call("POST", "/jobs", json=body, headers={"Idempotency-Key": secrets.token_hex(16)})
    if wait:
        follow(client, job["job_id"], lang=lang, as_json=as_json)
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
    """List jobs, newest first, those too that people began at trucks (`local-...`)."""
    jobs = newest_first(
        client.pages("/jobs", most=most, device_id=device_id, state=state),
        find_installs(client, most=most, device_id=device_id, state=state),
        most,
    )
    if as_json:
        print_json(jobs)
        return
    print_rows(
        (
            (
                one["job_id"],
                one["device_id"],
                _what(one),
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
    lang: Lang = None,
    as_json: AsJson = False,
) -> None:
    """A job's whole story: every change with its time and cause. Of one that began at a truck, its end."""
    if is_local_job(job_id):
        install = find_install(client, job_id)
        if as_json:
            print_json(install)
        else:
            print_install(install)
        return
    job = _read(client, job_id, lang)
    if as_json:
        print_json(job)
    else:
        print_story(job)


def print_story(job: dict[str, Any]) -> None:
    """What `show` and the end of `watch` print."""
    target = _what(job)
    print_rows(
        (
            (
                short_time(line["at"]),
                line["to_state"] or "",
                line["step"],
                line["progress"],
                line["cause"],
                line["why"] or (line["error"] or {}).get("text"),
            )
            for line in job["history"]
        ),
        ("time (UTC)", "state", "step", "%", "cause", "reason"),
        title=f"{job['job_id']}: {target} on {job['device_id']} is {job['state']}",
        none="Nothing happened yet.",
    )
    if job["release"]:
        print_rows(
            ((t["component"], t["kind"], t["version"], _answer(t)) for t in job["targets"]),
            ("component", "kind", "version", "read back"),
            title="Its ECUs",
            none="It has none.",
        )
    if job["error"]:
        typer.echo(f"{job['error']['text']} -- {job['error']['advice']}")


def _what(job: dict[str, Any]) -> str:
    """A release by its name and version, else the components and theirs."""
    if job.get("release"):
        return str(job["release"]).removeprefix("releases/").rpartition("/")[0]
    return targets_of(job)


def _answer(target: dict[str, Any]) -> str:
    match target["read_back_right"]:
        case None:
            return "not yet"
        case True:
            return "as ordered"
        case _:
            return f"{target['read_back_version']} {target['read_back_sha256'][:12]}"


@app.command()
@with_office
def watch(
    client: OfficeClient,
    job_id: JobId,
    lang: Lang = None,
    as_json: AsJson = False,
) -> None:
    """Watch a job to its end. Exits 0 when it is done, 1 when it ended otherwise."""
    follow(client, job_id, lang=lang, as_json=as_json)


def _read(client: OfficeClient, job_id: str, lang: Language | None) -> dict[str, Any]:
    return client.call("GET", f"/jobs/{job_id}", params={} if lang is None else {"lang": lang})


def follow(client: OfficeClient, job_id: str, *, lang: Language | None, as_json: bool) -> None:
    """Show progress, and why it waits, until the job ends; a short outage of the office is waited out."""
    columns = (
        TextColumn("{task.fields[state]:<11} {task.fields[step]:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    job = _read(client, job_id, lang)
    unanswered = 0
    told = None
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=100, state=job["state"], step="")
        while JobState(job["state"]) not in JOB_TERMINAL:
            bar.update(task, completed=job["progress"] or 0, state=job["state"], step=job["step"] or "")
            if job["causes"] and job["why"] != told:
                bar.console.print(job["why"], markup=False, highlight=False, soft_wrap=True)
            told = job["why"] if job["causes"] else None
            time.sleep(POLL_S)
            try:
                job = _read(client, job_id, lang)
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
