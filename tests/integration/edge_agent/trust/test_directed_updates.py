"""Updates by the director on one gateway: a command triggers, a verified selection decides, again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from edge_agent.errors import CountersUnknown
from edge_agent.store.journal import Change
from edge_agent.update.update_machine import MOST_TRIES
from firmware_flashers.base import Capabilities, FlashError, NoAnswer, NotProved, TrustClass
from shared.backoff import Backoff
from shared.states import UpdateState
from shared.trust.document import make_document
from shared.trust.uptane.release_document import ReleaseSpec, Requirement
from shared.trust.uptane.repository_edit import withdraw

NEW = {"c0": "1.1.0", "c1": "1.1.0"}
OLD = {"c0": "1.0.0", "c1": "1.0.0"}


def policy(**said: Any) -> Callable[[ReleaseSpec], ReleaseSpec]:
    """A release's own word on safety."""

    def change(release: ReleaseSpec) -> ReleaseSpec:
        return msgspec.structs.replace(release, safety=msgspec.structs.replace(release.safety, **said))

    return change


def each(**said: Any) -> Callable[[ReleaseSpec], ReleaseSpec]:
    """A release's own word on its targets: one value, or one for each."""

    def change(release: ReleaseSpec) -> ReleaseSpec:
        targets = tuple(
            msgspec.structs.replace(one, **{k: v[n] if isinstance(v, tuple) else v for k, v in said.items()})
            for n, one in enumerate(release.targets)
        )
        return msgspec.structs.replace(release, targets=targets)

    return change


def direct(gateway: Any, version: str, counter: int, **said: Any) -> ReleaseSpec:
    """The office publishes and directs a release."""
    world = gateway.fleet.world
    release: ReleaseSpec = world.release(version, counter, **said)
    world.direct(release)
    return release


async def waits(gateway: Any, why: str) -> None:
    status = await gateway.told(lambda one: one.step == "waiting" or one.status in {"done", "error"})
    assert status.step == "waiting"
    assert why in status.reason


def park(gateway: Any, *, parked: bool) -> None:
    gateway.vehicle = replace(gateway.vehicle, parked=parked)


async def test_a_release_of_two_ecus_by_the_director(gateway: Any) -> None:
    done = await gateway.ends(gateway.command())
    assert (done.status, done.error) == ("done", None)
    assert gateway.runs == NEW
    assert [(one.component, one.version) for one in done.targets] == [("c0", "1.1.0"), ("c1", "1.1.0")]
    [entry] = await gateway.store.jobs()
    assert entry.state is UpdateState.DONE
    assert entry.selection in await gateway.fleet.metadata.kept_selections()
    # Counters rise in both places, and what was installed may return by the selection's authority.
    assert gateway.counters.known == {"c0": 2, "c1": 2}
    assert gateway.fleet.keeper.store.counters == {"SN-0": 2, "SN-1": 2}
    assert await gateway.kept.selections() == {entry.selection}
    assert await gateway.fleet.alarms() == set()


async def test_the_ecus_get_the_documents_that_were_signed_with_their_images(gateway: Any) -> None:
    direct(gateway, "1.2.0", 3, document=gateway.fleet.world.ecu_document)
    assert (await gateway.ends(gateway.command("1.2.0", 3))).status == "done"
    for mcu, ecu in zip(gateway.mcus.values(), gateway.fleet.world.vehicle.ecus, strict=True):
        # An Ed25519 signature of the same words is the same signature.
        assert mcu.documents == [gateway.fleet.world.ecu_document(gateway.fleet.world.spec(ecu, "1.2.0", 3))]


async def test_the_second_time_nothing_is_flashed(gateway: Any) -> None:
    await gateway.ends(gateway.command())
    for mcu in gateway.mcus.values():
        mcu.written.clear()
    done = await gateway.ends(gateway.command(job_id="job-2"))
    assert (done.status, done.reason) == ("done", "every component runs its firmware already")
    assert gateway.untouched


async def test_a_selection_that_comes_a_moment_late_is_waited_for(gateway: Any) -> None:
    gateway.fleet.world.direct(None)
    await gateway.store.take_command(gateway.command())
    async with gateway.run():
        await gateway.told(lambda one: one.error is not None and one.error.code == "not_selected")
        gateway.fleet.world.direct(gateway.fleet.world.release("1.1.0", 2))
        done = await gateway.told(lambda one: one.status in {"done", "error"})
    assert done.status == "done"


