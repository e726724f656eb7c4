"""The one loop that writes the journal and then acts. It alone decides when an ECU is flashed.

Each turn: answer what the office asks, choose the update whose act is due (a touched ECU first), do the
act, let `update_machine` decide, write its move and the status that tells it in one transaction. A
crash between any two steps repeats an act that may be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from edge_agent.clock import Clock
from edge_agent.errors import StoreFailed
from edge_agent.interlocks.interlocks import Interlocks
from edge_agent.interlocks.people import Gates
from edge_agent.interlocks.safety import Policy
from edge_agent.interlocks.vehicle import Vehicle
from edge_agent.store.journal import Asked, Change, Entry
from edge_agent.store.release_plan import Planner, plan_of
from edge_agent.store.store import Store
from edge_agent.trust.verifier import Verifier
from edge_agent.update.acts import Acts, ComponentAccess, Downloader, Limits
from edge_agent.update.authority import Authority, Documents
from edge_agent.update.kept import KeptImages
from edge_agent.update.telling import telling
from edge_agent.update.update_events import (
    Act,
    CancelAsked,
    Event,
    Fetched,
    Move,
    NeedsUrl,
    Pause,
    Ready,
    Replaced,
    Restarted,
    TakenOver,
    TimeOver,
    Unsafe,
)
from edge_agent.update.update_machine import ACT_OF, FREE_RESTARTS, decide
from shared.backoff import Backoff
from shared.causes import Cause
from shared.logs import get_log
from shared.messages import Installed, Manifest
from shared.since_310 import assert_never, timeout
from shared.states import UpdateState

__all__ = ["ComponentAccess", "Downloader", "KillPoints", "Timing", "Updater", "no_kill"]

log = get_log("edge_agent.updater")

KillPoints = Callable[[str], None]
"""Called at each named point around journal writes and acts; chaos tests end the process there."""
RETRY_BACKOFF = Backoff(first_s=2.0, most_s=300.0, jitter=0.3)
_SHORT = {Act.LOOK, Act.VERIFY, Act.ASK, Act.DOWNLOAD}
"""Acts that touch no ECU: a cancel, or an ECU that waits, interrupts them."""


def no_kill(_: str) -> None:
    """Go on."""


def no_pulse() -> None:
    """Nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds: between looks at the vehicle; until an ECU that refused is asked again; at most between
    tries of a lost link; between asks for a URL; between progress statuses; and the longest rest, after
    which the journal is looked at without being woken.
    """

    poll_s: float = 5.0
    refused_s: float = 30.0
    link_s: float = 30.0
    url_s: float = 3600.0
    progress_s: float = 5.0
    rest_s: float = 60.0


TIMING = Timing()
LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """When an update's next act is due, by the boot clock."""

    act: Act
    due_s: float
    revision: int
    waits_for_office: bool


