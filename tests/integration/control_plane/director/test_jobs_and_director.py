"""A job chooses its release: while it lives and when it is done, and not when it is cancelled."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from control_plane.devices.service import NewComponent
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.uptane_world import image_bytes

TRUCK = "truck-7"


async def _job(yard: Any, folder: Path, version: str, counter: int) -> Any:
    """A job, made as before, of the brake controller's firmware; due at once."""
    ecu = yard.world.vehicle.ecus[0]
    device = await yard.devices.get(TRUCK)
    if not device.components:
        await yard.devices.change(
            TRUCK,
            device.version,
            components=[NewComponent(component="brakes", kind=ecu.kind, hardware=ecu.hardware)],
            by="test",
        )
    data = image_bytes(ecu.kind, version)
    path = folder / "image.bin"
    path.write_bytes(data)
    private, _ = new_key()
    spec = yard.world.spec(ecu, version, counter)
    assert spec.sha256 == hashlib.sha256(data).hexdigest()
    document = make_document(spec, load_signer(private), datetime.now(UTC) + timedelta(days=30))
    await yard.firmwares.publish(document, path, notes="", by="test")
    job = await yard.db.run(
        lambda c: yard.jobs.create(
            c, device_id=TRUCK, component="brakes", version=version, scheduled_at=None, by="anna"
        )
    )
    await yard.jobs.move_due(10)
    return await yard.jobs.get(job.job_id)


async def _selection(yard: Any) -> dict[str, Any]:
    body: dict[str, Any] = (await yard.operator.get(f"/api/v1/devices/{TRUCK}/selection")).json()
    return body


async def _set_state(yard: Any, job: Any, state: str) -> None:
    async with yard.db.transaction() as connection:
        await connection.execute(
            "UPDATE jobs SET state = $2, updated_at = clock_timestamp() WHERE job_id = $1", job.job_id, state
        )


@pytest.fixture
async def ready(yard: Any) -> Any:
    releases = [yard.world.release(f"1.{n}.0", n) for n in (1, 2)]
    assert (await yard.publish()).status_code == 201
    assert (await yard.register()).status_code == 200
    return releases


async def test_the_release_of_a_job_is_directed_while_the_job_says_so(
    yard: Any, ready: Any, tmp_path: Path
) -> None:
    _, new = ready
    job = await _job(yard, tmp_path, "1.2.0", 2)
    assert (await _selection(yard))["release"] == new.target_path
    outcome = await yard.verify(yard.world.store())
    assert outcome.selection is not None
    assert outcome.selection.release == new
    for state, path in {
        "flashing": new.target_path,
        "done": new.target_path,
        "cancelling": None,
        "cancelled": None,
        "error": None,
        "abandoned": None,
    }.items():
        await _set_state(yard, job, state)
        body = await _selection(yard)
        assert body["release"] == path, state
        if path is None:
            assert body["why"] == f"job {job.job_id} is {state}"
    outcome = await yard.verify(outcome.store)
    assert (outcome.selection, outcome.refused) == (None, None)


async def test_a_job_whose_firmware_is_in_no_release_or_in_two_directs_nothing(
    yard: Any, ready: Any, tmp_path: Path
) -> None:
    job = await _job(yard, tmp_path, "7.0.0", 7)
    assert (await _selection(yard))["why"] == f"no release has the firmware of job {job.job_id}"
    yard.world.now = yard.clock[0] = yard.world.now + timedelta(minutes=1)
    first = yard.world.release("7.0.0", 7)
    assert (await yard.publish()).status_code == 201
    assert (await _selection(yard))["release"] == first.target_path


async def test_an_operator_does_not_choose_against_a_live_job_but_after_it(
    yard: Any, ready: Any, tmp_path: Path
) -> None:
    old, new = ready
    assert (await yard.choose(old)).status_code == 200
    job = await _job(yard, tmp_path, "1.2.0", 2)
    answer = await yard.choose(old)
    assert (answer.status_code, answer.json()["code"]) == (409, "live_job")
    assert (await _selection(yard))["release"] == new.target_path
    await _set_state(yard, job, "error")
    assert (await yard.choose(old)).status_code == 200
    assert (await _selection(yard))["release"] == old.target_path


async def test_what_an_ecu_may_hold_follows_the_job(yard: Any, ready: Any, tmp_path: Path) -> None:
    old, new = ready
    await yard.tell(yard.manifest(old))
    job = await _job(yard, tmp_path, "1.2.0", 2)
    # Under way: old, waiting in its bootloader, and new are all right.
    for held in (old, None, new, old):
        answer = await yard.tell(yard.manifest(held))
        assert "image_mismatch" not in {one["alarm"] for one in answer.json()["alarms"]}
    await _set_state(yard, job, "done")
    answer = await yard.tell(yard.manifest(old))
    alarms = {(one["alarm"], one["serial"]) for one in answer.json()["alarms"]}
    assert {("image_mismatch", "SN-0"), ("image_mismatch", "SN-1")} <= alarms
    answer = await yard.tell(yard.manifest(new))
    assert answer.json()["alarms"] == []
