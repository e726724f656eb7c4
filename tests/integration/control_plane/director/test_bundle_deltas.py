"""Deltas that come with the image repository: kept when they are good, and never in the way of a release."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control_plane.director import bundle_deltas
from control_plane.dispatcher import build
from control_plane.dispatcher.build import build_command
from control_plane.dispatcher.service import CommandService
from control_plane.storage.folder import FolderFiles
from shared.backoff import Backoff
from shared.delta import make_delta
from shared.messages import Feature, Hello, Installed, Manifest
from shared.trust.uptane.repository_edit import withdraw
from sim.uptane_world import image_bytes

TRUCK = "truck-7"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def images(yard: Any, version: str) -> list[bytes]:
    return [image_bytes(ecu.kind, version) for ecu in yard.world.vehicle.ecus]


def repository(yard: Any) -> dict[str, bytes]:
    return {name: raw for (which, name), raw in yard.world.served.items() if which == "image"}


def deltas_of(yard: Any, base: str, version: str) -> dict[str, bytes]:
    """By the names under which `quarry release` puts them into `public`."""
    return {
        f"deltas/{sha(old)}.{sha(new)}": make_delta(old, new)
        for old, new in zip(images(yard, base), images(yard, version), strict=True)
    }


async def kept(yard: Any, version: str) -> list[str]:
    """Hashes of the bases that deltas lead from, an entry an ECU."""
    return [
        one.base_sha256 for new in images(yard, version) for one in await yard.firmwares.deltas.to(sha(new))
    ]


@pytest.fixture
async def two(yard: Any) -> Any:
    """Releases 1.0.0 and 1.1.0, uploaded with the deltas between them."""
    yard.world.release("1.0.0", 1)
    yard.world.release("1.1.0", 2)
    answer = await yard.publish(repository(yard) | deltas_of(yard, "1.0.0", "1.1.0"))
    assert answer.status_code == 201, answer.text
    return yard


def later(yard: Any) -> None:
    yard.world.now = yard.clock[0] = yard.world.now + timedelta(minutes=1)


async def test_they_are_kept_and_an_upload_without_them_takes_none_away(two: Any) -> None:
    bases = [sha(one) for one in images(two, "1.0.0")]
    assert await kept(two, "1.1.0") == bases
    assert await kept(two, "1.0.0") == []
    assert (await two.publish()).status_code == 200
    assert await kept(two, "1.1.0") == bases


async def test_they_may_come_after_their_images(yard: Any) -> None:
    yard.world.release("1.0.0", 1)
    yard.world.release("1.1.0", 2)
    assert (await yard.publish()).status_code == 201
    slim = {name: raw for name, raw in repository(yard).items() if not name.startswith("targets/")}
    assert (await yard.publish(slim | deltas_of(yard, "1.0.0", "1.1.0"))).status_code == 200
    assert len(await kept(yard, "1.1.0")) == 2


async def test_a_bad_one_harms_nothing_but_itself(yard: Any, files: FolderFiles) -> None:
    yard.world.release("1.0.0", 1)
    yard.world.release("1.1.0", 2)
    good = deltas_of(yard, "1.0.0", "1.1.0")
    first, _ = good
    old, new = images(yard, "1.0.0")[0], images(yard, "1.1.0")[0]
    strange = {
        first: good[first][:-1] + b"?",
        f"deltas/{'0' * 64}.{sha(new)}": good[first],
        f"deltas/{sha(old)}.{'0' * 64}": good[first],
        f"deltas/{sha(new)}.{sha(old)}": bytes(10_000),
        "deltas/readme.txt": b"hello",
    }
    answer = await yard.publish(repository(yard) | good | strange)
    assert answer.status_code == 201, answer.text
    assert await kept(yard, "1.1.0") == [sha(images(yard, "1.0.0")[1])]
    assert list(files.incoming.folder.iterdir()) == []
    stored = {one.stem for one in files.incoming.folder.parent.iterdir() if one.is_file()}
    assert stored == {sha(one) for v in ("1.0.0", "1.1.0") for one in images(yard, v)} | {sha(good[first])}


async def test_a_bundle_that_is_refused_leaves_none(yard: Any) -> None:
    yard.world.release("1.0.0", 1)
    yard.world.release("1.1.0", 2)
    broken = {name: raw for name, raw in repository(yard).items() if "targets/hoist" not in name}
    answer = await yard.publish(broken | deltas_of(yard, "1.0.0", "1.1.0"))
    assert answer.status_code == 422
    assert await kept(yard, "1.1.0") == []


async def test_what_takes_too_long_is_taken_with_the_next_upload(
    yard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.world.release("1.0.0", 1)
    yard.world.release("1.1.0", 2)
    whole = repository(yard) | deltas_of(yard, "1.0.0", "1.1.0")
    monkeypatch.setattr(bundle_deltas, "ALL_WITHIN_S", -1.0)
    assert (await yard.publish(whole)).status_code == 201
    assert await kept(yard, "1.1.0") == []
    monkeypatch.setattr(bundle_deltas, "ALL_WITHIN_S", 60.0)
    assert (await yard.publish(whole)).status_code == 200
    assert len(await kept(yard, "1.1.0")) == 2


async def test_deltas_go_when_their_image_is_not_signed_any_more(two: Any, files: FolderFiles) -> None:
    later(two)
    # Both ECUs' images differ by the same bytes: their deltas are one file, which goes with the last of them.
    [delta] = set(deltas_of(two, "1.0.0", "1.1.0").values())
    old = [sha(one) for one in images(two, "1.0.0")]
    two.world.release("1.2.0", 3)
    for ecu, left in zip(two.world.vehicle.ecus, (old[1:], []), strict=True):
        later(two)
        path = two.world.spec(ecu, "1.1.0", 2).target_path
        two.world.image, _ = withdraw(two.world.image, path, two.world.now)
        two.world.publish()
        assert (await two.publish()).status_code == 201
        assert await kept(two, "1.1.0") == left
        assert files.path(sha(delta)).exists() == bool(left)


async def test_a_release_is_offered_by_deltas_for_each_ecu(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await two.register()).status_code == 200
    device = await two.devices.get(TRUCK)
    ecus = two.world.vehicle.ecus
    names = ("brakes", "hoist")
    installed = tuple(
        Installed(component=name, kind=ecu.kind, hardware=ecu.hardware, version="1.0.0", sha256=sha(image))
        for name, ecu, image in zip(names, ecus, images(two, "1.0.0"), strict=True)
    )
    manifest = Manifest(store_id="store-1", seq=1, components=installed, at=datetime.now(UTC))
    hello = Hello(online=True, store_id="store-1", agent_version="0.2.0", features=(Feature.DELTA,))

    async def speaks(connection: Any) -> None:
        await two.devices.store_numbers(connection, [(device.device_id, "store-1")])
        await two.devices.take_manifest(connection, TRUCK, manifest)
        await two.devices.heard(connection, TRUCK, hello, datetime.now(UTC))

    await two.db.run(speaks)
    order = {"device_id": TRUCK, "release": "haul/1.1.0"}
    ordered = await two.operator.post("/api/v1/jobs", json=order)
    assert ordered.status_code == 201, ordered.text
    await two.jobs.move_due(10)
    commands = CommandService(
        two.jobs,
        two.devices,
        two.firmwares,
        resend=Backoff(first_s=5, most_s=9),
        releases=two.room.release_jobs,
    )
    await two.db.run(lambda c: commands.take_over(c, 10))
    claim = await two.db.run(lambda c: commands.claim(c, 10))
    [out] = claim.outgoing
    command = build_command(
        out, url_of=lambda sha256: f"http://o/files/{sha256}", expires_at=datetime.now(UTC)
    )
    assert [target.delta and target.delta.base_sha256 for target in command.targets] == [
        sha(one) for one in images(two, "1.0.0")
    ]
    # Where not all fit into a command, what spares the most is offered.
    monkeypatch.setattr(build, "MOST_DELTAS_BYTES", 500)
    short = build_command(out, url_of=lambda sha256: f"http://o/{sha256}", expires_at=datetime.now(UTC))
    assert sum(target.delta is not None for target in short.targets) == 1
