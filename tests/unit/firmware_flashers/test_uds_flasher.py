"""The flasher as the agent uses it: a thread, a real `virtual` bus, cancellation, and nothing left over."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import can
import pytest
from can.interfaces.virtual import VirtualBus

from firmware_flashers.base import AccessDenied, BusDown, FlashError, NoAnswer, Progress, TrustClass
from firmware_flashers.can_link import open_link
from firmware_flashers.can_lock import InterfaceBusy
from firmware_flashers.registry import EcuSettings, flasher_on, open_flasher
from firmware_flashers.worker import Worker, WorkerHung


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    """Whatever a test does, no flasher's thread and no bus of it survives."""
    yield
    assert not [one.name for one in threading.enumerate() if one.name.startswith("flasher")]


def settings(serve: Any, **changes: Any) -> EcuSettings:
    return EcuSettings(**(serve.settings | changes))


async def until(condition: Any, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def test_all_six_steps(serve: Any, bench: Any) -> None:
    heard: list[Progress] = []
    here = threading.current_thread()

    def progress(now: Progress) -> None:
        assert threading.current_thread() is here
        heard.append(now)

    async with open_flasher(settings(serve)) as ecu:
        assert ecu.capabilities.slots == 1
        assert ecu.capabilities.trust_class is TrustClass.VERIFIES
        assert not ecu.capabilities.self_reverting
        assert [r.start for r in ecu.capabilities.never_erased] == [0x0800_0000]
        assert (await ecu.identify()).version == "1.0.0"
        await ecu.stage(bench.new, progress=progress)
        await ecu.activate()
        identity = await ecu.verify(bench.new)
        await ecu.confirm()
        with pytest.raises(FlashError) as caught:
            await ecu.revert()
    assert (identity.version, identity.sha256) == ("1.1.0", bench.new.spec.sha256)
    assert not identity.in_bootloader
    assert caught.value.code == "no_second_slot"
    assert not caught.value.retryable
    assert heard[-1] == Progress(step="checking", done_bytes=9001, total_bytes=9001)


async def test_what_already_runs_may_be_staged_again(serve: Any, bench: Any) -> None:
    async with open_flasher(settings(serve)) as ecu:
        await ecu.stage(bench.old)
        await ecu.activate()
        await ecu.verify(bench.old)


async def test_a_pause_of_the_host_keeps_the_session(serve: Any, bench: Any) -> None:
    async with open_flasher(settings(serve)) as ecu:
        await ecu.stage(bench.new)
        before = len(bench.ecu.asked("3E80"))
        await until(lambda: len(bench.ecu.asked("3E80")) >= before + 3)
        await ecu.activate()
        after = len(bench.ecu.asked("3E80"))
        await ecu.identify()
        await asyncio.sleep(0)
        assert len(bench.ecu.asked("3E80")) == after


async def test_a_silent_ecu_is_no_answer_and_untouched(serve: Any, bench: Any) -> None:
    bench.ecu.script = lambda *_: []
    async with open_flasher(settings(serve)) as ecu:
        for step in (ecu.identify(), ecu.stage(bench.new)):
            with pytest.raises(NoAnswer) as caught:
                await step
            assert not caught.value.touched


async def test_touched_says_whether_the_erase_may_have_begun(serve: Any, bench: Any) -> None:
    refuse = {"what": b"\x27\x02"}
    bench.ecu.script = lambda _, request: (
        [bench.negative(request, 0x35 if request[0] == 0x27 else 0x72)]
        if request.startswith(refuse["what"])
        else None
    )
    async with open_flasher(settings(serve)) as ecu:
        with pytest.raises(AccessDenied) as denied:
            await ecu.stage(bench.new)
        assert not denied.value.touched
        assert not bench.ecu.erased
        refuse["what"] = b"\x36"
        with pytest.raises(FlashError) as failed:
            await ecu.stage(bench.new)
        assert failed.value.code == "general_programming_failure"
        assert failed.value.touched
        # What another step says does not depend on the stage before it.
        refuse["what"] = b"\x27\x02"
        with pytest.raises(AccessDenied) as again:
            await ecu.stage(bench.new)
        assert not again.value.touched
        with pytest.raises(FlashError) as inactive:
            await ecu.activate()
        assert inactive.value.touched


async def test_a_cancelled_stage_stops_at_once_and_the_next_one_ends_well(serve: Any, bench: Any) -> None:
    hold = threading.Event()

    def script(_: Any, request: bytes) -> list[bytes] | None:
        if request[:2] == b"\x36\x02" and not hold.is_set():
            hold.set()
            return []
        return None

    bench.ecu.script = script
    slow = bench.profile.timing.__class__(margin_s=60, block_s=600, reset_pause_s=0.005)
    profile = bench.profile.__class__(timing=slow)
    async with open_flasher(settings(serve, profile=profile)) as ecu:
        staging = asyncio.create_task(ecu.stage(bench.new))
        await until(hold.is_set)
        staging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staging
        asked = len(bench.ecu.log)
        # The thread is free again: it answers the next step, and the cancelled one said no more.
        assert (await ecu.identify()).in_bootloader
        assert all(request[0] == 0x22 for request in bench.ecu.log[asked:])
        await ecu.stage(bench.new)
        await ecu.activate()
        await ecu.verify(bench.new)


async def test_leaving_the_block_in_the_middle_of_a_step_ends_it(serve: Any, bench: Any) -> None:
    reached = threading.Event()

    def script(_: Any, request: bytes) -> list[bytes] | None:
        if request[:2] == b"\x36\x02":
            reached.set()
            return []
        return None

    bench.ecu.script = script
    slow = bench.profile.timing.__class__(margin_s=60, block_s=600)
    async with open_flasher(settings(serve, profile=bench.profile.__class__(timing=slow))) as ecu:
        staging = asyncio.create_task(ecu.stage(bench.new))
        await until(reached.is_set)
    with pytest.raises(FlashError) as caught:
        await staging
    assert caught.value.code == "interrupted"
    assert caught.value.touched


async def test_steps_take_turns(serve: Any, bench: Any) -> None:
    async with open_flasher(settings(serve)) as ecu:
        identities = await asyncio.gather(*[ecu.identify() for _ in range(5)])
    assert {one.version for one in identities} == {"1.0.0"}


async def test_no_other_exception_leaves_a_step(serve: Any, bench: Any, monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("firmware_flashers.uds_download.judge_image", broken)
    async with open_flasher(settings(serve)) as ecu:
        with pytest.raises(FlashError) as caught:
            await ecu.stage(bench.new)
    assert caught.value.code == "internal"
    assert not caught.value.touched
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_a_callback_that_fails_does_not_stop_the_flash(serve: Any, bench: Any) -> None:
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))

    def progress(_: Progress) -> None:
        raise RuntimeError("a page that is gone")

    async with open_flasher(settings(serve)) as ecu:
        await ecu.stage(bench.new, progress=progress)
    assert failed


