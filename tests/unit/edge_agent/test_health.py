"""What speaks against an ECU after its start, and what a truck must be able to tell beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec import UNSET

from edge_agent.errors import HealthUnknown
from edge_agent.interlocks.heartbeat import Beats, Pulse, Sender
from edge_agent.interlocks.j1939 import CCVS, make_id
from edge_agent.interlocks.j1939_vehicle import BusSource, filters_of
from edge_agent.interlocks.safety import STRICT
from edge_agent.store import release as releases
from edge_agent.store.release import Former, Release
from edge_agent.store.release_plan import (
    FaultBounds,
    HealthBounds,
    HeartbeatBounds,
    PlannedTarget,
    ReleasePlan,
)
from edge_agent.update.authority import Order, Orders
from edge_agent.update.health import (
    against_beats,
    against_faults,
    bounds_of,
    check_can_tell,
    fresh_faults,
    watching,
)
from firmware_flashers.base import FlashError, TroubleCode
from shared.trust.uptane.health import Health, Heartbeat, TroubleCodes
from shared.trust.uptane.release_document import ReleaseTarget

CONFIRMED = FaultBounds(status_mask=0x08)
BEAT = HeartbeatBounds(pgn=65280, source=0x21, every_s=0.5, for_s=2.0)
SENDER = Sender(pgn=65280, source=0x21)
PLAIN = HealthBounds(within_s=7.0, every_s=2.0)


def codes(**stored: int) -> list[TroubleCode]:
    return [TroubleCode(code=int(code[1:], 16), status=status) for code, status in stored.items()]


# --- what the signed words mean -------------------------------------------------------------------


def test_a_release_that_says_nothing_changes_nothing() -> None:
    assert bounds_of(UNSET, PLAIN) == PLAIN
    assert not bounds_of(Health(), PLAIN).asks_more


def test_signed_milliseconds_become_seconds() -> None:
    signed = Health(
        within_ms=20_000,
        every_ms=500,
        dtcs=TroubleCodes(status_mask=0x29, ignored=(1, 2), known_may_stay=False, for_ms=2500),
        heartbeat=Heartbeat(pgn=65280, at_least_every_ms=250, for_ms=1500),
    )
    assert bounds_of(signed, PLAIN) == HealthBounds(
        within_s=20.0,
        every_s=0.5,
        faults=FaultBounds(status_mask=0x29, ignored=(1, 2), known_may_stay=False, for_s=2.5),
        heartbeat=HeartbeatBounds(pgn=65280, source=None, every_s=0.25, for_s=1.5),
    )


def test_a_signed_release_of_one_ecu_asks_by_its_plan() -> None:
    signed = ReleaseTarget(
        kind="brake-controller",
        hardware=("rev-b",),
        version="2.0.0",
        release_counter=2,
        length=100,
        sha256="ab" * 32,
        health=Health(heartbeat=Heartbeat(pgn=65280, at_least_every_ms=500, for_ms=1000)),
    )
    order = Order(component="brakes", spec=signed.spec, document=b"", url="", planned=signed)
    plain = ReleasePlan(targets=(PlannedTarget(component="brakes", slots=1),))
    [target] = Orders(targets=(order,), safety=STRICT).plan(plain, STRICT).targets
    assert target.health.heartbeat == HeartbeatBounds(pgn=65280, source=None, every_s=0.5, for_s=1.0)


def test_bounds_and_known_codes_outlive_a_restart_and_old_rows_are_read() -> None:
    plan = ReleasePlan(
        targets=(
            PlannedTarget(component="brakes", slots=1, health=HealthBounds(faults=CONFIRMED, heartbeat=BEAT)),
        )
    )
    release = Release.of(plan).having(
        "brakes", former=Former(version="1", sha256="ab", is_kept=True, faults=(5,))
    )
    assert releases.decode(releases.encode(release)) == release
    older = releases.encode(release).replace(',"faults":[5]', "")
    older = older.replace(
        older[older.index(',"faults":{') : older.index("}", older.index('"heartbeat":{')) + 1], ""
    )
    read = releases.decode(older)
    assert read.plan.target("brakes").health == HealthBounds()
    former = read.state("brakes").former
    assert former is not None
    assert former.faults is None


# --- trouble codes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stored", "bounds", "before", "fresh"),
    [
        ("none", {}, CONFIRMED, (), ()),
        ("a new one", {"x123": 0x08}, CONFIRMED, (), (0x123,)),
        ("of other bits", {"x123": 0x27}, CONFIRMED, (), ()),
        ("known before", {"x123": 0x08}, CONFIRMED, (0x123,), ()),
        ("known, and a new one", {"x123": 0x08, "x1": 0x2F}, CONFIRMED, (0x123,), (0x1,)),
        (
            "known, and not excused",
            {"x123": 0x08},
            FaultBounds(status_mask=8, known_may_stay=False),
            (0x123,),
            (0x123,),
        ),
        ("nobody knows what was before", {"x123": 0x08}, CONFIRMED, None, (0x123,)),
        ("ignored", {"x123": 0x08}, FaultBounds(status_mask=8, ignored=(0x123,)), None, ()),
    ],
)
def test_which_codes_speak_against_it(
    name: str, stored: dict[str, int], bounds: FaultBounds, before: Any, fresh: tuple[int, ...]
) -> None:
    assert fresh_faults(codes(**stored), bounds, before) == fresh, name


def test_a_reason_names_codes_in_bounds() -> None:
    assert against_faults("brakes", ()) is None
    why = against_faults("brakes", range(0xC10000, 0xC10000 + 300))
    assert why is not None
    assert (why.code, why.retryable) == ("dtc_after_start", False)
    assert "C10000" in why.message
    assert "292 more" in why.message


# --- the heartbeat --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "times", "now", "well"),
    [
        ("silence", [], 10.0, False),
        ("one frame", [0.0], 0.1, False),
        ("in time, for long enough", [0.0, 0.5, 1.0, 1.5, 2.0], 2.1, True),
        ("not long enough yet", [0.0, 0.5, 1.0, 1.5], 1.6, False),
        ("late, then in time for long enough", [0.0, 5.0, 5.5, 6.0, 6.5, 7.0], 7.1, True),
        ("a gap in it", [0.0, 0.5, 1.0, 1.7, 2.2, 2.7], 2.8, False),
        ("stopped since", [0.0, 0.5, 1.0, 1.5, 2.0], 2.7, False),
    ],
)
def test_a_heartbeat_must_come_often_enough_for_long_enough(
    name: str, times: list[float], now: float, well: bool
) -> None:
    pulse = Pulse(SENDER, BEAT.every_s + 0.1)
    for at in times:
        pulse.note(at)
    assert (against_beats("brakes", SENDER, pulse.beats(now), BEAT) is None) == well, name


def test_what_nobody_could_hear_proves_nothing() -> None:
    pulse = Pulse(SENDER, 0.6)
    for at in (0.0, 0.5, 1.0, 1.5, 2.0):
        pulse.note(at)
    pulse.forget()
    assert pulse.beats(2.1) == Beats()
    why = against_beats("brakes", SENDER, pulse.beats(2.1), BEAT)
    assert why is not None
    assert (why.code, "is not heard" in why.message, "0x21" in why.message) == ("no_heartbeat", True, True)


@pytest.mark.parametrize(
    ("pgn", "number", "heard"),
    [
        (65280, 0x18FF0021, True),
        (65280, 0x0CFF0021, True),
        (65280, 0x18FF0022, False),
        (65280, 0x18FF0121, False),
        (65280, 0x19FF0021, False),
        (0xEF00, 0x18EFFF21, True),
        (0xEF00, 0x18EF0321, True),
        (0xEF00, 0x18EF2103, False),
        (0x1FF00, 0x19FF0021, True),
    ],
)
def test_whose_frames_count_and_pass_the_drivers_filter(pgn: int, number: int, heard: bool) -> None:
    sender = Sender(pgn=pgn, source=0x21)
    assert sender.is_of(number) == heard
    source = BusSource(interface="socketcan", channel="can0", senders={CCVS.pgn: (0x0B,)})
    passes = [
        one["extended"] and (number ^ one["can_id"]) & one["can_mask"] == 0
        for one in filters_of(source, [sender])
    ]
    assert any(passes) == heard
    assert not any(
        one["extended"] and (number ^ one["can_id"]) & one["can_mask"] == 0 for one in filters_of(source)
    )
    assert make_id(CCVS.pgn, 0x0B) == 0x18FEF10B


# --- what can be told on this truck ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "health", "truck", "refused"),
    [
        ("nothing asked", HealthBounds(), {}, None),
        ("codes that can be read", HealthBounds(faults=CONFIRMED), {"reads_faults": True}, None),
        ("codes of a ROM loader", HealthBounds(faults=CONFIRMED), {"hears": True}, "trouble codes"),
        ("a heartbeat that can be heard", HealthBounds(heartbeat=BEAT), {"hears": True}, None),
        ("a heartbeat without a bus", HealthBounds(heartbeat=BEAT), {"reads_faults": True}, "no J1939 bus"),
        (
            "a heartbeat of nobody's address",
            HealthBounds(heartbeat=HeartbeatBounds(pgn=65280, every_s=1, for_s=1)),
            {"hears": True, "addresses": {"display": 3}},
            "address",
        ),
        (
            "a heartbeat of the component's own address",
            HealthBounds(heartbeat=HeartbeatBounds(pgn=65280, every_s=1, for_s=1)),
            {"hears": True, "addresses": {"brakes": 3}},
            None,
        ),
    ],
)
def test_what_can_not_be_told_refuses_the_release(
    name: str, health: HealthBounds, truck: dict[str, Any], refused: str | None
) -> None:
    target = PlannedTarget(component="brakes", slots=1, health=health)
    means: dict[str, Any] = {"reads_faults": False, "hears": False, "addresses": {}, **truck}
    if refused is None:
        check_can_tell(target, **means)
        return
    with pytest.raises(HealthUnknown, match=refused):
        check_can_tell(target, **means)


# --- over time ------------------------------------------------------------------------------------


class Stored:
    """A flasher whose ECU stores these codes."""

    def __init__(self) -> None:
        self.codes: list[TroubleCode] = []

    async def trouble_codes(self, status_mask: int) -> tuple[TroubleCode, ...]:
        return tuple(one for one in self.codes if one.status & status_mask)


class Radio:
    """A vehicle's bus on which a test says what was heard."""

    def __init__(self) -> None:
        self.heard = Beats()
        self.listening = 0

    @contextmanager
    def hearing(self, _: Sender, *, every_s: float) -> Iterator[Any]:
        self.listening += 1
        try:
            yield self
        finally:
            self.listening -= 1

    def beats(self) -> Beats:
        return self.heard


