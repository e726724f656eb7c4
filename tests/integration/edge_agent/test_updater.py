"""The whole way of an update on a real store, with every kind of failure on it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge_agent.errors import ImageMissing, LinkLost, NoRoom, UrlExpired
from edge_agent.interlocks.safety import UNKNOWN
from firmware_flashers.base import AccessDenied, BadImage, BusDown, NoAnswer, NotNow, NotProved
from shared.messages import Window
from shared.states import TruckStatus, UpdateState
from shared.trust.keys import load_signer, new_key

GOOD_STORY = [
    "received",
    "downloading",
    "verifying",
    "preparing",
    "erasing",
    "writing",
    "activating",
    "reading_back",
    "finished",
]


def holds(truck: Any, version: str = "2.0.0") -> bool:
    spec = truck.spec(version)
    return bool(
        (truck.ecu.version, truck.ecu.sha256, truck.ecu.in_bootloader) == (version, spec.sha256, False)
    )


def untouched(truck: Any) -> bool:
    return bool(truck.ecu.version == "1.0.0" and "stage" not in truck.ecu.calls)


async def test_a_good_update_tells_every_step_and_ends_done(truck: Any) -> None:
    await truck.store.take_command(truck.command())
    async with truck.run():
        done = await truck.told(status=TruckStatus.DONE)
    assert truck.story() == GOOD_STORY
    assert [(one.component, one.version, one.sha256) for one in done.targets or ()] == [
        ("brakes", "2.0.0", truck.spec().sha256)
    ]
    assert holds(truck)
    assert truck.counters.highest("brakes") == 2
    assert truck.ecu.calls[-1] == "confirm"
    assert [one.seq for one in truck.seen] == sorted({one.seq for one in truck.seen})
    assert not truck.updater.touching or not await truck.store.live()


async def test_what_already_runs_is_not_flashed(truck: Any) -> None:
    spec = truck.spec()
    truck.ecu.version, truck.ecu.sha256 = spec.version, spec.sha256
    await truck.store.take_command(truck.command())
    async with truck.run():
        done = await truck.told(status=TruckStatus.DONE)
    assert done.targets is not None
    assert "stage" not in truck.ecu.calls
    assert truck.downloads.asked == []


@pytest.mark.parametrize("known", [UNKNOWN, None], ids=["unknown", "driving"])
async def test_it_waits_for_a_safe_vehicle_and_tells_why_once(truck: Any, known: Any) -> None:
    truck.drive()
    if known is not None:
        truck.vehicle.known = known
    await truck.store.take_command(truck.command())
    async with truck.run():
        waiting = await truck.told(step="waiting")
        for _ in range(5):
            truck.vehicle.asked.clear()
            await truck.vehicle.asked.wait()
        assert untouched(truck)
        truck.park()
        await truck.told(status=TruckStatus.DONE)
    assert waiting.status is TruckStatus.DOWNLOADING
    assert ("parked" if known is None else "not known") in waiting.reason
    assert [one.step for one in truck.seen].count("waiting") == 1


OTHER_SIGNER = load_signer(new_key()[0])
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "signed by a stranger": ("unsigned", {"signer": OTHER_SIGNER}, {}),
    "no document": ("bad_document", {"document": b"{}"}, {}),
    "another version said than signed": ("document_mismatch", {"target": {"version": "9"}}, {}),
    "another hash said than signed": ("document_mismatch", {"target": {"sha256": "0" * 64}}, {}),
    "another length said than signed": ("document_mismatch", {"target": {"length": 5}}, {}),
    "for another ECU": ("incompatible", {}, {"kind": "engine"}),
    "for another hardware": ("incompatible", {}, {"hardware": ("rev-a",)}),
    "for a component that is not there": ("unknown_component", {"component": "wings"}, {}),
    "an older release": ("older_release", {}, {"counter": 1}),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: str(case).replace(" ", "-"))
async def test_what_must_not_be_flashed_is_refused(truck: Any, case: str) -> None:
    code, options, spec_options = REFUSED[case]
    await truck.counters.raise_to("brakes", 2)
    await truck.store.take_command(truck.command(spec=truck.spec(**spec_options), **options))
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == code
    assert untouched(truck)
    assert truck.downloads.asked == []


@pytest.mark.parametrize("spoil", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"X" + d[1:]])
async def test_an_image_that_is_not_the_signed_one_is_refused_then_the_good_one_taken(
    truck: Any, spoil: Any
) -> None:
    command = truck.command()
    sha256 = truck.spec().sha256
    good = truck.downloads.images[sha256]
    truck.downloads.images[sha256] = spoil(good)
    await truck.store.take_command(command)
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
        assert error.error.code == "wrong_image"
        assert untouched(truck)
        truck.downloads.images[sha256] = good
        await truck.store.take_command(truck.command(attempt=2, revision=2))
        done = await truck.told(status=TruckStatus.DONE)
    assert done.attempt == 2
    assert holds(truck)


async def test_an_image_spoiled_on_the_disk_while_waiting_is_fetched_again(truck: Any) -> None:
    truck.drive()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.told(step="waiting")
        (truck.downloads.folder / truck.spec().sha256).write_bytes(b"rotten")
        truck.park()
        await truck.told(status=TruckStatus.DONE)
    assert len(truck.downloads.asked) == 2
    assert holds(truck)


async def test_an_expired_url_is_asked_for_again(truck: Any) -> None:
    truck.downloads.faults = [UrlExpired("403")]
    await truck.store.take_command(truck.command())
    async with truck.run():
        asked = await truck.told(step="url_expired")
        assert asked.status is TruckStatus.DOWNLOADING
        await truck.store.take_command(truck.command(kind="url", revision=2))
        await truck.told(status=TruckStatus.DONE)
    assert truck.downloads.asked == ["http://office/job-1/1", "http://office/job-1/2"]


async def test_a_url_that_comes_while_the_old_one_is_tried_is_used_at_once(truck: Any) -> None:
    fetch = truck.downloads.fetch

    async def expires(url: str, **options: Any) -> Any:
        if url.endswith("/1"):
            await truck.store.take_command(truck.command(kind="url", revision=2))
            raise UrlExpired("403")
        return await fetch(url, **options)

    truck.downloads.fetch = expires
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.told(status=TruckStatus.DONE)
    assert "url_expired" not in truck.story()


async def test_a_link_that_is_away_for_long_does_not_end_the_job(truck: Any) -> None:
    truck.downloads.faults = [LinkLost("gone") for _ in range(40)]
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.told(status=TruckStatus.DONE)
    assert len(truck.downloads.asked) == 41


async def test_a_full_disk_is_tried_again_in_bounds_and_told(truck: Any) -> None:
    truck.downloads.faults = [NoRoom("full") for _ in range(100)]
    await truck.store.take_command(truck.command())
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == "no_room"
    assert 1 < len(truck.downloads.asked) < 20


async def test_an_unforeseen_error_ends_neither_the_loop_nor_other_jobs(truck: Any) -> None:
    truck.downloads.faults = [ZeroDivisionError("bug") for _ in range(100)]
    await truck.store.take_command(truck.command("job-1"))
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
        assert error.error.code == "internal"
        truck.downloads.faults = []
        await truck.store.take_command(truck.command("job-2"))
        await truck.told(status=TruckStatus.DONE, job_id="job-2")


async def test_a_cancel_before_flashing_ends_it(truck: Any) -> None:
    truck.drive()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.told(step="waiting")
        await truck.store.take_command(truck.command(kind="cancel", revision=2))
        await truck.told(status=TruckStatus.CANCELLED)
    truck.park()
    assert untouched(truck)
    assert await truck.store.live() == []


async def test_a_cancel_ends_a_download_at_once(truck: Any) -> None:
    begun = asyncio.Event()

    async def endless(*_: Any, **__: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    truck.downloads.fetch = endless
    await truck.store.take_command(truck.command())
    async with truck.run():
        await begun.wait()
        await truck.store.take_command(truck.command(kind="cancel", revision=2))
        await truck.told(status=TruckStatus.CANCELLED)
    assert untouched(truck)


async def test_a_cancel_while_flashing_is_too_late(truck: Any) -> None:
    truck.ecu.may_stage.clear()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.ecu.staging.wait()
        assert truck.updater.touching
        await truck.store.take_command(truck.command(kind="cancel", revision=2))
        late = await truck.told(step="too_late")
        assert late.status is TruckStatus.FLASHING
        truck.ecu.may_stage.set()
        await truck.told(status=TruckStatus.DONE)
    assert holds(truck)


async def test_after_the_first_touch_every_failure_is_tried_again(truck: Any) -> None:
    truck.ecu.faults = {
        "stage": [NoAnswer("a"), BusDown("b"), AccessDenied("c"), BadImage("d"), NoAnswer("e"), NotNow("f")],
        "activate": [NoAnswer("g"), NotNow("h")],
        "verify": [NotProved("i"), NoAnswer("j"), NotNow("k")],
    }
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.told(step="retrying")
        await truck.told(step="stranded")
        await truck.told(status=TruckStatus.DONE)
    assert {one.status for one in truck.seen[-20:]} <= {TruckStatus.FLASHING, TruckStatus.DONE}
    assert holds(truck)


async def test_a_vehicle_that_moves_delays_a_repeat_and_the_reset(truck: Any) -> None:
    truck.ecu.faults = {"stage": [NoAnswer("cut")]}
    truck.ecu.may_stage.clear()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.ecu.staging.wait()
        truck.drive()
        truck.ecu.may_stage.set()
        waiting = await truck.told(step="waiting")
        assert waiting.status is TruckStatus.FLASHING
        assert truck.ecu.calls.count("stage") == 1
        truck.ecu.may_stage.clear()
        truck.ecu.staging.clear()
        truck.park()
        await truck.ecu.staging.wait()
        truck.drive()
        truck.ecu.may_stage.set()
        await truck.told(step="waiting")
        assert "activate" not in truck.ecu.calls
        truck.park()
        await truck.told(status=TruckStatus.DONE)


async def test_before_the_first_touch_failures_are_bounded(truck: Any) -> None:
    truck.ecu.faults = {"stage": [NoAnswer("silent", touched=False) for _ in range(100)]}
    await truck.store.take_command(truck.command())
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == "no_answer"
    assert truck.ecu.version == "1.0.0"
    assert 1 < truck.ecu.calls.count("stage") < 20


@pytest.mark.parametrize("fault", [AccessDenied("no", touched=False), BadImage("no", touched=False)])
async def test_before_the_first_touch_a_refusal_for_good_ends_it(truck: Any, fault: Exception) -> None:
    truck.ecu.faults = {"stage": [fault]}
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.told(status=TruckStatus.ERROR)
    assert truck.ecu.calls.count("stage") == 1


async def test_an_ecu_that_refuses_for_the_moment_is_waited_for(truck: Any) -> None:
    truck.ecu.faults = {"stage": [NotNow("engine runs", touched=False) for _ in range(30)]}
    await truck.store.take_command(truck.command())
    async with truck.run():
        waiting = await truck.told(step="waiting")
        assert waiting.reason == "engine runs"
        assert [one.to_obj() for one in waiting.causes] == [{"code": "ecu_refuses", "detail": "engine runs"}]
        await truck.told(status=TruckStatus.DONE)
    assert [one.step for one in truck.seen].count("waiting") == 1
    assert len(truck.seen) < 15


async def test_another_ecu_than_configured_is_not_flashed(truck: Any) -> None:
    truck.ecu.hardware = "rev-a"
    await truck.store.take_command(truck.command())
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == "incompatible"
    assert untouched(truck)


async def test_a_silent_ecu_is_asked_again_before_flashing(truck: Any) -> None:
    truck.ecu.faults = {"identify": [NoAnswer("asleep")]}
    truck.ecu.hardware = "rev-a"
    await truck.store.take_command(truck.command())
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == "incompatible"
    assert untouched(truck)


async def test_time_over_ends_what_has_not_begun_only(truck: Any) -> None:
    truck.drive()
    await truck.store.take_command(truck.command(expires_at=truck.later(hours=1)))
    async with truck.run():
        await truck.told(step="waiting")
        truck.wall = truck.later(hours=2)
        error = await truck.told(status=TruckStatus.ERROR)
        assert error.error.code == "command_expired"
        assert untouched(truck)
        truck.park()
        truck.ecu.may_stage.clear()
        truck.ecu.faults = {"stage": [NoAnswer("cut")]}
        await truck.store.take_command(
            truck.command("job-2", expires_at=truck.later(hours=1), valid_until=truck.later(hours=1))
        )
        await truck.ecu.staging.wait()
        truck.wall = truck.later(days=400)
        truck.ecu.may_stage.set()
        await truck.told(status=TruckStatus.DONE, job_id="job-2")
    assert holds(truck)


async def test_it_waits_for_the_window(truck: Any) -> None:
    window = Window(opens_at=truck.later(hours=1), closes_at=truck.later(hours=2))
    await truck.store.take_command(truck.command(window=window))
    async with truck.run():
        early = await truck.told(step="waiting")
        assert "opens" in early.reason
        truck.wall = truck.later(hours=3)
        late = await truck.told(step="waiting")
        assert "closed" in late.reason
        assert untouched(truck)
        truck.wall = truck.later(hours=-1.5)
        await truck.told(status=TruckStatus.DONE)


async def test_a_newer_job_replaces_one_that_has_not_begun(truck: Any) -> None:
    truck.drive()
    await truck.store.take_command(truck.command("job-1"))
    async with truck.run():
        await truck.told(step="waiting")
        await truck.store.take_command(truck.command("job-2", spec=truck.spec("3.0.0", counter=3)))
        error = await truck.told(status=TruckStatus.ERROR, job_id="job-1")
        assert error.error.code == "replaced"
        truck.park()
        await truck.told(status=TruckStatus.DONE, job_id="job-2")
    assert holds(truck, "3.0.0")


async def test_a_newer_job_takes_a_stranded_ecu_over_and_finishes_it(truck: Any) -> None:
    truck.ecu.faults = {"stage": [NotProved("the ECU says no") for _ in range(10_000)]}
    await truck.store.take_command(truck.command("job-1"))
    async with truck.run():
        await truck.told(step="stranded")
        await truck.store.take_command(truck.command("job-2", spec=truck.spec("3.0.0", counter=3)))
        error = await truck.told(status=TruckStatus.ERROR, job_id="job-1")
        assert error.error.code == "replaced"
        entry = await truck.store.entry("job-2", 1)
        assert entry.begun
        # It inherits that the ECU was touched: a cancel comes too late.
        await truck.store.take_command(truck.command("job-2", kind="cancel", revision=2))
        await truck.told(step="too_late", job_id="job-2")
        truck.ecu.faults = {}
        await truck.told(status=TruckStatus.DONE, job_id="job-2")
    assert holds(truck, "3.0.0")


async def test_a_newer_job_waits_for_an_update_that_is_about_to_be_finished(truck: Any) -> None:
    truck.ecu.faults = {"activate": [NotNow("engine runs") for _ in range(10_000)]}
    await truck.store.take_command(truck.command("job-1"))
    async with truck.run():
        await truck.told(step="waiting", job_id="job-1")
        await truck.store.take_command(truck.command("job-2", spec=truck.spec("3.0.0", counter=3)))
        waiting = await truck.told(step="waiting", job_id="job-2")
        assert "earlier update" in waiting.reason
        truck.ecu.faults = {}
        await truck.told(status=TruckStatus.DONE, job_id="job-1")
        await truck.told(status=TruckStatus.DONE, job_id="job-2")
    assert holds(truck, "3.0.0")


async def test_a_bad_newer_job_does_not_end_a_touched_one(truck: Any) -> None:
    truck.ecu.faults = {"stage": [NotProved("the ECU says no") for _ in range(10_000)]}
    await truck.store.take_command(truck.command("job-1"))
    async with truck.run():
        await truck.told(step="stranded")
        await truck.store.take_command(
            truck.command("job-2", spec=truck.spec("3.0.0", counter=3), signer=OTHER_SIGNER)
        )
        await truck.told(status=TruckStatus.ERROR, job_id="job-2")
        truck.ecu.faults = {}
        await truck.told(status=TruckStatus.DONE, job_id="job-1")
    assert holds(truck)


async def test_a_stranded_ecu_does_not_wait_for_the_download_of_another_job(truck: Any) -> None:
    truck.ecu.faults = {"stage": [NotProved("the ECU says no") for _ in range(10_000)]}
    fetch, begun, link = truck.downloads.fetch, asyncio.Event(), asyncio.Event()

    async def slow(url: str, **options: Any) -> Any:
        if "job-2" in url and not link.is_set():
            begun.set()
            await asyncio.Event().wait()
        return await fetch(url, **options)

    truck.downloads.fetch = slow
    await truck.store.take_command(truck.command("job-1"))
    async with truck.run():
        await truck.told(step="stranded")
        await truck.store.take_command(truck.command("job-2", spec=truck.spec("3.0.0", counter=3)))
        await begun.wait()
        tries = truck.ecu.calls.count("stage")
        async with asyncio.timeout(30):
            while truck.ecu.calls.count("stage") < tries + 3:
                truck.ecu.staging.clear()
                await truck.ecu.staging.wait()
        link.set()
        await truck.told(status=TruckStatus.ERROR, job_id="job-1")
        truck.ecu.faults = {}
        await truck.told(status=TruckStatus.DONE, job_id="job-2")
    assert holds(truck, "3.0.0")


async def test_failures_of_link_and_ecu_do_not_use_up_the_tries(truck: Any) -> None:
    truck.downloads.faults = [LinkLost("gone")] * 30 + [NoRoom("full")] * 2 + [LinkLost("gone")] * 30
    truck.ecu.faults = {
        "stage": [
            *(NotNow("engine runs", touched=False) for _ in range(30)),
            NoAnswer("silent", touched=False),
            *(NotNow("engine runs", touched=False) for _ in range(30)),
        ]
    }
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.told(status=TruckStatus.DONE)
    assert holds(truck)


async def test_an_image_that_is_lost_while_flashing_is_fetched_again(truck: Any) -> None:
    truck.ecu.faults = {"stage": [NoAnswer("cut")]}
    truck.ecu.may_stage.clear()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.ecu.staging.wait()
        (truck.downloads.folder / truck.spec().sha256).unlink()
        truck.downloads.faults = [LinkLost("gone"), UrlExpired("403")]
        truck.ecu.may_stage.set()
        asked = await truck.told(step="url_expired")
        assert asked.status is TruckStatus.FLASHING
        await truck.store.take_command(truck.command(revision=2))
        await truck.told(status=TruckStatus.DONE)
    assert holds(truck)


async def test_a_stopped_updater_takes_a_flash_up_again(truck: Any) -> None:
    truck.ecu.may_stage.clear()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.ecu.staging.wait()
    [entry] = await truck.store.live()
    assert (entry.state, truck.ecu.version) == (UpdateState.FLASHING, None)
    truck.ecu.may_stage.set()
    async with truck.run():
        await truck.told(status=TruckStatus.DONE)
    assert holds(truck)


async def test_after_a_restart_a_begun_flash_counts_as_touched(truck: Any) -> None:
    truck.ecu.may_stage.clear()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.ecu.staging.wait()
    # The flasher is sure that *this* try changed nothing; of the one before nobody knows.
    truck.ecu.faults = {"stage": [AccessDenied("no", touched=False), NotNow("not now", touched=False)]}
    truck.ecu.may_stage.set()
    async with truck.run():
        await truck.store.take_command(truck.command(kind="cancel", revision=2))
        await truck.told(step="too_late")
        await truck.told(status=TruckStatus.DONE)
    assert holds(truck)


async def test_the_manifest_tells_what_components_say(truck: Any) -> None:
    manifest = await truck.updater.manifest()
    assert [(one.component, one.version) for one in manifest.components] == [("brakes", "1.0.0")]
    truck.ecu.faults = {"open": [BusDown("down")]}
    second = await truck.updater.manifest()
    assert (second.components, second.seq) == ((), manifest.seq + 1)
    truck.ecu.version = "not a version!"
    assert (await truck.updater.manifest()).components == ()


async def test_the_manifest_does_not_wait_for_a_flash(truck: Any) -> None:
    truck.ecu.may_stage.clear()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.ecu.staging.wait()
        async with asyncio.timeout(5):
            manifest = await truck.updater.manifest()
        assert [one.version for one in manifest.components] == ["1.0.0"]
        truck.updater.ended.clear()
        truck.ecu.may_stage.set()
        await asyncio.wait_for(truck.updater.ended.wait(), 30)
        manifest = await truck.updater.manifest()
    assert [one.version for one in manifest.components] == ["2.0.0"]


async def test_damaged_counters_refuse_a_new_flash(truck: Any) -> None:
    truck.counters._highest = None
    await truck.store.take_command(truck.command())
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == "counters_unknown"
    assert untouched(truck)


async def test_a_missing_image_after_the_download_is_fetched_again(truck: Any) -> None:
    real = truck.verifier.check_file
    faults = [ImageMissing("gone")]

    async def check_file(*args: Any) -> None:
        if faults:
            raise faults.pop()
        await real(*args)

    truck.verifier.check_file = check_file
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.told(status=TruckStatus.DONE)
    assert len(truck.downloads.asked) == 2