async def test_outside_its_block_it_says_so_and_does_not_wait(serve: Any, bench: Any) -> None:
    ecu = settings(serve)
    async with open_link(interface=ecu.interface, channel=ecu.channel) as link:
        flasher = flasher_on(link, ecu)
        with pytest.raises(FlashError) as early:
            await flasher.identify()
        async with flasher:
            await flasher.identify()
        with pytest.raises(FlashError) as late:
            await flasher.stage(bench.new)
    assert early.value.code == late.value.code == "not_open"
    assert not late.value.touched


async def test_the_interface_has_one_holder(serve: Any) -> None:
    async with open_flasher(settings(serve), holder="quarry agent"):
        with pytest.raises(InterfaceBusy, match="quarry agent") as caught:
            async with open_flasher(settings(serve)):
                pass
        assert not caught.value.touched
    async with open_flasher(settings(serve)) as ecu:
        await ecu.identify()


async def test_a_bus_that_does_not_open_is_bus_down(serve: Any, tmp_path: Any) -> None:
    with pytest.raises(BusDown) as caught:
        async with open_flasher(
            settings(serve, interface="quarry-hub", channel=str(tmp_path / "no-hub.sock"))
        ):
            pass
    assert not caught.value.touched


async def test_a_bus_that_dies_while_idle_is_told_by_the_next_step(
    serve: Any, bench: Any, monkeypatch: Any
) -> None:
    def dead(*_: Any, **__: Any) -> None:
        raise can.CanOperationError("Network is down", 100)

    async with open_flasher(settings(serve)) as ecu:
        await ecu.stage(bench.new)
        kept = len(bench.ecu.asked("3E80"))
        await until(lambda: len(bench.ecu.asked("3E80")) > kept)
        with monkeypatch.context() as broken:
            broken.setattr(VirtualBus, "send", dead)
            with pytest.raises(BusDown):
                await ecu.activate()


async def test_a_hung_driver_is_named_and_holds_nobody(monkeypatch: Any) -> None:
    monkeypatch.setattr("firmware_flashers.worker.STOP_S", 0.05)
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        release.wait(30)

    worker = Worker("flasher-hung", idle_s=1.0, when_idle=lambda: None, at_end=ended.set)
    worker.start()
    stuck = asyncio.create_task(worker.call(hang))
    await until(begun.is_set)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    with pytest.raises(WorkerHung):
        await worker.call(lambda: None)
    await worker.stop()
    release.set()
    assert ended.wait(10)
    worker._thread.join(10)


async def test_an_idle_moment_that_fails_does_not_end_the_thread() -> None:
    failed = threading.Event()

    def idle() -> None:
        failed.set()
        raise ZeroDivisionError

    worker = Worker("flasher-idle", idle_s=0.001, when_idle=idle, at_end=lambda: None)
    worker.start()
    await until(failed.is_set)
    assert await worker.call(lambda: 7) == 7
    await worker.stop()


async def test_an_act_that_is_cancelled_before_it_begins_never_runs() -> None:
    entered, release = threading.Event(), threading.Event()

    def idle() -> None:
        entered.set()
        release.wait(10)

    ran: list[int] = []
    worker = Worker("flasher-idle", idle_s=0.001, when_idle=idle, at_end=lambda: None)
    worker.start()
    await until(entered.is_set)
    task = asyncio.create_task(worker.call(lambda: ran.append(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert await worker.call(lambda: 7) == 7
    assert ran == []
    await worker.stop()
