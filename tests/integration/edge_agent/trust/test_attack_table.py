"""The attack table (issue 5, Uptane 4.3) at the whole gateway: updater, downloader, store and trust chain.

Each row mounts an attack on what the truck's link brings, and a command triggers an installation. In the end
no ECU was written a byte, the job's status names the error, and the next vehicle manifest names the alarm.
Eavesdropping is TLS's matter (test_eavesdropping_and_dates).
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from msgspec import structs

from edge_agent.trust.metadata_source import FetchLimits
from shared.trust.uptane.release_document import Requirement
from shared.trust.uptane.repository_edit import firmware_target, withdraw
from sim.uptane_attacker import Attacker
from sim.uptane_world import UptaneWorld

ONLINE = ("director/targets/1", "director/snapshot/1", "director/timestamp/1")
EVIL = "6.6.6"
OLD = {"c0": "1.0.0", "c1": "1.0.0"}
NEW = {"c0": "1.1.0", "c1": "1.1.0"}
KEY_NAMES = sorted(UptaneWorld().keys)

Mount = Callable[[Any], Awaitable[dict[str, Any] | None]]
"""Mounts an attack on a gateway; what it answers is of the command that an accomplice in the office sends."""


def serve(gateway: Any, served: dict[Any, bytes]) -> None:
    """This is what the truck's link brings from now on."""
    gateway.fleet.office.served = served


def captured(gateway: Any, *stolen: str) -> Attacker:
    """Somebody with the director's online keys and all of the storage, who serves what it likes."""
    bad = Attacker(gateway.fleet.world, stolen or ONLINE)
    serve(gateway, bad.served)
    return bad


async def trusted(gateway: Any) -> None:
    """The truck has seen the honest repositories, and runs what they say."""
    assert await gateway.fleet.refused() is None
    for serial in ("SN-0", "SN-1"):
        await gateway.fleet.keeper.ran(serial, 2)


# --- on the link -----------------------------------------------------------------------------------


async def freeze(gateway: Any) -> None:
    gateway.fleet.wall += timedelta(days=2)


async def freeze_with_a_clock_in_1970(gateway: Any) -> None:
    fleet = gateway.fleet
    frozen = {key: raw for key, raw in fleet.world.served.items() if key[0] == "director"}
    fleet.world.now += timedelta(days=2)
    fleet.world.release("1.2.0", 3)
    fleet.world.served.update(frozen)
    serve(gateway, fleet.world.served)
    fleet.wall = fleet.wall.replace(year=1970)


async def rollback_of_the_director(gateway: Any) -> None:
    fleet = gateway.fleet
    old = dict(fleet.world.served)
    await fleet.renew("1.2.0", 3)
    await trusted(gateway)
    serve(gateway, {**fleet.world.served, **{key: raw for key, raw in old.items() if key[0] == "director"}})


async def rollback_of_the_images(gateway: Any) -> None:
    fleet = gateway.fleet
    old = {key: raw for key, raw in fleet.world.served.items() if key[0] == "image"}
    await fleet.renew("1.2.0", 3)
    await trusted(gateway)
    serve(gateway, {**fleet.world.served, **old})


async def mix_and_match(gateway: Any) -> None:
    world = gateway.fleet.world
    old = dict(world.served)
    await gateway.fleet.renew("1.2.0", 3)
    name, _ = Attacker(world, ()).newest("image", "targets")
    previous = max(key[1] for key in old if key[0] == "image" and key[1].endswith(".targets.json"))
    serve(gateway, {**world.served, ("image", name): old["image", previous]})


async def another_trucks_metadata(gateway: Any) -> None:
    world = gateway.fleet.world
    mine = world.vehicle
    world.vehicle = replace(mine, vehicle_id="truck-8")
    world.direct(world.release("1.2.0", 3))
    world.vehicle = mine
    serve(gateway, world.served)


