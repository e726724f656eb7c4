"""A job of a whole release: which targets it gets, what is refused, and what is sent to the truck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control_plane.devices.service import NewComponent
from control_plane.dispatcher.build import MOST_DOCUMENTS_BYTES, build_command
from control_plane.dispatcher.service import Claim, CommandService
from shared.backoff import Backoff
from shared.messages import Command, CommandKind, Hello
from shared.trust.uptane.release_document import ReleaseSpec, Requirement
from shared.trust.uptane.repository_edit import withdraw
from sim.uptane_world import image_bytes

TRUCK = "truck-7"
BRAKE = "brake-controller"


async def _components(yard: Any, *names: tuple[str, int]) -> None:
    """Register components (name, which ECU of the world they are)."""
    device = await yard.devices.get(TRUCK)
    ecus = yard.world.vehicle.ecus
    components = [
        NewComponent(component=name, kind=ecus[n].kind, hardware=ecus[n].hardware) for name, n in names
    ]
    await yard.devices.change(TRUCK, device.version, components=components, by="test")


@pytest.fixture
async def release(yard: Any) -> ReleaseSpec:
    """Release 1.2.0 (counter 2) for both ECUs, uploaded; the brake's ECU verifies a document."""
    made: ReleaseSpec = yard.world.release(
        "1.2.0", 2, document=lambda spec: yard.world.ecu_document(spec) if spec.kind == BRAKE else None
    )
    assert (await yard.publish()).status_code == 201
    assert (await yard.register()).status_code == 200
    await _components(yard, ("brakes", 0), ("hoist", 1))
    return made


async def _order(yard: Any, release: str, **more: Any) -> Any:
    return await yard.operator.post("/api/v1/jobs", json={"device_id": TRUCK, "release": release, **more})


async def _claim(yard: Any) -> Claim:
    """What the dispatcher decides now, the truck being online."""
    commands = CommandService(
        yard.jobs,
        yard.devices,
        yard.firmwares,
        resend=Backoff(first_s=5, most_s=9),
        releases=yard.room.release_jobs,
    )
    await yard.jobs.move_due(10)
    hello = Hello(online=True, store_id="store-1", agent_version="0.1.0")

    async def act(connection: Any) -> Claim:
        await yard.devices.store_numbers(connection, [(TRUCK, "store-1")])
        await yard.devices.heard(connection, TRUCK, hello, datetime.now(UTC))
        await commands.take_over(connection, 10)
        return await commands.claim(connection, 10)

    claim: Claim = await yard.db.run(act)
    return claim


def _command(claim: Claim) -> Command:
    [out] = claim.outgoing
    return build_command(out, url_of=lambda sha256: f"http://o/files/{sha256}", expires_at=datetime.now(UTC))


@pytest.mark.parametrize("name", ["path", "name and version"])
async def test_a_release_becomes_one_job_with_a_target_for_each_ecu(
    yard: Any, release: ReleaseSpec, name: str
) -> None:
    answer = await _order(yard, release.target_path if name == "path" else "haul/1.2.0")
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert (job["release"], job["state"]) == (release.target_path, "scheduled")
    assert [(one["component"], one["version"], one["sha256"]) for one in job["targets"]] == [
        ("brakes", "1.2.0", release.targets[0].sha256),
        ("hoist", "1.2.0", release.targets[1].sha256),
    ]
    assert {one["firmware_id"] for one in job["targets"]} == {None}
    assert {one["read_back_right"] for one in job["targets"]} == {None}


async def test_exactly_that_release_is_directed_also_beside_one_of_the_same_firmware(
    yard: Any, release: ReleaseSpec
) -> None:
    yard.world.now = yard.clock[0] = yard.world.now + timedelta(minutes=1)
    # The same images under another release: by firmware alone two would be found.
    twin = yard.world.release("1.2.0", 2, needs=[Requirement(kind=BRAKE, counter_at_least=0)])
    assert (await yard.publish()).status_code == 201
    assert (await _order(yard, "haul/1.2.0")).json()["code"] == "release_ambiguous"
    assert (await _order(yard, twin.target_path)).status_code == 201
    await yard.jobs.move_due(10)
    outcome = await yard.verify(yard.world.store())
    assert outcome.refused is None
    assert outcome.selection is not None
    assert outcome.selection.release == twin
    assert outcome.selection.release != release