async def test_one_that_never_comes_ends_it_with_the_reason(gateway: Any) -> None:
    gateway.fleet.world.direct(None)
    ended = await gateway.ends(gateway.command())
    assert (ended.status, ended.error.code) == ("error", "not_selected")
    timestamps = gateway.fleet.office.asked.count("director/timestamp.json")
    assert timestamps == MOST_TRIES


async def test_an_ecu_that_sleeps_speaks_not_against_a_release(gateway: Any) -> None:
    """The release asks what runs there; who wakes up says it."""
    need = Requirement(kind="hoist-controller", counter_at_least=2)
    assert (await gateway.ends(gateway.command())).status == "done"
    direct(gateway, "1.2.0", 3, needs=[need])
    asleep = gateway.fleet.vehicle
    awake = replace(asleep, ecus=tuple(replace(one, installed_counter=2) for one in asleep.ecus))
    gateway.mcus["c1"].faults = {"identify": [NoAnswer("asleep") for _ in range(10_000)]}
    await gateway.store.take_command(gateway.command("1.2.0", 3, job_id="job-2"))
    async with gateway.run():
        told = await gateway.told(lambda one: one.error is not None)
        assert (told.step, told.error.code) == ("waiting", "ecu_silent")
        gateway.mcus["c1"].faults.clear()
        gateway.fleet.vehicle = awake
        assert (await gateway.told(lambda one: one.status in {"done", "error"})).status == "done"


# --- between the selection and the first touch -----------------------------------------------------


@pytest.mark.parametrize("seen_before", [False, True])
async def test_another_selection_meanwhile_is_not_mistaken_for_the_first(
    gateway: Any, seen_before: bool
) -> None:
    park(gateway, parked=False)
    await gateway.store.take_command(gateway.command())
    async with gateway.run():
        await waits(gateway, "park")
        direct(gateway, "1.2.0", 3)
        if seen_before:
            await gateway.fleet.metadata.refresh()
        else:
            # Nobody has asked since; but what is here has expired.
            gateway.fleet.later(days=2)
            direct(gateway, "1.2.0", 3)
        park(gateway, parked=True)
        ended = await gateway.told(lambda one: one.status in {"done", "error"})
    assert (ended.status, ended.error.code) == ("error", "selection_changed")
    assert gateway.untouched


async def test_a_release_that_is_withdrawn_meanwhile_does_not_begin(gateway: Any) -> None:
    world = gateway.fleet.world
    release = direct(gateway, "1.2.0", 3)
    park(gateway, parked=False)
    await gateway.store.take_command(gateway.command("1.2.0", 3))
    async with gateway.run():
        await waits(gateway, "park")
        world.image, _ = withdraw(world.image, release.target_path, world.now)
        world.publish()
        await gateway.fleet.metadata.refresh()
        park(gateway, parked=True)
        ended = await gateway.told(lambda one: one.status in {"done", "error"})
    assert (ended.status, ended.error.code) == ("error", "target_not_found")
    assert gateway.untouched


async def test_after_weeks_of_waiting_the_metadata_are_renewed_first(gateway: Any) -> None:
    park(gateway, parked=False)
    await gateway.store.take_command(gateway.command())
    async with gateway.run():
        await waits(gateway, "park")
        gateway.fleet.later(days=21)
        world = gateway.fleet.world
        world.publish()
        world.direct(world.release("1.1.0", 2))
        park(gateway, parked=True)
        ended = await gateway.told(lambda one: one.status in {"done", "error"})
    assert ended.status == "done", ended
    assert gateway.runs == NEW