async def repositories_swapped(gateway: Any) -> None:
    swap = {"image": "director", "director": "image"}
    serve(gateway, {(swap[where], name): raw for (where, name), raw in gateway.fleet.world.served.items()})


async def drop_of_a_file(gateway: Any) -> None:
    serve(
        gateway, {key: raw for key, raw in gateway.fleet.world.served.items() if key[1] != "timestamp.json"}
    )


async def endless_metadata(gateway: Any) -> None:
    office = gateway.fleet.office
    office.answers["image/timestamp.json"] = lambda body: [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
        body,
    ]
    office.endless = b" " * 4096


async def slow_retrieval(gateway: Any) -> None:
    fleet = gateway.fleet
    fleet.office.answers["image/timestamp.json"] = lambda body: [
        f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode(),
        body[:10],
    ]
    fleet.office.silent = True
    fleet.metadata._office = dataclasses.replace(fleet.source, limits=FetchLimits(idle_s=0.02))


async def fast_forward(gateway: Any) -> None:
    """A thief of the image repository's online keys has counted far ahead, and was found out."""
    bad = captured(gateway, "image/timestamp/1", "image/snapshot/1")
    bad.relist("image", steps=10**6)
    await trusted(gateway)
    serve(gateway, gateway.fleet.world.served)


# --- with the whole control plane captured ---------------------------------------------------------


async def firmware_that_was_never_signed(gateway: Any) -> dict[str, Any]:
    """Evil images, an evil release, an evil command; the image repository can't be forged."""
    bad = captured(gateway)
    honest = dict(bad.served)
    release = bad.release(EVIL, 66)
    bad.served.update({key: raw for key, raw in honest.items() if key[0] == "image"})
    bad.direct(release)
    return {"version": EVIL, "counter": 66}


async def a_signed_release_that_is_older(gateway: Any) -> dict[str, Any]:
    world = gateway.fleet.world
    old = world.release("1.0.5", 1)
    await trusted(gateway)
    bad = captured(gateway)
    bad.direct(old)
    return {"version": "1.0.5", "counter": 1}


async def two_signed_releases_mixed(gateway: Any) -> None:
    world = gateway.fleet.world
    world.direct(world.release("1.2.0", 3))
    other = world.release("1.3.0", 4)
    bad = captured(gateway)
    bad.directed = world.directed
    hoist = other.targets[1]

    def mix(signed: dict[str, Any]) -> None:
        [path] = [path for path in signed["targets"] if path.startswith("hoist")]
        custom = signed["targets"].pop(path)["custom"]
        entry = firmware_target(hoist.spec).to_dict()
        entry["custom"] = {**entry["custom"], "ecus": custom["ecus"]}
        signed["targets"][hoist.spec.target_path] = entry

    bad.redirect(mix)


async def half_of_a_release(gateway: Any) -> None:
    def half(signed: dict[str, Any]) -> None:
        [path] = [path for path in signed["targets"] if path.startswith("hoist")]
        del signed["targets"][path]

    captured(gateway).redirect(half)


async def one_ecus_image_for_another(gateway: Any) -> None:
    def wrong(signed: dict[str, Any]) -> None:
        paths = sorted(path for path in signed["targets"] if not path.startswith("releases/"))
        brake, hoist = (signed["targets"][path]["custom"] for path in paths)
        brake["ecus"], hoist["ecus"] = (
            {"SN-1": {"hardware": "H1"}},
            {"SN-0": {"hardware": "H0"}},
        )

    captured(gateway).redirect(wrong)


async def an_image_for_other_hardware(gateway: Any) -> None:
    def wrong(signed: dict[str, Any]) -> None:
        [path] = [path for path in signed["targets"] if path.startswith("hoist")]
        signed["targets"][path]["custom"]["ecus"] = {"SN-1": {"hardware": "H0"}}

    captured(gateway).redirect(wrong)


