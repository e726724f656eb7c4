"""`quarry agent`: enrol a truck's gateway, run it, look at it with no network."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from edge_agent.clock import Clock
from edge_agent.config import AgentConfig
from edge_agent.errors import StoreMissing
from edge_agent.gateway.cli_self_update import self_update
from edge_agent.hands import cli_consent
from edge_agent.hands.cli_hands import add_to, configured
from edge_agent.hands.cli_install import add_to as add_install_to
from edge_agent.interlocks.hold import read_hold
from edge_agent.liveness import is_running, read_live
from edge_agent.office.certificates import BadCertificate, Standing, read_certificate
from edge_agent.office.enrol import Enrolled, read_credentials
from edge_agent.safe_files import read_bounded
from edge_agent.store.journal import Entry
from edge_agent.store.store import Store
from shared.errors import ConfigError
from shared.logs import set_up_logs

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h."""
MOST_SHOWN = 50
MOST_TOKEN_FILE_BYTES = 4096

ConfigFile = Annotated[Path, typer.Option("--config", help="The agent's configuration, TOML.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]


@app.command()
def run(config: ConfigFile) -> None:
    """Run the gateway until SIGTERM or ^C; logs are JSON lines on stderr.

    A stop waits until an ECU that is being flashed is whole (14 minutes at the most); a second
    signal does not wait, and the next start goes on from the journal. Exits 0 when it was stopped,
    78 when the configuration or the enrolment must be mended first, 130 after a second signal, 1
    otherwise.
    """
    from edge_agent.service import serve

    code = serve(config)
    if code:
        raise typer.Exit(code)


@app.command()
def enroll(
    config: ConfigFile,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="QUARRY_ENROLMENT_TOKEN", help="The office's one-time token."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="A file with the token: other users see a command's words."),
    ] = None,
) -> None:
    """Make this truck known to its office, once. Safe to repeat with the same token.

    The truck's keys are made here and never leave it. Exits 1 when the token is wrong, used or expired,
    75 when the office can't be reached or can't do it now: then the same again helps.
    """
    from edge_agent.app import Places
    from edge_agent.office.enrol import OfficeUnreachable, enrol

    if (token is None) == (token_file is None):
        raise typer.BadParameter("give either --token or --token-file")
    set_up_logs("quarry-agent", level="warning")
    # Before `configured`, which may become another user: the file is of who typed this.
    given = token if token_file is None else _token_in(token_file)
    settings = configured(config)
    try:
        enrolled = asyncio.run(enrol(settings, given or ""))
    except OfficeUnreachable as error:
        sys.stderr.write(f"quarry: {error.message} -- {error.advice}\n")
        raise typer.Exit(TRY_AGAIN) from error
    said = f"enrolled as {enrolled.device_id}; the broker is {enrolled.mqtt_host}:{enrolled.mqtt_port}"
    if enrolled.certificate:
        good_until = read_certificate(enrolled.certificate).not_after.isoformat(timespec="seconds")
        said += f"; the certificate is good until {good_until} and renews itself"
    sys.stdout.write(f"{said}\n")
    if is_running(Places(data_dir=settings.data_dir).store):
        sys.stdout.write(
            "the agent runs by what it knew before: restart it (systemctl restart quarry-agent)\n"
        )


def _token_in(file: Path) -> str:
    try:
        return read_bounded(file, MOST_TOKEN_FILE_BYTES).decode().strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} can't be read: {error}", advice="Name the file with the token.") from error


@app.command()
def status(config: ConfigFile, as_json: AsJson = False) -> None:
    """How the gateway is: running, connected, what waits, what is under way. Needs no network."""
    found = asyncio.run(_status(configured(config)))
    if as_json:
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        return
    table = Table(show_header=False, box=None)
    for name, value in (
        ("truck", found["device_id"] or "not enrolled"),
        ("agent", _agent_words(found)),
        ("office", _link_words(found)),
        ("certificate", _certificate_words(found["certificate"])),
        ("statuses that wait", found["pending_statuses"]),
        ("held", f"by {found['hold']['by']}: {found['hold']['why']}" if found["hold"] else "no"),
        ("update under way", ", ".join(job["job_id"] for job in found["live_jobs"]) or "none"),
    ):
        table.add_row(f"[bold]{name}[/]", str(value))
    console = Console()
    console.print(table)
    if found["live_jobs"]:
        console.print(_jobs_table(found["live_jobs"]))


def _agent_words(found: dict[str, Any]) -> str:
    if not found["running"]:
        return "does not run"
    return f"runs, version {found['agent_version']}, process {found['pid']}, since {found['started_at']}"


def _link_words(found: dict[str, Any]) -> str:
    if found["connected"]:
        return "connected"
    return f"not connected: {found['link_error']}" if found["link_error"] else "not connected"


