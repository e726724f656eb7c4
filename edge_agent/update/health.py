"""Is an ECU well after its start? The judgement is pure; asking and listening is a few lines around it.

Read back is always its identity (`ecus.proved`). A signed release may ask for more: no trouble codes that it
did not have before the release touched anything, for some time on end, and a heartbeat on the vehicle's bus.
What can't be asked on this truck refuses the release before the first touch (HealthUnknown); what can't be
heard afterwards is not well. A judgement ends with the bounds' time and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

from msgspec import UNSET, UnsetType

from edge_agent.errors import HealthUnknown
from edge_agent.interlocks.heartbeat import Beats, Sender
from edge_agent.store.release_plan import FaultBounds, HealthBounds, HeartbeatBounds, PlannedTarget
from firmware_flashers.base import Flasher, NotProved, ReadsFaults, TroubleCode
from shared.trust.uptane.health import Health

MOST_NAMED = 8
"""Trouble codes in one sentence."""


class Hearing(Protocol):
    """One heartbeat that is listened for."""

    def beats(self) -> Beats:
        """What was heard so far; takes no time."""
        ...


@runtime_checkable
class HearsBeats(Protocol):
    """A vehicle whose bus can be listened to."""

    def hearing(self, sender: Sender, *, every_s: float) -> AbstractContextManager[Hearing]:
        """Listen for the time of the block; a gap of over `every_s` breaks the row."""
        ...


# --- what the signed release asks for -----------------------------------------------------------


def bounds_of(health: Health | UnsetType, unsaid: HealthBounds) -> HealthBounds:
    """The signed words in seconds; `unsaid` where a release says nothing."""
    if health is UNSET:
        return unsaid
    dtcs, beat = health.dtcs, health.heartbeat
    return HealthBounds(
        within_s=health.within_ms / 1000,
        every_s=health.every_ms / 1000,
        faults=None
        if dtcs is UNSET
        else FaultBounds(
            status_mask=dtcs.status_mask,
            ignored=dtcs.ignored,
            known_may_stay=dtcs.known_may_stay,
            for_s=dtcs.for_ms / 1000,
        ),
        heartbeat=None
        if beat is UNSET
        else HeartbeatBounds(
            pgn=beat.pgn,
            source=None if beat.source is UNSET else beat.source,
            every_s=beat.at_least_every_ms / 1000,
            for_s=beat.for_ms / 1000,
        ),
    )


def sender_of(target: PlannedTarget, addresses: Mapping[str, int]) -> Sender | None:
    """Whose heartbeat is asked for; None: nobody's. Raises HealthUnknown where no address is known."""
    beat = target.health.heartbeat
    if beat is None:
        return None
    source = addresses.get(target.component) if beat.source is None else beat.source
    if source is None:
        raise HealthUnknown(
            f"the release asks for a heartbeat of {target.component}, and nobody has said its J1939 address"
        )
    return Sender(pgn=beat.pgn, source=source)


def check_can_tell(
    target: PlannedTarget, *, reads_faults: bool, hears: bool, addresses: Mapping[str, int]
) -> None:
    """Raise HealthUnknown where this truck can't tell what the release asks for.

    `reads_faults`: the ECU's flasher is a ReadsFaults; `hears`: the truck's vehicle is a HearsBeats.
    """
    if target.health.faults is not None and not reads_faults:
        raise HealthUnknown(f"the release asks for trouble codes of {target.component}, which can't be read")
    if sender_of(target, addresses) is not None and not hears:
        raise HealthUnknown(
            f"the release asks for a heartbeat of {target.component}, and this truck reads no J1939 bus"
        )


# --- the judgement ------------------------------------------------------------------------------


def fresh_faults(
    codes: Iterable[TroubleCode], bounds: FaultBounds, before: Collection[int] | None
) -> tuple[int, ...]:
    """The codes that speak against the ECU. `before`: those that it had already; None: not known."""
    allowed = {*bounds.ignored, *((before or ()) if bounds.known_may_stay else ())}
    return tuple(sorted({one.code for one in codes if one.status & bounds.status_mask} - allowed))


