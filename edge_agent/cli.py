"""`quarry agent`: enrol a truck's gateway, run it, look at it with no network."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer
from rich.console import Console
from rich.table import Table

from edge_agent import cli_consent
from edge_agent.cli_hands import add_to, configured
from edge_agent.cli_self_update import self_update
from edge_agent.config import AgentConfig
from edge_agent.enrol import NotEnrolled, read_credentials
from edge_agent.errors import StoreMissing
from edge_agent.hold import read_hold
from edge_agent.journal import Entry
from edge_agent.liveness import is_running, read_live
from edge_agent.store import Store
from shared.errors import ConfigError, OtaError
from shared.logs import set_up_logs

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

MUST_BE_MENDED = 78
"""EX_CONFIG of sysexits.h: a restart can't help; the service file knows it."""
INTERRUPTED = 130
MOST_SHOWN = 50

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
    from edge_agent.app import run_agent
    from edge_agent.log_files import TeeLog
    from edge_agent.notify import of_environment

    try:
        settings = configured(config)
        with TeeLog(sys.stderr, settings.data_dir / "log", settings.log_files) as tee:
            set_up_logs("quarry-agent", level=settings.log_level, stream=cast(TextIO, tee))
            hurried = asyncio.run(_until_signal(settings, partial(run_agent, notifier=of_environment())))
    except (ConfigError, NotEnrolled) as error:
        sys.stderr.write(f"quarry: {error.message} -- {error.advice}\n")
        raise typer.Exit(MUST_BE_MENDED) from error
    if hurried:
        raise typer.Exit(INTERRUPTED)


async def _until_signal(config: AgentConfig, run_agent: Any) -> bool:
    """Run the agent; True when a second signal cut it short."""
    stop = asyncio.Event()
    agent = asyncio.create_task(run_agent(config, stop=stop), name="agent")

    def asked() -> None:
        if stop.is_set():
            agent.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    await asyncio.wait({agent})
    if agent.cancelled():
        return True
    try:
        agent.result()
    except BaseExceptionGroup as group:
        # One task's named error is told like any other; anything else keeps its trace.
        named, other = group.split(OtaError)
        if named is None or other is not None:
            raise
        raise _first(named) from group
    return False


def _first(group: BaseExceptionGroup[OtaError]) -> OtaError:
    one = group.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


@app.command()
def enroll(
    config: ConfigFile,
    token: Annotated[
        str, typer.Option("--token", envvar="QUARRY_ENROLMENT_TOKEN", help="The office's one-time token.")
    ],
) -> None:
    """Make this truck known to its office, once. Safe to repeat with the same token.

    Exits 1 when the token is wrong, used or expired, or the office can't be reached.
    """
    from edge_agent.enrol import enrol

    set_up_logs("quarry-agent", level="warning")
    enrolled = asyncio.run(enrol(configured(config), token))
    sys.stdout.write(
        f"enrolled as {enrolled.device_id}; the broker is {enrolled.mqtt_host}:{enrolled.mqtt_port}\n"
    )


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
cli_consent.add_to(app)
app.command("self-update")(self_update)
