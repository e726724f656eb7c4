"""Deltas in commands: offered to trucks that can take them, from what they run, and never required."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from shared.delta import make_delta
from shared.messages import Feature, Hello, Installed, Manifest
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer

OLD = random.Random(21).randbytes(20_000)
NEW = OLD[:700] + b"new code" * 4 + OLD[700:]
DELTA = make_delta(OLD, NEW)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def publish(desk: Any, image: bytes, version: str) -> None:
    """`desk.publish` with these bytes."""
    spec = FirmwareSpec(
        kind="brake-controller",
        hardware=("rev-b",),
        version=version,
        release_counter=1,
        length=len(image),
        sha256=sha(image),
    )
    path = desk.folder / f"{version}.bin"
    path.write_bytes(image)
    document = make_document(spec, load_signer(desk.private), datetime.now(UTC) + timedelta(days=30))
    await desk.firmwares.publish(document, path, notes="", by="test")


async def hello(desk: Any, *features: str, **revisions: int) -> None:
    words = ("install", "cancel", "fresh-url", "doc-ed25519", *features)
    await desk.say(
        "hello",
        Hello(online=True, store_id="store-1", agent_version="0.2.0", features=words, revisions=revisions),
    )


async def runs(desk: Any, image: bytes, seq: int = 1, component: str = "brakes") -> None:
    installed = Installed(
        component=component, kind="brake-controller", hardware="rev-b", version="1.0.0", sha256=sha(image)
    )
    at = datetime.now(UTC)
    await desk.say("manifest", Manifest(store_id="store-1", seq=seq, components=(installed,), at=at))


@pytest.fixture
async def yard(desk: Any) -> Any:
    """Two published images, a delta between them, and a ready job from a truck to the newer one."""
    await desk.add_truck()
    await publish(desk, OLD, "1.0.0")
    await publish(desk, NEW, "1.1.0")
    path = desk.folder / "delta"
    path.write_bytes(DELTA)
    await desk.firmwares.deltas.take(path, base_sha256=sha(OLD), sha256=sha(NEW), by="test")
    await desk.order()
    await desk.jobs.move_due(10)
    return desk


async def test_a_truck_that_runs_the_base_is_offered_the_delta(yard: Any, unix_time: list[float]) -> None:
    await runs(yard, OLD)
    await hello(yard, Feature.DELTA)
    await yard.dispatcher.step()
    [command] = yard.air.commands()
    [target] = command.targets
    assert target.delta is not None
    assert (target.delta.base_sha256, target.delta.sha256) == (sha(OLD), sha(DELTA))
    assert (target.delta.length, target.delta.format) == (len(DELTA), "quarry-delta-1")
    url = urlsplit(target.delta.url)
    assert url.path == f"/files/{sha(DELTA)}"
    assert int(parse_qs(url.query)["expires"][0]) == int(unix_time[0] + yard.dispatcher.url_for_s)
    # The whole image stands beside it, and the command asks nothing more of the truck.
    assert urlsplit(target.url).path == f"/files/{sha(NEW)}"
    assert Feature.DELTA not in command.requires
    spared = yard.metrics.registry.get_sample_value("delta_bytes_spared_total")
    assert spared == len(NEW) - len(DELTA)


async def test_a_repeat_offers_it_again_and_spares_nothing_more(yard: Any) -> None:
    await runs(yard, OLD)
    await hello(yard, Feature.DELTA)
    await yard.dispatcher.step()
    await yard.make_due()
    await yard.dispatcher.step()
    assert [command.targets[0].delta is not None for command in yard.air.commands()] == [True, True]
    assert yard.metrics.registry.get_sample_value("deltas_offered_total") == 1


@pytest.mark.parametrize(
    ("features", "image"),
    [
        pytest.param((), OLD, id="a truck that can't take deltas"),
        pytest.param(("quarry-delta-2",), OLD, id="a truck that takes another form"),
        pytest.param((Feature.DELTA,), b"something else", id="a truck that runs something else"),
        pytest.param((Feature.DELTA,), NEW, id="a truck that runs the new image"),
        pytest.param((Feature.DELTA,), None, id="a truck that never said what it runs"),
    ],
)
async def test_whoever_has_no_use_for_a_delta_gets_the_image_alone(
    yard: Any, features: tuple[str, ...], image: bytes | None
) -> None:
    if image is not None:
        await runs(yard, image)
    await hello(yard, *features)
    await yard.dispatcher.step()
    [command] = yard.air.commands()
    assert command.targets[0].delta is None
    assert "delta" not in command.to_obj()["targets"][0]


async def test_another_component_that_runs_the_base_is_not_meant(yard: Any) -> None:
    await runs(yard, OLD, component="brakes-2")
    await hello(yard, Feature.DELTA)
    await yard.dispatcher.step()
    assert yard.air.commands()[0].targets[0].delta is None


async def test_what_the_truck_runs_is_looked_at_when_the_command_leaves(yard: Any) -> None:
    await runs(yard, b"something else")
    await hello(yard, Feature.DELTA)
    await yard.dispatcher.step()
    await runs(yard, OLD, seq=2)
    await yard.make_due()
    await yard.dispatcher.step()
    assert [command.targets[0].delta is not None for command in yard.air.commands()] == [False, True]


async def test_a_fresh_url_brings_a_fresh_one_of_the_delta(yard: Any, unix_time: list[float]) -> None:
    await runs(yard, OLD)
    await hello(yard, Feature.DELTA)
    await yard.dispatcher.step()
    [job] = await yard.jobs.page()
    await yard.report(yard.status(job, 1, "downloading", "received"))
    unix_time[0] += 7 * 3600.0
    await yard.report(yard.status(job, 2, "downloading", "url_expired"))
    await yard.dispatcher.step()
    first, fresh = yard.air.commands()
    assert (fresh.kind, fresh.revision) == ("url", 2)
    assert fresh.targets[0].delta is not None
    assert (fresh.targets[0].delta.sha256, fresh.targets[0].delta.url) != (
        first.targets[0].delta.sha256,
        first.targets[0].delta.url,
    )
    assert int(parse_qs(urlsplit(fresh.targets[0].delta.url).query)["expires"][0]) > int(unix_time[0])


async def test_a_cancel_carries_none(yard: Any) -> None:
    await runs(yard, OLD)
    await hello(yard, Feature.DELTA)
    await yard.dispatcher.step()
    [job] = await yard.jobs.page()
    await yard.jobs.cancel(job.job_id, job.version, "anna")
    await yard.dispatcher.step()
    assert yard.air.commands()[-1].targets == ()


async def test_deltas_of_many_trucks_are_each_from_what_it_runs(yard: Any) -> None:
    await runs(yard, OLD)
    await hello(yard, Feature.DELTA)
    for number in range(3):
        device_id = f"truck-{number}"
        await yard.add_truck(device_id)
        await yard.order(device_id)
        await yard.hello(device_id)
    await yard.jobs.move_due(10)
    await yard.dispatcher.step()
    assert yard.air.commands()[0].targets[0].delta is not None
    assert [yard.air.commands(f"truck-{n}")[0].targets[0].delta for n in range(3)] == [None] * 3
