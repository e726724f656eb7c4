"""What a person at the truck asks of the agent: small files, taken up by the agent alone.

`DATA/asks/ID.json` is an ask, `ID.answer` what became of it. A file waits until an agent runs, outlives a
power cut, and needs no server in the process that flashes; the agent stays the only writer of its database,
so that no shell that was suspended in a transaction can hold a flash up. An ask that is taken up twice, for a
crash came between, changes nothing the second time: it carries its own job's id.

A person may do here what the office may, and no more: a cancel is too late after the first erase, an
installation passes the same signatures, counters and interlocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge_agent.errors import EdgeError
from edge_agent.hands.by_hand import No, judge_abort, judge_retry
from edge_agent.safe_files import make_folder, read_bounded, write_whole
from edge_agent.store.store import Store
from edge_agent.threads import finish_in_thread
from shared.errors import OtaError
from shared.ids import ID_PATTERN, new_id
from shared.logs import get_log
from shared.messages import Command

log = get_log("edge_agent.asks")

LOOK_EVERY_S = 1.0
MOST_WAITING = 16
MOST_BYTES = 128 * 1024
MOST_ANSWERS = 32
Word = Annotated[str, Meta(pattern=ID_PATTERN, max_length=64)]


class TooManyAsks(EdgeError):
    """More asks wait than the agent keeps."""

    code = "too_many_asks"
    retryable = True
    advice = "Start the agent, or see in its log why it takes none of them up."


class AskFailed(EdgeError):
    """An ask can't be left for the agent."""

    code = "ask_failed"
    advice = "Run it as the agent's user or as root, and check the disk that holds the agent's data."


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One wish: end a job, try it again at once, install (`command`), or start anew when no ECU is torn."""

    ask_id: Word
    kind: Literal["abort", "retry", "install", "restart"]
    job_id: Word
    by: Annotated[str, Meta(max_length=100)]
    at: Annotated[datetime, Meta(tz=True)]
    command: dict[str, Any] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an ask: `code` is "taken" or an error's; `text` is a sentence for people."""

    code: str
    text: str


def asks_folder(data_dir: Path) -> Path:
    """Where asks and answers are."""
    return data_dir / "asks"


def leave(data_dir: Path, ask: Ask) -> None:
    """Leave an ask for the agent, safe on the disk when this returns. Blocks.

    Raises TooManyAsks or AskFailed.
    """
    folder = asks_folder(data_dir)
    try:
        make_folder(folder)
        if len(_waiting(folder)) >= MOST_WAITING:
            raise TooManyAsks(f"{MOST_WAITING} asks wait for the agent already")
        write_whole(folder / f"{ask.ask_id}.json", msgspec.json.encode(ask))
    except OSError as error:
        raise AskFailed(f"{folder} can't be written: {error.strerror}") from error


def take_answer(data_dir: Path, ask_id: str) -> Answer | None:
    """The agent's answer, once, or None while there is none. Blocks."""
    path = asks_folder(data_dir) / f"{ask_id}.answer"
    try:
        answer = msgspec.json.decode(read_bounded(path, MOST_BYTES), type=Answer)
        path.unlink()
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    return answer


def _waiting(folder: Path) -> list[Path]:
    """Asks, the oldest first."""
    found = []
    with suppress(FileNotFoundError):
        for path in folder.glob("*.json"):
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


class Asks:
    """The agent's side. `hurry(job_id)` makes the updater try a job at once; `restart()` ends the agent as a
    stop does, and its service starts it again.
    """

    def __init__(
        self,
        data_dir: Path,
        store: Store,
        *,
        hurry: Callable[[str], None],
        restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = asks_folder(data_dir)
        self._store = store
        self._hurry = hurry
        self._restart = restart

    async def run(self) -> None:
        """Take up what is asked until cancelled."""
        while True:
            await self.take_all()
            await asyncio.sleep(LOOK_EVERY_S)

    async def take_all(self) -> None:
        """Take up every ask that waits. Never raises but for a cancellation: people's files stop nothing."""
        try:
            for path in (await asyncio.to_thread(_waiting, self._folder))[:MOST_WAITING]:
                await self._take(path)
        except OSError as error:
            log.warning("asks.unreadable", why=str(error))

    async def _take(self, path: Path) -> None:
        try:
            raw = await asyncio.to_thread(read_bounded, path, MOST_BYTES)
            ask = msgspec.json.decode(raw, type=Ask)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            log.warning("asks.ask_refused", file=path.name, why=str(error)[:300])
            await finish_in_thread(path.unlink, missing_ok=True)
            return
        try:
            answer = await self._answer(ask)
        except OtaError as error:
            if error.retryable:
                # It waits: a full outbox or disk is no answer.
                log.warning("asks.ask_waits", job_id=ask.job_id, kind=ask.kind, why=error.message)
                return
            answer = Answer(code=error.code, text=error.message)
        log.info("asks.ask_taken", job_id=ask.job_id, kind=ask.kind, by=ask.by, answer=answer.code)
        await finish_in_thread(self._settle, path, ask.ask_id, answer)

    async def _answer(self, ask: Ask) -> Answer:
        match ask.kind:
            case "install":
                command = Command.from_obj(ask.command)
                await self._store.take_command(command)
                return Answer(code="taken", text=f"job {ask.job_id} is in the journal")
            case "retry":
                entry = await self._store.newest(ask.job_id)
                no = judge_retry(ask.job_id, entry)
                if no is not None:
                    return _refused(no)
                self._hurry(ask.job_id)
                return Answer(code="taken", text=f"job {ask.job_id} is tried at once")
            case "restart":
                self._restart()
                return Answer(code="taken", text="the agent starts anew as soon as no ECU is being flashed")
            case "abort":
                no = judge_abort(ask.job_id, await self._store.cancel(ask.job_id))
                return (
                    _refused(no)
                    if no is not None
                    else Answer(code="taken", text=f"job {ask.job_id} is being cancelled")
                )

    def _settle(self, path: Path, ask_id: str, answer: Answer) -> None:
        write_whole(self._folder / f"{ask_id}.answer", msgspec.json.encode(answer))
        path.unlink(missing_ok=True)
        # Nobody may have waited for its answer.
        answers = sorted(self._folder.glob("*.answer"), key=lambda one: one.stat().st_mtime_ns)
        for old in answers[:-MOST_ANSWERS]:
            old.unlink(missing_ok=True)


def _refused(no: No) -> Answer:
    return Answer(code=no.code, text=no.text)


def new_ask(
    kind: Literal["abort", "retry", "install", "restart"],
    job_id: str,
    *,
    by: str,
    at: datetime,
    command: Command | None = None,
) -> Ask:
    """An ask with an id of its own."""
    return Ask(
        ask_id=new_id(),
        kind=kind,
        job_id=job_id,
        by=by[:100],
        at=at,
        command=None if command is None else command.to_obj(),
    )
