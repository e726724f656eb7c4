"""Neighbours that keep quiet while an ECU is flashed: from before the first erase, and never longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from firmware_flashers.base import FlashError, NoAnswer, NotNow
from firmware_flashers.uds_profile import QuietNode
from sim.mcu.bystander import Bystander, BystanderSettings
from sim.mcu.faults import Faults
from sim.mcu.isotp import Transport
from sim.mcu.profile import Timing

S3 = 5.0


@pytest.fixture
def neighbour(lab: Any) -> Any:
    """Puts a node on an ECU's bus; returns it and how the profile names it."""

    def make(ecu: Any, number: int = 1, *, faults: Any = None) -> tuple[Bystander, QuietNode]:
        extended = ecu.ids["tx_id"] > 0x7FF
        node = QuietNode(
            tx_id=0x18DA00F1 | (0x80 + number) << 8 if extended else 0x710 + number,
            rx_id=0x18DAF180 + number if extended else 0x718 + number,
        )
        bus = ecu.model.endpoint(fd=ecu.fd, driver=False)
        lab.stack.callback(bus.shutdown)
        settings = BystanderSettings(
            request_id=node.tx_id,
            response_id=node.rx_id,
            functional_id=ecu.ids["functional_id"],
            periodic_id=0x1A0 + number,
            fd=ecu.fd,
        )
        return lab.stack.enter_context(Bystander(bus, settings, faults=faults)), node

    return make


def words(node: Bystander) -> list[str]:
    return [event.word for event in node.events]


def is_normal(node: Bystander) -> bool:
    return not node.is_silenced and not node.are_dtcs_off


async def until_normal(ecu: Any, node: Bystander, within_s: float) -> float:
    """Seconds of the wire that it takes."""
    begun = ecu.model.now()
    while not is_normal(node):
        assert ecu.model.now() - begun <= within_s
        await ecu.settle(0.05)
    return float(ecu.model.now() - begun)


@pytest.mark.parametrize("fd", [False, True], ids=["classic", "fd"])
@pytest.mark.parametrize("extended", [False, True], ids=["11-bit", "29-bit"])
@pytest.mark.parametrize("word", ["stm32-uds", "esp32-uds"])
async def test_they_are_quiet_from_before_the_erase_and_normal_afterwards(
    lab: Any, neighbour: Any, word: str, fd: bool, extended: bool
) -> None:
    ecu = lab.ecu(word, fd=fd, extended=extended)
    (one, node), (two, other) = neighbour(ecu, 1), neighbour(ecu, 2)
    seen: list[bool] = []

    def look(now: Any) -> None:
        if now.step in {"erasing", "writing"}:
            seen.append(one.is_silenced and two.is_silenced and one.are_dtcs_off and two.are_dtcs_off)

    async with ecu.flasher(quiet_nodes=(node, other)) as flasher:
        await flasher.stage(ecu.new, progress=look)
        assert is_normal(one)
        assert is_normal(two)
        await flasher.activate()
        await flasher.verify(ecu.new)
    for node_words in (words(one), words(two)):
        assert node_words[:3] == ["extended", "dtcs_off", "silenced"]
        assert node_words[3:6] == ["audible", "dtcs_on", "default"]
    assert ecu.runs() == ecu.new.spec


async def test_the_profile_may_leave_trouble_codes_alone(lab: Any, neighbour: Any) -> None:
    ecu = lab.ecu()
    node, named = neighbour(ecu)
    async with ecu.flasher(quiet_nodes=(named,), dtc_off=False) as flasher:
        await flasher.stage(ecu.new)
    assert words(node)[:4] == ["extended", "silenced", "audible", "default"]


@pytest.mark.parametrize("functional", [True, False])
async def test_a_long_erase_does_not_wake_them(lab: Any, neighbour: Any, functional: bool) -> None:
    """responsePending for much longer than S3."""
    ecu = lab.ecu(timing=Timing(erase_s=17.0))
    node, named = neighbour(ecu)
    how = {} if functional else {"settings": {"functional_id": None}}
    async with ecu.flasher(quiet_nodes=(named,), **how) as flasher:
        await flasher.stage(ecu.new)
    assert words(node).count("silenced") == 1
    assert ecu.model.now() > 3 * S3


@pytest.mark.parametrize("st_min", [0x0A, 0x14], ids=["10ms", "20ms"])
async def test_a_block_that_takes_longer_than_s3_does_not_wake_them(
    lab: Any, neighbour: Any, st_min: int
) -> None:
    """The ECU wants its frames so slowly that one block takes 6 s, or 12 s."""
    ecu = lab.ecu(new=lab.ecu().image("2.0.0", 8192), transport=Transport(st_min=st_min))
    node, named = neighbour(ecu)
    async with ecu.flasher(quiet_nodes=(named,)) as flasher:
        await flasher.stage(ecu.new)
    assert words(node).count("silenced") == 1
    assert ecu.model.now() > 12