def against_faults(component: str, fresh: Collection[int]) -> NotProved | None:
    """Why trouble codes speak against it."""
    if not fresh:
        return None
    named = ", ".join(f"{code:06X}" for code in sorted(fresh)[:MOST_NAMED])
    more = f" and {len(fresh) - MOST_NAMED} more" if len(fresh) > MOST_NAMED else ""
    return NotProved(
        f"{component} has trouble codes since its start: {named}{more}",
        code="dtc_after_start",
        retryable=False,
        advice="Look the codes up in the ECU's manual; the release may name some as ignored.",
    )


def against_beats(component: str, sender: Sender, beats: Beats, bounds: HeartbeatBounds) -> NotProved | None:
    """Why its heartbeat speaks against it."""
    if beats.last_s_ago is not None and beats.on_end_s >= bounds.for_s:
        return None
    heard = "is not heard" if beats.last_s_ago is None else "comes too seldom, or not for long enough"
    return NotProved(
        f"the heartbeat of {component} (PGN {sender.pgn} from address 0x{sender.source:02X}) {heard}: "
        f"wanted every {bounds.every_s:g} s for {bounds.for_s:g} s",
        code="no_heartbeat",
        retryable=False,
        advice="See whether the ECU runs and sends on the vehicle's bus, and whether its address is right.",
    )


class Watched:
    """One ECU while it proves itself: what was heard of it, and since when it has no fresh trouble codes."""

    def __init__(
        self,
        target: PlannedTarget,
        *,
        before: Collection[int] | None,
        hearing: Hearing | None,
        sender: Sender | None,
    ) -> None:
        self.component = target.component
        self.bounds = target.health
        self._before = before
        self._hearing = hearing
        self._sender = sender
        self._clean_since: float | None = None

    def doubt(self) -> None:
        """It did not answer, or not as it should: its time without trouble codes begins anew."""
        self._clean_since = None

    async def ask(self, flasher: Flasher, now: float) -> NotProved | None:
        """Why it is not well yet, at `now` of the boot clock. Raises FlashError."""
        faults = self.bounds.faults
        if faults is not None:
            if not isinstance(flasher, ReadsFaults):
                raise HealthUnknown(f"the trouble codes of {self.component} can't be read")
            codes = await flasher.trouble_codes(faults.status_mask)
            against = against_faults(self.component, fresh_faults(codes, faults, self._before))
            if against is not None:
                self._clean_since = None
                return against
            if self._clean_since is None:
                self._clean_since = now
            if now - self._clean_since < faults.for_s:
                return NotProved(
                    f"{self.component} has not been without trouble codes for {faults.for_s:g} s on end yet"
                )
        beat = self.bounds.heartbeat
        if beat is None:
            return None
        assert self._sender is not None, "it was found before the first touch"
        beats = Beats() if self._hearing is None else self._hearing.beats()
        return against_beats(self.component, self._sender, beats, beat)


@contextmanager
def watching(
    targets: Iterable[PlannedTarget],
    *,
    before: Mapping[str, Collection[int] | None],
    hears: HearsBeats | None,
    addresses: Mapping[str, int],
) -> Iterator[Mapping[str, Watched]]:
    """Listen for the heartbeats of these ECUs for the time of the block; `before` are their known codes.

    Raises HealthUnknown.
    """
    with ExitStack() as stack:
        watched: dict[str, Watched] = {}
        for target in targets:
            sender, beat = sender_of(target, addresses), target.health.heartbeat
            hearing = None
            if sender is not None and beat is not None and hears is not None:
                hearing = stack.enter_context(hears.hearing(sender, every_s=beat.every_s))
            watched[target.component] = Watched(
                target, before=before.get(target.component), hearing=hearing, sender=sender
            )
        yield watched
