"""Brings the truck's trust up to date: fetches both repositories' metadata, verifies, keeps what verified.

`refresh()` asks the office, `refresh_from()` a USB bundle; both end in an Outcome and in a store on the disk,
also when the run was refused: a rotation that was seen is not forgotten. A selection that verified is kept
with its files, and `verify_again()` judges it once more, without a network, right before it is flashed.
What is refused, and may be an attack, becomes an alarm of the next vehicle manifest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Generator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import msgspec

from edge_agent.errors import StoreFailed
from edge_agent.threads import finish_in_thread
from edge_agent.trust.metadata_source import (
    BundleSource,
    LinkCut,
    OfficeUnreached,
    SlowRetrieval,
    Source,
    WrongDates,
)
from edge_agent.trust.trust_files import MOST_FILES_BYTES, KeptSelection, TrustFiles
from edge_agent.trust.trust_store import TrustKeeper
from edge_agent.trust.trusted_time import TimeAsker, TrustedTime
from shared.logs import get_log
from shared.release import FirmwareSpec
from shared.since_310 import timeout
from shared.trust.document import TrustError
from shared.trust.uptane.errors import (
    Expired,
    MetadataRefused,
    Missing,
    StoreUnreadable,
    TimeNotProved,
    TooLarge,
)
from shared.trust.uptane.selection import Selection
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.store import TrustedStore
from shared.trust.uptane.time_policy import Begin, Reading, TimePolicy, judge_time, may_begin
from shared.trust.uptane.vehicle import Vehicle
from shared.trust.uptane.verify import Outcome, verify

log = get_log("edge_agent.metadata")

MOST_RUN_BYTES = 32 * 1024 * 1024
RUN_S = 1800.0
CUTS_BEFORE_ALARM = 3
"""Runs on end that the office began to answer and that were cut: links break, but not always."""

Alarm = Callable[[str], Awaitable[None]]
"""Takes the code of a refusal."""


class SelectionChanged(MetadataRefused):
    """What was selected when it was kept is not what its files select now."""

    code = "selection_changed"
    advice = "Look at the truck's selection in the office, and start a new job for what is wanted now."


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """A run's end. `selection_id` names the kept selection, for `verify_again`; None: nothing to install."""

    outcome: Outcome
    selection_id: str | None = None


@dataclass(kw_only=True)
class _Run:
    """What one run has fetched, by "repository/name"; `listed` are those whose hash was signed."""

    source: Source
    offline: bool
    ends_at: float
    files: dict[str, bytes] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    used: int = 0