def _certificate_words(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none"
    if found["standing"] is None:
        return str(found["error"])
    words = {
        Standing.GOOD: "good until {}",
        Standing.DUE: "good until {}, a newer one is asked for",
        Standing.ENDS_SOON: "ENDS {}, and no newer one could be had",
        Standing.ENDED: "ENDED {}, and no newer one could be had",
        Standing.NOT_YET: "good until {}; this gateway's clock is behind its beginning",
    }
    said = words[Standing(found["standing"])].format(found["not_after"])
    return f"{said}: {found['error']}" if found["error"] else said


def _certificate(enrolled: Enrolled | None, error: str) -> dict[str, Any] | None:
    """The truck's certificate by this gateway's clock; None where the office gave none."""
    if enrolled is None or not enrolled.certificate:
        return None
    try:
        certificate = read_certificate(enrolled.certificate)
    except BadCertificate as bad:
        return {
            "serial": None,
            "not_after": None,
            "renewal_due_at": None,
            "standing": None,
            "error": bad.message,
        }
    return {
        "serial": certificate.serial,
        "not_after": certificate.not_after.isoformat(timespec="seconds"),
        "renewal_due_at": certificate.due_at.isoformat(timespec="seconds"),
        "standing": certificate.standing(Clock().now()).value,
        "error": error,
    }


@app.command()
def jobs(config: ConfigFile, as_json: AsJson = False) -> None:
    """The newest updates of this truck, as its own journal has them. Needs no network."""
    found = asyncio.run(_jobs(configured(config)))
    if as_json:
        sys.stdout.write(json.dumps({"jobs": found}, ensure_ascii=False) + "\n")
    elif found:
        Console().print(_jobs_table(found))
    else:
        sys.stdout.write("no job has reached this truck yet\n")


@app.command()
def init(out: Annotated[Path, typer.Option("--out", help="The file to write; must not be there.")]) -> None:
    """Write an example configuration with every setting explained."""
    example = (resources.files("edge_agent") / "packaging" / "agent.toml").read_bytes()
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError as error:
        raise ConfigError(
            f"{out} can't be written: {error.strerror}", advice="Name a file that is not there yet."
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(example)
    sys.stdout.write(f"wrote {out}; edit it, then: quarry agent enroll --config {out} --token TOKEN\n")


async def _status(config: AgentConfig) -> dict[str, Any]:
    from edge_agent.app import Places

    places = Places(data_dir=config.data_dir)
    running = is_running(places.store)
    live = read_live(config.data_dir) if running else None
    enrolled = read_credentials(config.data_dir).enrolled
    found: dict[str, Any] = {
        "device_id": enrolled.device_id if enrolled else None,
        "running": running,
        "pid": live.pid if live else None,
        "agent_version": live.agent_version if live else None,
        "started_at": live.started_at.isoformat(timespec="seconds") if live else None,
        "connected": live.connected if live else False,
        "link_error": live.link_error if live else "",
        "certificate": _certificate(enrolled, live.certificate_error if live else ""),
        "hold": _hold(config),
        "store_id": None,
        "pending_statuses": 0,
        "live_jobs": [],
    }
    try:
        async with Store.open(places.store, read_only=True) as store:
            found["store_id"] = store.store_id
            found["pending_statuses"] = await store.pending_statuses()
            found["live_jobs"] = [_job(entry) for entry in await store.live()]
    except StoreMissing:
        # Enrolled and never started, or not even that: all of it is said above.
        pass
    return found


def _hold(config: AgentConfig) -> dict[str, Any] | None:
    held = read_hold(config.data_dir)
    if held is None:
        return None
    at = None if held.at is None else held.at.isoformat(timespec="seconds")
    return {"by": held.by, "why": held.why, "at": at}


async def _jobs(config: AgentConfig) -> list[dict[str, Any]]:
    from edge_agent.app import Places

    try:
        async with Store.open(Places(data_dir=config.data_dir).store, read_only=True) as store:
            return [_job(entry) for entry in await store.jobs(MOST_SHOWN)]
    except StoreMissing:
        return []


def _job(entry: Entry) -> dict[str, Any]:
    """One attempt as people and programs read it."""
    target = entry.command.targets[0] if entry.command and entry.command.targets else None
    told = entry.told
    return {
        "job_id": entry.job_id,
        "attempt": entry.attempt,
        "component": target.component if target else None,
        "version": target.version if target else None,
        "state": entry.state.value,
        "step": told.step if told else None,
        "progress": told.progress if told else None,
        "reason": told.reason if told else None,
        "error": told.error.to_obj() if told and told.error else None,
        "tries": entry.tries,
        "created_at": entry.created_at.isoformat(timespec="seconds"),
        "updated_at": entry.updated_at.isoformat(timespec="seconds"),
    }


def _jobs_table(found: list[dict[str, Any]]) -> Table:
    table = Table()
    # On a narrow terminal only the long texts are folded: an id in pieces can't be copied.
    table.add_column("job, last change (UTC)", no_wrap=True, overflow="fold")
    for name in ("try", "what", "state", "why"):
        table.add_column(name, overflow="fold")
    for job in found:
        why = job["error"]["text"] if job["error"] else job["reason"]
        step = job["step"] or ""
        if job["progress"] is not None:
            step += f" {job['progress']} %"
        table.add_row(
            f"{job['job_id']}\n{job['updated_at'][:19].replace('T', ' ')}",
            str(job["attempt"]),
            f"{job['component'] or ''} {job['version'] or ''}",
            f"{job['state']}\n{step}",
            why or "",
        )
    return table


add_to(app)
add_install_to(app)
cli_consent.add_to(app)
app.command("self-update")(self_update)
