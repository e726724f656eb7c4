"""`quarry agent hold, release-hold, abort, retry, diag`: a person's hands on the truck; also `cli_install`.

All of them work with no network, and whether the agent runs or not. What changes the journal is left for
the agent as an ask (see asks): it takes it up within a second, or when it starts, before anything else.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from edge_agent.config import AgentConfig, load_config
from edge_agent.errors import StoreMissing
from edge_agent.hands.asks import Ask, leave, new_ask, take_answer
from edge_agent.hands.by_hand import NO_SUCH_JOB, No, judge_abort, judge_retry, may_begin_again
from edge_agent.interlocks.hold import AlreadyHeld, Hold, release_hold, set_hold
from edge_agent.liveness import is_running
from edge_agent.safe_files import act_as_owner
from edge_agent.store.journal import Entry
from edge_agent.store.store import Store
from shared.errors import ConfigError
from shared.messages import Command
from shared.since_310 import UTC

REFUSED = 3
"""It can't be done in this state: too late, ended, held already."""
NO_JOB = 4
NOT_TAKEN = 5
"""The agent runs and did not take it up in time; it stays asked for."""
ANSWER_WITHIN_S = 10.0
LOOK_EVERY_S = 0.1

ConfigFile = Annotated[Path, typer.Option("--config", help="The agent's configuration, TOML.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="As `quarry agent jobs` shows it.")]
By = Annotated[str, typer.Option("--by", help="Who you are; default: your login name.")]


def configured(file: Path) -> AgentConfig:
    """The configuration; what follows is done as the user whose data it is. Raises ConfigError."""
    config = load_config(file)
    act_as_owner(config.data_dir)
    return config


def who() -> str:
    """The person at the keyboard, through sudo too."""
    name = os.environ.get("SUDO_USER")
    if name:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def say(found: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """One JSON document, or one sentence."""
    sys.stdout.write((json.dumps(found, ensure_ascii=False) if as_json else sentence) + "\n")


def refuse(code: str, text: str, *, as_json: bool, exit_code: int = REFUSED) -> NoReturn:
    """Say no, on both ways out, and end."""
    if as_json:
        sys.stdout.write(json.dumps({"ok": False, "code": code, "text": text}, ensure_ascii=False) + "\n")
    sys.stderr.write(f"quarry: {text}\n")
    raise typer.Exit(exit_code)


def hold(
    config: ConfigFile,
    why: Annotated[str, typer.Option("--why", help="What the operator in the office reads.")],
    by: By = "",
    as_json: AsJson = False,
) -> None:
    """Nothing is flashed on this truck from now on; an ECU that is being flashed is finished.

    Exits 0 when it is held; 3 when somebody holds it already: that hold stays as it is.
    """
    settings = configured(config)
    if not why.strip() or not why.isprintable():
        raise ConfigError(
            "--why is empty or holds control characters", advice="Say why: the office shows it."
        )
    mine = Hold(by=(by or who())[:100], why=why.strip()[:500], at=datetime.now(UTC))
    try:
        set_hold(settings.data_dir, mine)
    except AlreadyHeld as error:
        refuse(error.code, error.message, as_json=as_json)
    say(
        {"ok": True, "held": True, "by": mine.by, "why": mine.why},
        f"held by {mine.by}: {mine.why}",
        as_json=as_json,
    )


def release(config: ConfigFile, as_json: AsJson = False) -> None:
    """End the hold, whoever set it. Exits 0, also when there was none."""
    ended = release_hold(configured(config).data_dir)
    found = {"ok": True, "held": False, "was_held_by": None if ended is None else ended.by}
    sentence = "was not held" if ended is None else f"released; {ended.by} had held it: {ended.why}"
    say(found, sentence, as_json=as_json)


def abort(config: ConfigFile, job_id: JobId, by: By = "", as_json: AsJson = False) -> None:
    """Cancel a job, as the office may: not once an ECU may have been erased.

    Exits 0 when it is cancelled, or will be when the agent starts; 3 when it is too late or the job
    ended, 4 when there is no such job, 5 when the agent did not answer (it stays asked for).
    """
    settings = configured(config)
    _check(judge_abort(job_id, _newest(settings, job_id)), as_json=as_json)
    leave_and_wait(settings, new_ask("abort", job_id, by=by or who(), at=datetime.now(UTC)), as_json=as_json)


def retry(config: ConfigFile, job_id: JobId, by: By = "", as_json: AsJson = False) -> None:
    """Try a job at once that rests between two tries, or begin a failed one of install-file anew.

    A job of the office that ended is begun anew by the office only. Exits 0 when it is tried; 3 when
    it ended or is being cancelled, 4 when there is no such job, 5 when the agent did not answer.
    """
    settings = configured(config)
    entry = _newest(settings, job_id)
    at = datetime.now(UTC)
    if entry is not None and entry.ended and may_begin_again(entry):
        assert entry.command is not None
        again = Command.from_obj(
            {
                **entry.command.to_obj(),
                "attempt": entry.attempt + 1,
                "revision": max(entry.revision, entry.command.revision) + 1,
            }
        )
        leave_and_wait(
            settings, new_ask("install", job_id, by=by or who(), at=at, command=again), as_json=as_json
        )
        return
    _check(judge_retry(job_id, entry), as_json=as_json)
    if not is_running(settings.data_dir / "agent.db"):
        text = f"the agent does not run; it tries job {job_id} at once when it starts"
        say({"ok": True, "job_id": job_id, "taken": False, "text": text}, text, as_json=as_json)
        return
    leave_and_wait(settings, new_ask("retry", job_id, by=by or who(), at=at), as_json=as_json)


def diag(
    config: ConfigFile,
    out: Annotated[Path, typer.Option("--out", help="The archive to write, .tar.gz; must not be there.")],
    as_json: AsJson = False,
) -> None:
    """Put into one archive what support needs: versions, configuration, journal, logs, vehicle, disk, links.

    Secrets are masked. Works without an agent, a network or a good configuration; what could not be
    collected is named in the archive. Exits 0, or 1 when the archive can't be written.
    """
    from edge_agent.hands.diag import collect

    done = collect(config, out)
    found = {"ok": True, "file": str(out), "bytes": done.size, "parts": done.parts, "problems": done.problems}
    sentence = f"wrote {out} ({done.size} bytes)"
    if done.problems:
        sentence += f"; not collected: {', '.join(done.problems)}"
    say(found, sentence, as_json=as_json)


def _newest(settings: AgentConfig, job_id: str) -> Entry | None:
    async def look() -> Entry | None:
        try:
            async with Store.open(settings.data_dir / "agent.db", read_only=True) as store:
                return await store.newest(job_id)
        except StoreMissing:
            return None

    return asyncio.run(look())


def _check(no: No | None, *, as_json: bool) -> None:
    if no is not None:
        refuse(no.code, no.text, as_json=as_json, exit_code=NO_JOB if no.code == NO_SUCH_JOB else REFUSED)


def leave_and_wait(settings: AgentConfig, ask: Ask, *, as_json: bool) -> None:
    """Leave the ask; wait for its answer where an agent runs."""
    leave(settings.data_dir, ask)
    found: dict[str, Any] = {"ok": True, "job_id": ask.job_id, "taken": False}
    ends_at = time.monotonic() + ANSWER_WITHIN_S
    while True:
        # Looked at in this order: an agent that answered and ended meanwhile has answered.
        running = is_running(settings.data_dir / "agent.db")
        answer = take_answer(settings.data_dir, ask.ask_id)
        if answer is not None:
            if answer.code != "taken":
                _check(No(code=answer.code, text=answer.text), as_json=as_json)
            say({**found, "taken": True, "text": answer.text}, answer.text, as_json=as_json)
            return
        if not running:
            break
        if time.monotonic() >= ends_at:
            text = f"the agent did not answer in {ANSWER_WITHIN_S:g} s; it stays asked for (job {ask.job_id})"
            refuse("not_taken", text, as_json=as_json, exit_code=NOT_TAKEN)
        time.sleep(LOOK_EVERY_S)
    text = f"the agent does not run; it takes this up when it starts, before anything else (job {ask.job_id})"
    say({**found, "text": text}, text, as_json=as_json)


def leave_ask(
    settings: AgentConfig, kind: Literal["restart"], job_id: str, *, by: str, at: datetime, as_json: bool
) -> None:
    """Leave an ask that is of no job, and say what became of it."""
    leave_and_wait(settings, new_ask(kind, job_id, by=by, at=at), as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    for name, verb in (
        ("hold", hold),
        ("release-hold", release),
        ("abort", abort),
        ("retry", retry),
    ):
        app.command(name)(verb)
    collecting = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
    collecting.command("collect")(diag)
    # Without a callback a single command would take the group's own name.
    collecting.callback()(_diag_group)
    app.add_typer(collecting, name="diag")


def _diag_group() -> None:
    """What support needs to know of this truck."""