class Metadata:
    """The truck's metadata. One run at a time; `verify_again` waits for none.

    `vehicle` says what is in the truck now; `learn` is told what images are called that verified; `needed`
    are the ids of selections that the journal still refers to.
    """

    def __init__(
        self,
        *,
        keeper: TrustKeeper,
        files: TrustFiles,
        office: Source,
        time: TrustedTime,
        vehicle: Callable[[], Awaitable[Vehicle]],
        alarm: Alarm,
        learn: Callable[[Collection[FirmwareSpec]], Awaitable[None]],
        needed: Callable[[], Collection[str]] = tuple,
        asker: TimeAsker | None = None,
        run_s: float = RUN_S,
    ) -> None:
        self._keeper = keeper
        self._files = files
        self._office = office
        self._time = time
        self._vehicle = vehicle
        self._alarm = alarm
        self._learn = learn
        self._needed = needed
        self._asker = asker
        self._run_s = run_s
        self._one = asyncio.Lock()
        self._cuts = 0

    async def refresh(self) -> Refreshed:
        """Ask the office. What is refused is in the outcome; nothing of it is used.

        Where the clock may be to blame, the time is asked for, and the run repeated once. Raises
        StoreUnreadable (nothing is trusted until a person has looked) and StoreFailed (the disk; what was
        trusted before still is).
        """
        async with self._one:
            done = await self._run(self._office, offline=False)
            if self._may_be_the_clock(done.outcome) and await self._prove_time():
                done = await self._run(self._office, offline=False)
            await self._tell(done.outcome.refused)
            return done

    async def refresh_from(self, folder: Path) -> Refreshed:
        """The same from a USB bundle, by the director's offline role, without any network."""
        async with self._one:
            done = await self._run(BundleSource(folder=folder), offline=True)
            await self._tell(done.outcome.refused)
            return done

    async def verify_again(self, selection_id: str, *, begun: bool) -> Selection:
        """A kept selection, verified once more from the disk as of now; changes nothing that is trusted.

        `begun`: an ECU may be erased for it already. Then only its authority is asked, by what was trusted
        when it was kept, whatever has expired or was rotated since: not to finish would strand the ECU.
        Raises MetadataRefused (fetch the metadata again) and StoreUnreadable.
        """
        vehicle = None if begun else await self._vehicle()
        try:
            return await finish_in_thread(self._again, selection_id, vehicle)
        except Missing:
            # A run that ended meanwhile has kept the same selection with newer files.
            return await finish_in_thread(self._again, selection_id, vehicle)

    async def kept_selections(self) -> tuple[str, ...]:
        """The ids of kept selections, the newest first; whether they are good, `verify_again` says."""
        return await finish_in_thread(self._files.selections)

    # --- one run ------------------------------------------------------------------------------

    async def _run(self, source: Source, *, offline: bool) -> Refreshed:
        try:
            store = self._keeper.store
        except StoreUnreadable as error:
            await self._alarm(error.code)
            raise
        vehicle = await self._vehicle()
        run = _Run(source=source, offline=offline, ends_at=time.monotonic() + self._run_s)
        steps = verify(store, vehicle, self._time.reading(), self._time.policy, offline=offline)
        outcome = await self._drive(steps, run)
        await self._keeper.keep(outcome.store)
        selection_id = await self._keep(outcome, vehicle, run)
        refused = outcome.refused
        log.info(
            "metadata.run_ended",
            offline=offline,
            refused=None if refused is None else refused.code,
            why=None if refused is None else refused.message,
            release=None if outcome.selection is None else outcome.selection.release.target_path,
            fetched=run.used,
        )
        return Refreshed(outcome=outcome, selection_id=selection_id)

    async def _drive(self, steps: Generator[Wanted, bytes | None, Outcome], run: _Run) -> Outcome:
        """Checks in a thread, files from the disk or the source; a source's refusal is the run's."""
        step = await finish_in_thread(_next, steps, None)
        while isinstance(step, Wanted):
            try:
                raw = await self._fetch(step, run)
            except MetadataRefused as refused:
                step = await finish_in_thread(_refuse, steps, refused)
            else:
                step = await finish_in_thread(_next, steps, raw)
        return step

    async def _fetch(self, wanted: Wanted, run: _Run) -> bytes | None:
        name = f"{wanted.repository}/{wanted.name}"
        raw = await finish_in_thread(self._files.get, wanted.sha256)
        if raw is None:
            try:
                async with timeout(max(0.0, run.ends_at - time.monotonic())):
                    raw = await run.source.fetch(wanted)
            except TimeoutError as error:
                raise SlowRetrieval(name, f"all of it takes longer than {self._run_s:g} s") from error
            if raw is None:
                return None
            run.used += len(raw)
            if run.used > MOST_RUN_BYTES:
                raise TooLarge(name, f"with it more than {MOST_RUN_BYTES} bytes came in one run")
        run.files[name] = raw
        if wanted.sha256 is not None:
            run.listed.add(name)
        return raw

    async def _keep(self, outcome: Outcome, vehicle: Vehicle, run: _Run) -> str | None:
        """Files that were listed spare the next download; those of a selection must be there for it."""
        selection = outcome.selection
        try:
            if selection is not None:
                await self._learn([one.spec for one in selection.assignments])
            return await finish_in_thread(self._keep_files, outcome, vehicle, run)
        except OSError as error:
            if selection is None:
                log.warning("trust.files_not_kept", why=str(error))
                return None
            raise StoreFailed(f"the verified selection can't be kept: {error}") from error

    def _keep_files(self, outcome: Outcome, vehicle: Vehicle, run: _Run) -> str | None:
        selection, files = outcome.selection, self._files
        names = run.files if selection is not None else run.listed
        hashes = {name: files.put(run.files[name]) for name in sorted(names)}
        selection_id = None
        if selection is not None:
            kept = KeptSelection(
                selection=selection, store=outcome.store, vehicle=vehicle, offline=run.offline, files=hashes
            )
            selection_id = files.keep(kept)
        needed = {*self._needed(), *([selection_id] if selection_id is not None else [])}
        if outcome.refused is None:
            files.prune(needed, hashes.values())
        elif files.bytes_used() > MOST_FILES_BYTES:
            files.prune(needed, ())
        return selection_id

    # --- once more ----------------------------------------------------------------------------

    def _again(self, selection_id: str, vehicle: Vehicle | None) -> Selection:
        kept = self._files.load(selection_id)
        if vehicle is None:
            outcome = self._as_it_was(kept, kept.store, kept.vehicle)
        else:
            outcome = self._now(kept, vehicle)
        if outcome.refused is not None:
            raise outcome.refused
        made = outcome.selection
        if made is None or _essence(made) != _essence(kept.selection):
            raise SelectionChanged("selection", f"{selection_id} is not what its files select")
        return made

    def _now(self, kept: KeptSelection, vehicle: Vehicle) -> Outcome:
        store, policy, reading = self._keeper.store, self._time.policy, self._time.reading()
        outcome = self._verify_kept(kept, store, vehicle, reading, policy)
        if isinstance(outcome.refused, Expired):
            now = judge_time(reading, store.floor(policy.built_at), policy).at
            if may_begin(kept.selection.expires, now, policy, begun=False) is Begin.NOW:
                # The grace is for the dates alone: keys, versions and counters are judged as of now.
                return self._as_it_was(kept, store, vehicle)
        return outcome

    def _as_it_was(self, kept: KeptSelection, store: TrustedStore, vehicle: Vehicle) -> Outcome:
        """By the last second in which all of it was good."""
        at = kept.selection.expires - timedelta(seconds=1)
        timeless = msgspec.structs.replace(store, times={})
        return self._verify_kept(kept, timeless, vehicle, Reading(wall=at), TimePolicy(built_at=at))

    def _verify_kept(
        self, kept: KeptSelection, store: TrustedStore, vehicle: Vehicle, reading: Reading, policy: TimePolicy
    ) -> Outcome:
        steps = verify(store, vehicle, reading, policy, offline=kept.offline)
        return drive(steps, lambda wanted: self._files.fetch_of(kept, wanted))

    # --- time and alarms ----------------------------------------------------------------------

    def _may_be_the_clock(self, outcome: Outcome) -> bool:
        doubtful = isinstance(outcome.refused, WrongDates | Expired | TimeNotProved)
        return doubtful and self._asker is not None and self._time.proved is None

    async def _prove_time(self) -> bool:
        assert self._asker is not None
        try:
            return await self._asker.ask()
        except TrustError as error:
            if isinstance(error, StoreUnreadable):
                raise
            log.warning("time.token_refused", code=error.code, why=error.message)
            await self._alarm(error.code)
            return False

    async def _tell(self, refused: MetadataRefused | None) -> None:
        """Alarm of what may be an attack. A link that is away is none; one that is always cut may be."""
        match refused:
            case LinkCut():
                self._cuts += 1
                if self._cuts >= CUTS_BEFORE_ALARM:
                    await self._alarm(refused.code)
            case WrongDates():
                await self._alarm(refused.code)
            case OfficeUnreached():
                pass
            case None:
                self._cuts = 0
            case _:
                self._cuts = 0
                await self._alarm(refused.code)


def _next(steps: Generator[Wanted, bytes | None, Outcome], raw: bytes | None) -> Wanted | Outcome:
    try:
        return steps.send(raw)
    except StopIteration as ended:
        outcome: Outcome = ended.value
        return outcome


def _refuse(steps: Generator[Wanted, bytes | None, Outcome], refused: MetadataRefused) -> Wanted | Outcome:
    try:
        return steps.throw(refused)
    except StopIteration as ended:
        outcome: Outcome = ended.value
        return outcome


def _essence(selection: Selection) -> tuple[bytes, tuple[tuple[str, FirmwareSpec], ...]]:
    """What of a selection must be the same when it is verified again; its expiry may have moved."""
    return selection.release.dump(), tuple((one.ecu.serial, one.spec) for one in selection.assignments)