async def an_ecu_of_another_truck(gateway: Any) -> None:
    def stranger(signed: dict[str, Any]) -> None:
        [path] = [path for path in signed["targets"] if path.startswith("hoist")]
        signed["targets"][path]["custom"]["ecus"] = {"SN-99": {"hardware": "H1"}}

    captured(gateway).redirect(stranger)


async def a_release_that_does_not_fit_yet(gateway: Any) -> dict[str, Any]:
    world = gateway.fleet.world
    release = world.release("2.0.0", 9, needs=[Requirement(kind="hoist-controller", counter_at_least=5)])
    captured(gateway).direct(release)
    return {"version": "2.0.0", "counter": 9}


async def an_altered_image_entry(gateway: Any) -> None:
    def longer(signed: dict[str, Any]) -> None:
        [path] = [path for path in signed["targets"] if path.startswith("hoist")]
        signed["targets"][path]["length"] += 1

    captured(gateway).redirect(longer)


async def a_withdrawn_release(gateway: Any) -> None:
    world = gateway.fleet.world
    [path] = {key[1] for key in world.served if key[1].startswith("targets/releases/")}
    folder, _, name = path.removeprefix("targets/").rpartition("/")
    world.image, _ = withdraw(world.image, f"{folder}/{name.partition('.')[2]}", world.now)
    world.publish()
    serve(gateway, world.served)


# --- what an office may say that is not so ---------------------------------------------------------


async def a_command_for_another_firmware(gateway: Any) -> dict[str, Any]:
    return {"version": EVIL, "counter": 66}


async def a_command_for_half_of_the_release(gateway: Any) -> dict[str, Any]:
    return {"targets": gateway.command().targets[:1]}


async def a_command_with_another_document(gateway: Any) -> dict[str, Any]:
    world = gateway.fleet.world
    evil = world.ecu_document(world.spec(world.vehicle.ecus[0], EVIL, 66)).decode()
    first, second = gateway.command().targets
    return {"targets": (structs.replace(first, document=evil), second)}


async def nothing_is_selected(gateway: Any) -> None:
    gateway.fleet.world.direct(None)


# --- the store of images ---------------------------------------------------------------------------


def images(change: Callable[[bytes], bytes]) -> Mount:
    async def mount(gateway: Any) -> None:
        served = gateway.fleet.world.served
        serve(
            gateway,
            {key: change(raw) if key[1].endswith(".bin") else raw for key, raw in served.items()},
        )

    return mount