async def test_what_was_selected_is_good_without_an_office(gateway: Any) -> None:
    """The link is gone behind the refresh; the images are here already, the selection is good for a day."""
    assert await gateway.fleet.refused() is None
    for name in ("director/2.root.json", "director/timestamp.json"):
        gateway.fleet.office.answers[name] = lambda _: [b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n"]
    assert (await gateway.ends(gateway.command())).status == "done"
    gateway.fleet.later(days=2)
    await gateway.store.take_command(gateway.command(job_id="job-2"))
    async with gateway.run():
        async with asyncio.timeout(30):
            while gateway.fleet.office.asked.count("director/2.root.json") < 4:
                await asyncio.sleep(0.005)
        gateway.fleet.office.answers.clear()
        gateway.fleet.world.publish()
        gateway.fleet.world.direct(gateway.fleet.world.release("1.1.0", 2))
        assert (await gateway.told(lambda one: one.status in {"done", "error"})).status == "done"


# --- behind the first touch ------------------------------------------------------------------------


async def test_what_has_begun_goes_on_whatever_happens_to_its_metadata(gateway: Any) -> None:
    """Everything expires, keys are rotated, another release is directed, the office and its link are gone."""
    gateway.mcus["c1"].faults = {"activate": [FlashError("a hiccup")] * 2}

    async def at_the_first_erase() -> None:
        fleet = gateway.fleet
        fleet.world.rotate("image/timestamp")
        fleet.world.rotate("director/targets")
        direct(gateway, "1.2.0", 3)
        await fleet.metadata.refresh()
        fleet.later(days=4000)
        fleet.office.served = {}

    gateway.mcus["c1"].on_stage = at_the_first_erase
    done = await gateway.ends(gateway.command())
    assert done.status == "done", done
    assert gateway.runs == NEW


async def test_a_store_that_is_damaged_in_the_middle_strands_nobody(gateway: Any) -> None:
    async def at_the_first_erase() -> None:
        gateway.fleet.keeper._store = None

    gateway.mcus["c1"].on_stage = at_the_first_erase
    assert (await gateway.ends(gateway.command())).status == "done"
    assert gateway.runs == NEW
    refused = await gateway.ends(gateway.command(job_id="job-2"))
    assert refused.error.code == "trusted_store_unreadable"
    assert "trusted_store_unreadable" in await gateway.fleet.alarms()


async def test_it_goes_back_by_the_authority_that_it_was_installed_by(gateway: Any) -> None:
    """1.1.0 came by a selection; 1.2.0 is bad; meanwhile every key of its family was rotated."""
    await gateway.ends(gateway.command())
    world = gateway.fleet.world
    for number in (1, 2, 3):
        world.rotate("image/hoist-controller", number)
    direct(gateway, "1.2.0", 3)
    mcu = gateway.mcus["c1"]
    mcu.written.clear()
    mcu.faults = {"verify": [NotProved("its health check fails", retryable=False)]}
    ended = await gateway.ends(gateway.command("1.2.0", 3, job_id="job-2"))
    assert (ended.status, ended.error.code) == ("error", "not_proved")
    assert gateway.runs == NEW
    assert mcu.written == ["1.2.0", "1.1.0"]
    assert gateway.counters.known == {"c0": 2, "c1": 2}


async def test_selections_of_kept_images_outlive_many_others(gateway: Any) -> None:
    await gateway.ends(gateway.command())
    kept = await gateway.kept.selections()
    await gateway.authority.in_use(())
    for n in range(12):
        direct(gateway, f"1.1.{n + 1}", 3)
        assert await gateway.fleet.refused() is None
    assert kept <= set(await gateway.fleet.metadata.kept_selections())
    assert len(await gateway.fleet.metadata.kept_selections()) < 12


# --- where images come from ------------------------------------------------------------------------


async def test_another_host_is_not_shown_the_trucks_token(gateway: Any) -> None:
    """A command's address may be anybody's; the hash is the signed one."""
    heads: list[str] = []
    image = gateway.fleet.image("brake-controller", "1.1.0")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        length = f"content-length: {len(image)}"
        writer.write(f"HTTP/1.1 200 OK\r\n{length}\r\nconnection: close\r\n\r\n".encode() + image)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        first, second = gateway.command().targets
        path = first.url.partition("/repo/")[2]
        elsewhere = msgspec.structs.replace(first, url=f"http://127.0.0.1:{port}/repo/{path}")
        done = await gateway.ends(gateway.command(targets=(elsewhere, second)))
    assert done.status == "done"
    assert len(heads) == 1
    assert "authorization" not in heads[0]
    assert any(".bin" in name for name in gateway.fleet.office.asked), "the other one came from our office"


# --- the release's own word ------------------------------------------------------------------------


async def test_without_a_way_back_only_by_the_signed_policys_word(gateway: Any) -> None:
    (gateway.folder / "kept.json").write_text("{}")
    gateway.kept._records = None
    ended = await gateway.ends(gateway.command())
    assert (ended.status, ended.error.code) == ("error", "no_way_back")
    assert gateway.untouched
    direct(gateway, "1.2.0", 3, change=policy(may_go_without_way_back=True))
    assert (await gateway.ends(gateway.command("1.2.0", 3, job_id="job-2"))).status == "done"


async def test_an_ecu_that_checks_nothing_only_by_the_signed_policys_word(gateway: Any) -> None:
    mcu = gateway.mcus["c1"]
    mcu.capabilities = Capabilities(
        slots=1,
        self_reverting=False,
        anti_rollback=False,
        trust_class=TrustClass.GATEWAY_ONLY,
        isolated_bus=True,
    )
    ended = await gateway.ends(gateway.command())
    assert (ended.status, ended.error.code) == ("error", "gateway_only")
    assert gateway.untouched
    direct(gateway, "1.2.0", 3, change=policy(may_flash_gateway_only=True))
    assert (await gateway.ends(gateway.command("1.2.0", 3, job_id="job-2"))).status == "done"


async def test_what_this_trucks_owner_forbids_no_release_permits(gateway: Any) -> None:
    local = msgspec.structs.replace(gateway.policy.local, may_go_without_way_back=False)
    gateway.policy = replace(gateway.policy, local=local)
    gateway.connect()
    (gateway.folder / "kept.json").write_text("{}")
    gateway.kept._records = None
    direct(gateway, "1.2.0", 3, change=policy(may_go_without_way_back=True))
    ended = await gateway.ends(gateway.command("1.2.0", 3))
    assert ended.error.code == "no_way_back"


async def test_the_signed_policy_is_asked_before_during_and_behind_the_flash(gateway: Any) -> None:
    """It wants more volts than the truck's owner does."""
    direct(gateway, "1.2.0", 3, change=policy(battery_at_least=27_000))
    await gateway.store.take_command(gateway.command("1.2.0", 3))
    async with gateway.run():
        await waits(gateway, "27 V")
        assert gateway.untouched
        gateway.vehicle = replace(gateway.vehicle, voltage_v=28.0)

        async def sags() -> None:
            gateway.vehicle = replace(gateway.vehicle, voltage_v=26.0)

        gateway.mcus["c1"].on_stage = sags
        # Written to its end; its start waits.
        await waits(gateway, "27 V")
        assert gateway.runs["c1"] is None
        gateway.vehicle = replace(gateway.vehicle, voltage_v=28.0)
        assert (await gateway.told(lambda one: one.status in {"done", "error"})).status == "done"


async def test_it_goes_back_after_the_signed_number_of_attempts(gateway: Any) -> None:
    direct(gateway, "1.2.0", 3, change=each(attempts=2))
    mcu = gateway.mcus["c1"]
    mcu.faults = {"activate": [NotProved("it does not boot")] * 2}
    ended = await gateway.ends(gateway.command("1.2.0", 3))
    assert (ended.status, ended.error.code) == ("error", "not_proved")
    assert mcu.written == ["1.2.0", "1.2.0", "1.0.0"]
    assert gateway.runs == OLD


async def test_the_releases_order_and_groups_are_the_plans(gateway: Any) -> None:
    """The second one goes first, in a group of its own."""
    direct(gateway, "1.2.0", 3, change=each(order=(5, 1), group=("late", "soon"), attempts=(3, 7)))
    park(gateway, parked=False)
    await gateway.store.take_command(gateway.command("1.2.0", 3))
    async with gateway.run():
        await waits(gateway, "park")
    [entry] = await gateway.store.jobs()
    planned = entry.release.plan.targets
    assert [(one.component, one.group, one.attempts) for one in planned] == [("c1", 0, 7), ("c0", 1, 3)]


# --- one ECU alone ---------------------------------------------------------------------------------


async def test_a_release_of_one_ecu_is_a_release(gateway: Any) -> None:
    """The truck's other ECU has nothing in it: a way back, attempts and health hold all the same."""

    def only_the_hoist(release: ReleaseSpec) -> ReleaseSpec:
        return msgspec.structs.replace(release, targets=release.targets[1:])

    direct(gateway, "1.2.0", 3, change=only_the_hoist)
    command = gateway.command("1.2.0", 3)
    lone = msgspec.structs.replace(command, targets=command.targets[1:])
    gateway.mcus["c1"].faults = {"verify": [NotProved("its health check fails", retryable=False)]}
    ended = await gateway.ends(lone)
    assert (ended.status, ended.error.code) == ("error", "not_proved")
    assert gateway.runs == OLD
    again = msgspec.structs.replace(lone, job_id="job-2", command_id="c2")
    assert (await gateway.ends(again)).status == "done"
    assert gateway.runs == {"c0": "1.0.0", "c1": "1.2.0"}


async def test_a_lone_ecu_that_is_stranded_is_taken_over_by_a_newer_release(gateway: Any) -> None:
    (gateway.folder / "kept.json").write_text("{}")
    gateway.kept._records = None

    def alone(release: ReleaseSpec) -> ReleaseSpec:
        return policy(may_go_without_way_back=True)(
            msgspec.structs.replace(release, targets=release.targets[1:])
        )

    def order(version: str, counter: int, job_id: str) -> Any:
        direct(gateway, version, counter, change=alone)
        command = gateway.command(version, counter, job_id=job_id)
        return msgspec.structs.replace(command, targets=command.targets[1:])

    mcu = gateway.mcus["c1"]
    mcu.faults = {"activate": [FlashError("it does not boot") for _ in range(10_000)]}
    # Longer and longer, so that the newer one has its turn meanwhile.
    gateway.updater._backoff = Backoff(first_s=0.02, most_s=3.0)
    await gateway.store.take_command(order("1.2.0", 3, "job-1"))
    async with gateway.run():
        await gateway.told(lambda one: one.step == "stranded")
        await gateway.store.take_command(order("1.3.0", 4, "job-2"))
        replaced = await gateway.told(lambda one: one.job_id == "job-1" and one.status == "error")
        assert replaced.error.code == "replaced"
        mcu.faults.clear()
        done = await gateway.told(lambda one: one.job_id == "job-2" and one.status in {"done", "error"})
    assert done.status == "done", done
    assert gateway.runs["c1"] == "1.3.0"


# --- before the trust chain ------------------------------------------------------------------------


async def test_a_job_from_before_the_chain_begins_no_more(gateway: Any) -> None:
    """It lies downloaded in the journal, verified by its document alone, and nothing was touched."""
    await gateway.store.take_command(gateway.command())
    [entry] = await gateway.store.live()
    await gateway.store.record(Change(entry=replace(entry, state=UpdateState.WAITING)))
    ended = await gateway.ends()
    assert (ended.status, ended.error.code) == ("error", "nothing_selected")
    assert gateway.untouched


async def test_what_had_begun_before_the_chain_is_finished_by_its_document(gateway: Any) -> None:
    """An ECU is torn: its keys are provisioned still, and nobody else could say what it was to have."""
    world = gateway.fleet.world
    spec = world.spec(world.vehicle.ecus[1], "1.1.0", 2)
    document = make_document(spec, gateway.signer, datetime(2027, 1, 1, tzinfo=UTC)).decode()
    await gateway.store.take_command(
        gateway.command(targets=(gateway.target("c1", spec, document=document),))
    )
    [entry] = await gateway.store.live()
    path = gateway.folder / f"{spec.sha256}.bin"
    path.write_bytes(gateway.fleet.image(spec.kind, "1.1.0"))
    begun = replace(entry, state=UpdateState.FLASHING, touched=True, image=str(path))
    await gateway.store.record(Change(entry=begun))
    gateway.mcus["c1"].runs = None
    assert (await gateway.ends()).status == "done"
    assert gateway.runs == {"c0": "1.0.0", "c1": "1.1.0"}
    assert gateway.fleet.keeper.store.counters == {"SN-1": 2}


async def test_damaged_counters_refuse_with_the_chain_too(gateway: Any) -> None:
    gateway.counters._highest = None
    ended = await gateway.ends(gateway.command())
    assert ended.error.code == CountersUnknown.code
    assert gateway.untouched