async def test_a_node_that_is_not_there_stops_it_before_anything_is_erased(lab: Any, neighbour: Any) -> None:
    ecu = lab.ecu()
    node, named = neighbour(ecu)
    absent = QuietNode(tx_id=0x7F0, rx_id=0x7F8)
    async with ecu.flasher(quiet_nodes=(named, absent)) as flasher:
        with pytest.raises(NoAnswer, match="0x7f0") as caught:
            await flasher.stage(ecu.new)
    assert not caught.value.touched
    assert is_normal(node)
    assert words(node)[:3] == ["extended", "dtcs_off", "silenced"]
    await ecu.settle()
    assert ecu.runs() == ecu.old.spec
    assert not ecu.mcu.uds.in_bootloader


async def test_a_node_that_may_not_now_stops_it_and_is_named(lab: Any, neighbour: Any) -> None:
    ecu = lab.ecu()
    node, named = neighbour(ecu, faults=Faults(refuse_at_request=3, refuse_with=0x22))
    async with ecu.flasher(quiet_nodes=(named,)) as flasher:
        with pytest.raises(NotNow, match="0x711") as caught:
            await flasher.stage(ecu.new)
    assert not caught.value.touched
    assert is_normal(node)
    assert ecu.runs() == ecu.old.spec


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_a_lost_answer_of_a_node_is_asked_for_again(lab: Any, neighbour: Any, lost: int) -> None:
    ecu = lab.ecu()
    node, named = neighbour(ecu, faults=Faults(lose_response=lost))
    await ecu.flash(quiet_nodes=(named,))
    assert words(node)[:6] == ["extended", "dtcs_off", "silenced", "audible", "dtcs_on", "default"]
    assert ecu.runs() == ecu.new.spec


@pytest.mark.parametrize(
    "fault",
    [
        Faults(moving=True),
        Faults(power_cut_at_byte=500),
        Faults(power_cut_at_frame=60),
        Faults(refuse_at_request=14, refuse_with=0x72),
        Faults(stuck_at_request=9),
    ],
    ids=["not-now", "power-in-flash", "power-at-frame", "refused", "stuck"],
)
async def test_whatever_goes_wrong_they_are_asked_back(
    lab: Any, neighbour: Any, fails: Any, fault: Faults
) -> None:
    ecu = lab.ecu(faults=fault)
    node, named = neighbour(ecu)
    async with ecu.flasher(quiet_nodes=(named,), hasty=True) as flasher:
        error = await fails(flasher.stage(ecu.new))
        assert error is not None
        # In this moment: the part's own silence was waited out before.
        assert is_normal(node)
    assert "silenced" in words(node)


async def test_a_cancelled_step_asks_them_back(lab: Any, neighbour: Any) -> None:
    ecu = lab.ecu(new=lab.ecu().image("2.0.0", 60 * 1024))
    node, named = neighbour(ecu)
    begun = asyncio.Event()
    async with ecu.flasher(quiet_nodes=(named,)) as flasher:
        staging = asyncio.create_task(
            flasher.stage(ecu.new, progress=lambda now: begun.set() if now.step == "writing" else None)
        )
        async with asyncio.timeout(30):
            await begun.wait()
        staging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staging
        assert is_normal(node)
    assert "silenced" in words(node)


async def test_a_restore_that_is_lost_is_repeated_and_bounded(lab: Any, neighbour: Any) -> None:
    ecu = lab.ecu()
    node, named = neighbour(ecu, faults=Faults(lose_response=4))
    await ecu.flash(quiet_nodes=(named,))
    assert is_normal(node)


async def test_a_node_that_dies_meanwhile_costs_seconds_and_no_error(lab: Any, neighbour: Any) -> None:
    ecu = lab.ecu(timing=Timing(erase_s=1.0))
    node, named = neighbour(ecu)
    cut = asyncio.Event()

    def look(now: Any) -> None:
        if now.step == "erasing" and not cut.is_set():
            cut.set()
            node.power_cut()

    async with ecu.flasher(quiet_nodes=(named,)) as flasher:
        await flasher.stage(ecu.new, progress=look)
        await flasher.activate()
        await flasher.verify(ecu.new)
    assert cut.is_set()
    assert ecu.runs() == ecu.new.spec


@pytest.mark.parametrize("frames", [30, 60, 100])
async def test_after_a_killed_tester_they_return_by_themselves_and_the_next_run_works(
    lab: Any, neighbour: Any, fails: Any, frames: int
) -> None:
    """A frozen endpoint says no last word; the node's own S3 ends its silence."""
    ecu = lab.ecu()
    node, named = neighbour(ecu)
    ecu.model.freeze_after(frames, arbitration_id=ecu.ids["tx_id"])
    assert await fails(ecu.flash(quiet_nodes=(named,), hasty=True)) is not None
    assert "silenced" in words(node)
    assert await until_normal(ecu, node, S3 + 1) <= S3 + 1
    assert await fails(ecu.flash(quiet_nodes=(named,))) is None
    assert is_normal(node)
    assert ecu.runs() == ecu.new.spec


async def test_a_dead_bus_ends_in_bounded_time(lab: Any, neighbour: Any, fails: Any) -> None:
    ecu = lab.ecu()
    _, named = neighbour(ecu)
    ecu.model.cut_after(100)
    begun = ecu.model.now()
    error = await fails(ecu.flash(quiet_nodes=(named,), hasty=True))
    assert isinstance(error, FlashError)
    assert ecu.model.now() - begun < 20