async def endless_image(gateway: Any) -> None:
    """It begins as it must, and never ends."""
    office = gateway.fleet.office
    [name] = {key[1] for key in office.served if key[1].startswith("targets/brake") and "1.1.0" in key[1]}
    office.answers[f"image/{name}"] = lambda body: [b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", body]
    office.endless = b"\x66" * 4096


ATTACKS: dict[str, tuple[Mount, str, str | None]] = {
    "freeze": (freeze, "metadata_expired", "metadata_expired"),
    "freeze, a clock in 1970": (freeze_with_a_clock_in_1970, "metadata_expired", "metadata_expired"),
    "rollback of the director": (rollback_of_the_director, "metadata_rolled_back", "metadata_rolled_back"),
    "rollback of the images": (rollback_of_the_images, "metadata_rolled_back", "metadata_rolled_back"),
    "mix and match": (mix_and_match, "metadata_not_as_listed", "metadata_not_as_listed"),
    "another truck's metadata": (another_trucks_metadata, "wrong_vehicle", "wrong_vehicle"),
    "repositories swapped": (repositories_swapped, "metadata_unsigned", "metadata_unsigned"),
    "drop of a file": (drop_of_a_file, "metadata_missing", "metadata_missing"),
    "endless data": (endless_metadata, "metadata_too_large", "metadata_too_large"),
    "slow retrieval": (slow_retrieval, "slow_retrieval", "slow_retrieval"),
    "fast forward": (fast_forward, "metadata_rolled_back", "metadata_rolled_back"),
    "captured: never signed": (firmware_that_was_never_signed, "target_not_found", "target_not_found"),
    "captured: older": (
        a_signed_release_that_is_older,
        "release_counter_rolled_back",
        "release_counter_rolled_back",
    ),
    "captured: mixed bundle": (two_signed_releases_mixed, "mixed_bundle", "mixed_bundle"),
    "captured: partial bundle": (half_of_a_release, "partial_bundle", "partial_bundle"),
    "captured: wrong ECU": (one_ecus_image_for_another, "target_not_found", "target_not_found"),
    "captured: wrong hardware": (an_image_for_other_hardware, "wrong_hardware", "wrong_hardware"),
    "captured: unknown ECU": (an_ecu_of_another_truck, "unknown_ecu", "unknown_ecu"),
    "captured: incompatible": (
        a_release_that_does_not_fit_yet,
        "release_not_compatible",
        "release_not_compatible",
    ),
    "captured: an altered entry": (an_altered_image_entry, "targets_differ", "targets_differ"),
    "a withdrawn release": (a_withdrawn_release, "target_not_found", "target_not_found"),
    "a command for another firmware": (
        a_command_for_another_firmware,
        "document_mismatch",
        "document_mismatch",
    ),
    "a command for half of it": (a_command_for_half_of_the_release, "document_mismatch", "document_mismatch"),
    "a command with another document": (
        a_command_with_another_document,
        "document_mismatch",
        "document_mismatch",
    ),
    "nothing is selected": (nothing_is_selected, "not_selected", None),
    "captured store: other images": (
        images(lambda raw: b"\x66" * len(raw)),
        "wrong_image",
        "wrong_image",
    ),
    "captured store: an image without end": (endless_image, "wrong_image", "wrong_image"),
    "captured store: a byte less": (images(lambda raw: raw[:-1]), "wrong_image", "wrong_image"),
    "captured store: a byte more": (images(lambda raw: raw + b"\x00"), "wrong_image", "wrong_image"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_no_ecu_is_changed_and_it_is_told(gateway: Any, attack: str) -> None:
    mount, code, alarm = ATTACKS[attack]
    said = await mount(gateway) or {}
    ended = await gateway.ends(gateway.command(**said))
    assert ended.status == "error"
    assert ended.error.code == code, ended
    assert gateway.untouched
    assert gateway.runs == OLD
    alarms = await gateway.fleet.alarms()
    assert alarms == (set() if alarm is None else {alarm})


# --- every key stolen, each alone ------------------------------------------------------------------


@pytest.mark.parametrize("name", KEY_NAMES)
async def test_no_single_key_installs_anything(gateway: Any, name: str) -> None:
    """Its thief makes everything anew, the command too, and forges what it has no key for."""
    bad = captured(gateway, name)
    bad.direct(bad.release(EVIL, 66, document=bad.ecu_document))
    await refused_by_name(gateway, gateway.command(EVIL, 66))


@pytest.mark.parametrize("name", KEY_NAMES)
async def test_no_single_key_does_so_from_among_honest_files(gateway: Any, name: str) -> None:
    """Of the evil files only those of the stolen key's role are served, the rest is honest."""
    bad = Attacker(gateway.fleet.world, [name])
    role = name.rpartition("/")[0].partition("/")[2]
    bad.direct(bad.release(EVIL, 66, document=bad.ecu_document))
    mine = {
        where: raw
        for where, raw in bad.served.items()
        if where[0] == name.partition("/")[0] and f"{role}.json" in where[1]
    }
    serve(gateway, {**gateway.fleet.world.served, **mine})
    ended = await gateway.ends(gateway.command(EVIL, 66))
    assert ended.status == "error"
    assert gateway.untouched


@pytest.mark.parametrize("stolen", ["director", "image"])
async def test_not_even_a_whole_repository_does(gateway: Any, stolen: str) -> None:
    """All keys of one of them, offline ones and roots too: the other one does not agree."""
    names = [name for name in KEY_NAMES if name.startswith(f"{stolen}/")]
    bad = captured(gateway, *names)
    bad.direct(bad.release(EVIL, 66, document=bad.ecu_document))
    await refused_by_name(gateway, gateway.command(EVIL, 66))


async def refused_by_name(gateway: Any, command: Any) -> None:
    ended = await gateway.ends(command)
    assert ended.status == "error"
    assert gateway.untouched
    assert gateway.runs == OLD
    assert await gateway.fleet.alarms() == {ended.error.code}


# --- and what comes after --------------------------------------------------------------------------


async def test_a_fast_forward_is_recovered_from_by_rotation(gateway: Any) -> None:
    await fast_forward(gateway)
    assert (await gateway.ends(gateway.command())).error.code == "metadata_rolled_back"
    world = gateway.fleet.world
    for role in ("image/timestamp", "image/snapshot"):
        world.rotate(role)
    world.publish()
    serve(gateway, world.served)
    assert (await gateway.ends(gateway.command(job_id="job-2"))).status == "done"
    assert gateway.runs == NEW


async def test_who_drops_everything_only_delays(gateway: Any) -> None:
    """No answer of an office is no alarm, and no end of the job: its own time ends it."""
    office = gateway.fleet.office
    office.answers = {
        key: lambda _: [b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n"]
        for key in ("director/2.root.json", "director/timestamp.json")
    }
    ends_at = gateway.fleet.time.now() + timedelta(hours=1)
    await gateway.store.take_command(gateway.command(expires_at=ends_at))
    async with gateway.run():
        async with asyncio.timeout(30):
            while office.asked.count("director/2.root.json") < 5:
                await asyncio.sleep(0.005)
        gateway.fleet.wall += timedelta(hours=2)
        ended = await gateway.told(lambda one: one.status == "error")
    assert ended.error.code == "command_expired"
    assert gateway.untouched
    assert await gateway.fleet.alarms() == set()


async def test_an_image_that_trickles_is_told_and_fetched_anew(gateway: Any) -> None:
    """A byte now and then keeps the time-out between two bytes quiet; the whole has a lowest rate."""
    office, transfer = gateway.fleet.office, gateway.downloader._transfer
    [name] = {key[1] for key in office.served if key[1].startswith("targets/brake") and "1.1.0" in key[1]}
    office.answers[f"image/{name}"] = lambda body: [
        f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode(),
        body[:3],
    ]
    office.silent = True
    clock = transfer._clock
    transfer._clock = itertools.count(step=400.0).__next__
    # A try that begins to trickle just before the office mends must not hold the test up for a minute.
    transfer._timeout = httpx.Timeout(10.0, read=1.0)
    await gateway.store.take_command(gateway.command())
    async with gateway.run(), asyncio.timeout(30):
        while await gateway.fleet.alarms() != {"slow_retrieval"}:
            await asyncio.sleep(0.01)
        assert gateway.untouched
        transfer._clock = clock
        office.answers.clear()
        office.silent = False
        assert (await gateway.told(lambda one: one.status in {"done", "error"})).status == "done"
    assert gateway.runs == NEW


async def test_who_cuts_the_link_time_and_again_is_told(gateway: Any) -> None:
    office = gateway.fleet.office
    office.answers["director/timestamp.json"] = lambda _: [b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{"]
    await gateway.store.take_command(gateway.command())
    async with gateway.run(), asyncio.timeout(30):
        while await gateway.fleet.alarms() != {"metadata_link_cut"}:
            await asyncio.sleep(0.01)
        assert gateway.untouched
        office.answers.clear()
        assert (await gateway.told(lambda one: one.status in {"done", "error"})).status == "done"
    assert gateway.runs == NEW