class Updater:
    """Run `run()` as a task for as long as the agent lives; it may be cancelled at any moment.

    `ended` is set when an update ended, so that a fresh manifest is worth sending. `pulse` is called at
    each step of the loop that shows that it is not stuck.
    """

    def __init__(
        self,
        store: Store,
        *,
        downloader: Downloader,
        verifier: Verifier,
        authority: Authority | None = None,
        components: Mapping[str, ComponentAccess],
        vehicle: Vehicle,
        policy: Policy,
        clock: Clock,
        backoff: Backoff = RETRY_BACKOFF,
        timing: Timing = TIMING,
        limits: Limits = LIMITS,
        gates: Gates | None = None,
        addresses: Mapping[str, int] | None = None,
        kept: KeptImages | None = None,
        planner: Planner = plan_of,
        kill_point: KillPoints = no_kill,
    ) -> None:
        self._store = store
        self._clock = clock
        self._backoff = backoff
        self._timing = timing
        self._kill = kill_point
        self._authority = authority or Documents(verifier, components)
        self._acts = Acts(
            downloader=downloader,
            authority=self._authority,
            verifier=verifier,
            components=components,
            interlocks=Interlocks(
                vehicle=vehicle, policy=policy, clock=clock, gates=gates, addresses=addresses or {}
            ),
            clock=clock,
            limits=limits,
            kept=kept,
            planner=planner,
            journal_id=store.store_id,
        )
        self._plans: dict[tuple[str, int], _Plan] = {}
        self._touching = False
        self._link_failures = 0
        self.ended = asyncio.Event()
        self.pulse: Callable[[], None] = no_pulse

    @property
    def touching(self) -> bool:
        """Whether an ECU is, or may be, between two images: do not stop the gateway now."""
        return self._touching

    def hurry(self, job_id: str) -> None:
        """Try a job at once that rests between two tries; its order of acts stays."""
        for key, plan in self._plans.items():
            if key[0] == job_id:
                self._plans[key] = replace(plan, due_s=0.0, waits_for_office=False)
        self._store.changed.set()

    async def installed(self, *, oldest_s: float = 0.0) -> list[Installed]:
        """What every component says it holds; see Ecus."""
        return await self._acts.installed(oldest_s=oldest_s)

    async def manifest(self) -> Manifest:
        """What every component says it holds; one that can't answer is left out. Raises StoreFailed."""
        components = await self._acts.installed()
        return Manifest(
            store_id=self._store.store_id,
            seq=await self._store.next_manifest_seq(),
            components=tuple(components),
            at=self._clock.now(),
        )

    async def run(self) -> None:
        """Run until cancelled. A store that fails is tried again: without a journal nothing is done."""
        failures = 0
        resumed = False
        while True:
            try:
                if not resumed:
                    await self._resume()
                    resumed = True
                rest_s = await self._turn()
                failures = 0
            except StoreFailed as error:
                log.exception("updater.store_failed", why=error.message)
                rest_s = self._backoff.delay_s(failures)
                failures += 1
            if rest_s > 0:
                await self._rest(min(rest_s, self._timing.rest_s))

    async def _rest(self, most_s: float) -> None:
        # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes with the event.
        with suppress(TimeoutError):
            async with timeout(most_s):
                await self._store.changed.wait()

    async def _resume(self) -> None:
        for entry in await self._store.live():
            log.info("updater.job_resumed", job_id=entry.job_id, attempt=entry.attempt, state=entry.state)
            move = decide(entry, Restarted())
            await self._write(move)
            self._plan(move)

    async def _turn(self) -> float:
        """A bounded piece of work; returns how long nothing else is due, in seconds."""
        self.pulse()
        self._store.changed.clear()
        live = await self._store.live()
        await self._authority.in_use(live)
        self._touching = any(entry.begun for entry in live)
        self._plans = {entry.key: self._plans[entry.key] for entry in live if entry.key in self._plans}
        for entry in live:
            event = self._word(entry)
            if event is not None:
                await self._apply(entry, event, live)
                return 0.0
        if not live:
            return self._timing.rest_s
        now = self._clock.boot_s()
        due = [entry for entry in live if self._due_s(entry) <= now]
        if not due:
            return min(self._due_s(entry) for entry in live) - now
        # A touched ECU comes first: it runs nothing until it is finished.
        entry = min(due, key=lambda one: not one.begun)
        event = await self._act(entry, live)
        if event is not None:
            fresh = await self._store.entry(*entry.key)
            assert fresh is not None, "only ended rows are removed"
            if isinstance(event, NeedsUrl) and fresh.revision > entry.revision:
                # A fresh URL came while the old one was tried.
                return 0.0
            await self._apply(fresh, event, await self._store.live())
        return 0.0

    def _word(self, entry: Entry) -> Event | None:
        """What the office, or its command's time, says of an update."""
        match entry.asked:
            case Asked.CANCEL:
                return CancelAsked()
            case Asked.REPLACE:
                return Replaced()
        expires_at = entry.command.expires_at if entry.command is not None else None
        if expires_at is not None and not entry.begun and self._clock.now() >= expires_at:
            return TimeOver()
        return None

    def _due_s(self, entry: Entry) -> float:
        plan = self._plans.get(entry.key)
        if plan is None or (plan.waits_for_office and entry.revision > plan.revision):
            return 0.0
        return plan.due_s

    async def _act(self, entry: Entry, live: Iterable[Entry]) -> Event | None:
        """Do what is due. None: it was interrupted, and the next turn sees why."""
        plan = self._plans.get(entry.key)
        act = plan.act if plan is not None else ACT_OF[entry.state]
        others = [one for one in live if one.key != entry.key]
        takes_over = any(one.begun for one in others if one.components & entry.components)
        self._kill(f"act.before:{act}")
        async with telling(self._store, entry, every_s=self._timing.progress_s) as teller:
            task = asyncio.create_task(
                self._acts.perform(
                    act,
                    entry,
                    keep={target.sha256 for one in others for target in one.targets},
                    takes_over=takes_over,
                    on_step=teller,
                ),
                name=f"act-{act}",
            )
            try:
                if not await self._watch(task, act, entry, others):
                    return None
                event = task.result()
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})
        self._kill(f"act.after:{act}")
        return event

    async def _watch(
        self, task: asyncio.Task[Event], act: Act, entry: Entry, others: Iterable[Entry]
    ) -> bool:
        """Wait for an act's end and answer the office meanwhile; False when it is to be interrupted."""
        yields = act in _SHORT and not entry.begun
        touched_due_s = min((self._due_s(one) for one in others if one.begun), default=float("inf"))
        while not task.done():
            self.pulse()
            rest_s = self._timing.rest_s
            if yields:
                rest_s = min(rest_s, max(0.0, touched_due_s - self._clock.boot_s()))
            wake = asyncio.create_task(self._rest(rest_s), name="updater-wake")
            try:
                await asyncio.wait({task, wake}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                wake.cancel()
                await asyncio.wait({wake})
            if task.done():
                break
            self._store.changed.clear()
            fresh = await self._store.entry(*entry.key)
            word = None if fresh is None else self._word(fresh)
            if yields:
                if word is not None or self._clock.boot_s() >= touched_due_s:
                    return False
            elif fresh is not None and word is not None:
                await self._apply(fresh, word, [])
        return True

    async def _apply(self, entry: Entry, event: Event, live: Iterable[Entry]) -> None:
        """Decide, write, plan."""
        rivals = [
            one for one in live if one.key != entry.key and one.begun and one.components & entry.components
        ]
        # A release that has begun is never taken over, and takes nothing over: it ends whole by itself.
        if isinstance(event, Ready) and any(
            one.state is not UpdateState.FLASHING or one.is_of_several or entry.is_of_several
            for one in rivals
        ):
            event = Unsafe.by(Cause("other_update"))
        move = decide(entry, event)
        if isinstance(event, Fetched):
            self._link_failures = 0
        taken = []
        if entry.state is UpdateState.WAITING and move.entry.state is UpdateState.FLASHING:
            taken = [decide(one, TakenOver(entry.job_id)) for one in rivals]
        await self._write(move, *taken, answers=isinstance(event, CancelAsked | Replaced))
        if isinstance(event, CancelAsked | Replaced) and not move.entry.ended:
            # The act that is planned, or under way, goes on.
            return
        self._plan(move)

    def _plan(self, move: Move) -> None:
        pause_s = self._pause_s(move)
        self._plans[move.entry.key] = _Plan(
            act=move.act,
            due_s=self._clock.boot_s() + pause_s if pause_s else 0.0,
            revision=move.entry.revision,
            waits_for_office=move.pause is Pause.URL or not move.entry.begun,
        )

    async def _write(self, *moves: Move, answers: bool = False) -> None:
        """Write the moves' entries and statuses in one transaction. `answers`: so is the office's wish."""
        state = moves[0].entry.state
        self._kill(f"journal.before:{state}")
        await self._store.record(
            *(Change(entry=move.entry, report=move.report, answers=answers) for move in moves)
        )
        self._kill(f"journal.after:{state}")
        for move in moves:
            entry, report = move.entry, move.report
            self._touching = self._touching or entry.begun
            log.info(
                "updater.job_moved",
                job_id=entry.job_id,
                attempt=entry.attempt,
                state=entry.state,
                step=report.step if report is not None else None,
                reason=report.reason if report is not None else None,
                act=move.act,
                pause=move.pause,
            )
            if entry.ended:
                self.ended.set()

    def _pause_s(self, move: Move) -> float:
        match move.pause:
            case Pause.NONE:
                return 0.0
            case Pause.BACKOFF:
                return self._backoff.delay_s(max(0, move.entry.tries - 1))
            case Pause.LONGEST:
                return self._backoff.most_s
            case Pause.LINK:
                self._link_failures += 1
                return min(self._backoff.delay_s(self._link_failures - 1), self._timing.link_s)
            case Pause.REFUSED:
                return self._timing.refused_s
            case Pause.POLL:
                return self._timing.poll_s
            case Pause.RESTARTS:
                return self._backoff.delay_s(max(0, move.entry.restarts - FREE_RESTARTS - 1))
            case Pause.URL:
                return self._timing.url_s
            case _:
                assert_never(move.pause)