async def test_it_must_be_without_codes_for_some_time_on_end() -> None:
    target = PlannedTarget(
        component="brakes",
        slots=1,
        health=HealthBounds(faults=FaultBounds(status_mask=0x08, for_s=3.0)),
    )
    ecu: Any = Stored()
    with watching([target], before={}, hears=None, addresses={}) as watched:
        one = watched["brakes"]

        async def is_well(now: float) -> bool:
            return await one.ask(ecu, now) is None

        assert [await is_well(at) for at in (0.0, 2.9, 3.0)] == [False, False, True]
        ecu.codes = codes(x123=0x08)
        assert not await is_well(4.0)
        ecu.codes = []
        assert [await is_well(at) for at in (5.0, 7.9, 8.0)] == [False, False, True]
        one.doubt()
        assert not await is_well(9.0)


async def test_both_must_hold_at_one_look_and_listening_ends_with_the_block() -> None:
    radio, ecu = Radio(), Stored()
    target = PlannedTarget(component="brakes", slots=1, health=HealthBounds(faults=CONFIRMED, heartbeat=BEAT))
    found = []
    with watching([target], before={}, hears=radio, addresses={}) as watched:
        assert radio.listening == 1
        for stored, heard in (({"x1": 0x08}, 2.0), ({}, 0.5), ({"x1": 0x08}, 0.5), ({}, 2.0)):
            ecu.codes = codes(**stored)
            radio.heard = Beats(last_s_ago=0.1, on_end_s=heard)
            against: FlashError | None = await watched["brakes"].ask(ecu, 1.0)  # type: ignore[arg-type]
            found.append(None if against is None else against.code)
    assert found == ["dtc_after_start", "no_heartbeat", "dtc_after_start", None]
    assert radio.listening == 0


async def test_listening_ends_when_one_of_several_can_not_be_listened_to() -> None:
    radio = Radio()
    nobody = HeartbeatBounds(pgn=65280, every_s=1, for_s=1)
    targets = [
        PlannedTarget(component="brakes", slots=1, health=HealthBounds(heartbeat=BEAT)),
        PlannedTarget(component="display", slots=2, health=HealthBounds(heartbeat=nobody)),
    ]
    with pytest.raises(HealthUnknown), watching(targets, before={}, hears=radio, addresses={}):
        raise AssertionError("it began")
    assert radio.listening == 0