async def test_the_command_carries_every_target_and_the_documents_that_there_are(
    yard: Any, release: ReleaseSpec
) -> None:
    assert (await _order(yard, release.target_path)).status_code == 201
    claim = await _claim(yard)
    command, [out] = _command(claim), claim.outgoing
    assert command.requires == ("install", "release", "uptane")
    for kind, requires in (("url", ("fresh-url", "uptane")), ("cancel", ("cancel",))):
        again = replace(out, row=replace(out.row, kind=CommandKind(kind)))
        told = build_command(again, url_of=lambda _: "http://o/f", expires_at=datetime.now(UTC))
        assert told.requires == requires
    brakes, hoist = command.targets
    assert brakes.document.encode() == yard.world.ecu_document(release.targets[0].spec)
    assert hoist.document == ""
    for target, signed in ((brakes, release.targets[0]), (hoist, release.targets[1])):
        assert (target.sha256, target.length) == (signed.sha256, signed.length)
        assert target.url == f"http://o/files/{signed.sha256}"
        # The bytes lie where that address serves them from.
        stored = yard.room.files.path(signed.sha256).read_bytes()
        assert stored == image_bytes(signed.kind, signed.version)
    # The document in the signed metadata is the same.
    outcome = await yard.verify(yard.world.store())
    assert outcome.selection is not None
    assert [one.document for one in outcome.selection.assignments] == [brakes.document.encode(), None]


def _path(release: ReleaseSpec) -> str:
    return release.target_path


def _image(release: ReleaseSpec) -> str:
    return release.targets[1].spec.target_path


@pytest.mark.parametrize("what", [_path, _image])
async def test_a_release_that_was_withdrawn_is_not_sent_and_not_ordered_again(
    yard: Any, release: ReleaseSpec, what: Callable[[ReleaseSpec], str]
) -> None:
    job = (await _order(yard, release.target_path)).json()
    yard.world.now = yard.clock[0] = yard.world.now + timedelta(minutes=1)
    yard.world.image, _ = withdraw(yard.world.image, what(release), yard.world.now)
    yard.world.publish()
    assert (await yard.publish()).status_code == 201
    assert (await _claim(yard)).outgoing == ()
    seen = (await yard.operator.get(f"/api/v1/jobs/{job['job_id']}")).json()
    assert (seen["state"], seen["error"]["code"]) == ("error", "withdrawn")
    assert what(release) in seen["error"]["text"]
    answer = await _order(yard, release.target_path)
    assert (answer.status_code, answer.json()["code"]) == (409, "withdrawn")
    assert what(release) in answer.json()["detail"]


async def test_a_dispatched_job_whose_release_is_withdrawn_is_asked_to_stop(
    yard: Any, release: ReleaseSpec
) -> None:
    job = (await _order(yard, release.target_path)).json()
    assert len((await _claim(yard)).outgoing) == 1
    yard.world.now = yard.clock[0] = yard.world.now + timedelta(minutes=1)
    yard.world.image, _ = withdraw(yard.world.image, release.target_path, yard.world.now)
    yard.world.publish()
    assert (await yard.publish()).status_code == 201
    async with yard.db.transaction() as connection:
        await connection.execute("UPDATE commands SET next_try_at = now()")
    await _claim(yard)
    seen = (await yard.operator.get(f"/api/v1/jobs/{job['job_id']}")).json()
    assert (seen["state"], seen["revision"]) == ("cancelling", 2)


async def _refused(yard: Any, release: str, **more: Any) -> tuple[int, str]:
    answer = await _order(yard, release, **more)
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


async def test_before_anything_was_uploaded(yard: Any) -> None:
    assert await _refused(yard, "haul/1.2.0") == (404, "no_image_repository")


async def test_a_release_that_nobody_uploaded(yard: Any, release: ReleaseSpec) -> None:
    for said in ("haul/9.9.9", "releases/haul/1.2.0/00.json", "haul"):
        assert await _refused(yard, said) == (404, "unknown_release")


async def test_a_truck_that_is_not_known_or_has_no_ecus(yard: Any, release: ReleaseSpec) -> None:
    assert await _refused(yard, release.target_path, device_id="truck-8") == (404, "unknown_device")
    await yard.add_truck("truck-8")
    assert await _refused(yard, release.target_path, device_id="truck-8") == (404, "ecus_not_registered")


async def test_a_truck_with_none_of_the_releases_ecus(yard: Any, release: ReleaseSpec) -> None:
    ecus = [{"serial": "X", "kind": "fan-controller", "hardware": "H0"}]
    await _put_ecus(yard, ecus)
    assert await _refused(yard, release.target_path) == (422, "no_ecu_for_release")


async def _put_ecus(yard: Any, ecus: list[dict[str, str]]) -> None:
    seen = await yard.operator.get(f"/api/v1/devices/{TRUCK}/ecus")
    body = {"primary_serial": "GW-7", "gateway_key": seen.json()["gateway_key"], "ecus": ecus}
    headers = {"If-Match": seen.headers["etag"]}
    answer = await yard.operator.put(f"/api/v1/devices/{TRUCK}/ecus", json=body, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "names",
    [
        (("brakes", 0),),
        (("brakes", 0), ("hoist", 1), ("spare", 1)),
        (("brakes", 0), ("brakes-2", 0)),
        (),
    ],
)
async def test_components_that_are_not_the_ecus(
    yard: Any, release: ReleaseSpec, names: tuple[tuple[str, int], ...]
) -> None:
    await _components(yard, *names)
    assert await _refused(yard, release.target_path) == (409, "components_differ")


async def test_two_ecus_of_one_kind_are_two_targets(yard: Any, release: ReleaseSpec) -> None:
    ecu = yard.world.vehicle.ecus[0]
    same = {"kind": ecu.kind, "hardware": ecu.hardware}
    await _put_ecus(yard, [{"serial": "SN-0", **same}, {"serial": "SN-9", **same}])
    await _components(yard, ("front", 0), ("rear", 0))
    job = (await _order(yard, release.target_path)).json()
    assert [one["component"] for one in job["targets"]] == ["front", "rear"]


async def test_what_the_truck_would_refuse_by_its_counters(yard: Any, release: ReleaseSpec) -> None:
    yard.world.now = yard.clock[0] = yard.world.now + timedelta(minutes=1)
    needs = [Requirement(kind=BRAKE, counter_at_least=3)]
    picky = yard.world.release("1.3.0", 3, needs=needs)
    lacking = yard.world.release("1.4.0", 3, needs=[Requirement(kind="fan-controller", counter_at_least=0)])
    newer = yard.world.release("1.5.0", 5)
    assert (await yard.publish()).status_code == 201
    assert await _refused(yard, lacking.target_path) == (409, "release_not_compatible")
    assert (await yard.tell(yard.manifest(release))).status_code == 200
    assert await _refused(yard, picky.target_path) == (409, "release_not_compatible")
    assert (await yard.tell(yard.manifest(newer))).status_code == 200
    assert await _refused(yard, release.target_path) == (409, "older_release")
    assert (await _order(yard, picky.target_path)).json()["code"] == "older_release"


async def test_one_live_job_a_truck_and_a_release_or_a_version(yard: Any, release: ReleaseSpec) -> None:
    assert await _refused(yard, release.target_path, version="1.2.0") == (422, "invalid")
    assert await _refused(yard, release.target_path, component="brakes") == (422, "invalid")
    assert await _refused(yard, release.target_path, scheduled_at="2031-01-01T00:00:00Z") == (422, "invalid")
    answer = await yard.operator.post("/api/v1/jobs", json={"device_id": TRUCK, "component": "brakes"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert (await _order(yard, release.target_path)).status_code == 201
    assert await _refused(yard, release.target_path) == (409, "live_job")


async def test_documents_that_would_fill_the_command_are_left_to_the_metadata(
    yard: Any, release: ReleaseSpec
) -> None:
    assert (await _order(yard, release.target_path)).status_code == 201
    [out] = (await _claim(yard)).outgoing
    for size, kept in ((MOST_DOCUMENTS_BYTES, True), (MOST_DOCUMENTS_BYTES + 1, False)):
        many = replace(out, documents={out.job.targets[0].sha256: b"x" * size})
        command = build_command(many, url_of=lambda _: "http://o/f", expires_at=datetime.now(UTC))
        assert bool(command.targets[0].document) is kept
