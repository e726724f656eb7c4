"""Vehicle manifests over a real socket: what ECUs say, alarms until the office has them, no number twice."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.errors import StoreFailed
from edge_agent.trust.manifest_key import PRIVATE, PUBLIC, load_or_make_key
from edge_agent.trust.manifest_state import MOST_ALARMS, STATE_LOST, State
from shared.errors import ConfigError
from shared.messages import Installed
from shared.trust.keys import load_public
from shared.trust.uptane.manifest_check import Alarm

NO = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"


def no(status: int, body: bytes = b"") -> bytes:
    return NO % (status, len(body), body)


@asynccontextmanager
async def sending(fleet: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(fleet.manifests.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not so():
            await asyncio.sleep(0.005)


def _has(fleet: Any, manifests: int) -> bool:
    return len(fleet.office.manifests) == manifests


async def test_what_the_ecus_say_is_what_the_office_reads(fleet: Any) -> None:
    assert await fleet.refused() is None
    fleet.runs("1.1.0", 2)
    async with sending(fleet):
        await until(lambda: len(fleet.office.manifests) == 1)
    verdict = fleet.judge(fleet.office.manifests[0])
    assert verdict.alarms == ()
    by_serial = {one.signed.serial: one.signed for one in verdict.report.ecus}
    assert by_serial["gateway-7"].installed is None
    for ecu in fleet.world.vehicle.ecus:
        spec = fleet.world.spec(ecu, "1.1.0", 2)
        held = by_serial[ecu.serial].installed
        assert (held.sha256, held.length, held.release_counter) == (spec.sha256, spec.length, 2)
        assert held.filename == spec.target_path


async def test_silent_empty_and_unknown(fleet: Any) -> None:
    """An ECU that is silent holds nothing that is known; an image that nobody knows has no counter."""
    brake = fleet.ecus.ecus[0]
    fleet.installed = [
        Installed(component="c0", kind=brake.kind, hardware="H9", version="0.1", sha256="ab" * 32)
    ]
    verdict = fleet.judge(await fleet.manifests.make())
    held = {one.signed.serial: one.signed.installed for one in verdict.report.ecus}
    assert (held["SN-0"].length, held["SN-0"].release_counter) == (0, 0)
    assert held["SN-1"] is None
    # What it answered counts, not what is configured: the office sees the exchanged part.
    assert [(one.alarm, one.serial) for one in verdict.alarms] == [(Alarm.HARDWARE_CHANGED, "SN-0")]


@pytest.mark.parametrize("answer", [no(503), no(401), no(422, b'{"code": "other"}'), no(500, b"[" * 9999)])
async def test_repeated_until_it_is_accepted(fleet: Any, answer: bytes) -> None:
    fleet.office.manifest_answers = [answer] * 3
    async with sending(fleet):
        await until(lambda: len(fleet.office.manifests) == 4 and fleet.state.state.unsent is None)
    assert len(set(fleet.office.manifests)) == 1


async def test_one_at_each_start_and_one_after_each_update(fleet: Any) -> None:
    for n in range(3):
        await fleet.start_truck()
        async with sending(fleet):
            await until(partial(_has, fleet, 2 * n + 1))
            await until(lambda: fleet.state.state.unsent is None)
            fleet.manifests.update_ended()
            await until(partial(_has, fleet, 2 * n + 2))
            await until(lambda: fleet.state.state.unsent is None)
    # Every one is new to the office, over restarts, too.
    assert [fleet.judge(one).alarms for one in fleet.office.manifests] == [()] * 6


async def test_alarms_outlive_the_process_and_go_once(fleet: Any) -> None:
    fleet.office.answers["image/timestamp.json"] = lambda _: [no(404)]
    assert await fleet.refused() == "metadata_missing"
    await fleet.start_truck()
    fleet.office.manifest_answers = [no(503)]
    async with sending(fleet):
        await until(lambda: len(fleet.office.manifests) == 2 and fleet.state.state.unsent is None)
        fleet.manifests.update_ended()
        await until(lambda: len(fleet.office.manifests) == 3 and fleet.state.state.unsent is None)
    told = [[one.text for one in fleet.judge(raw).alarms] for raw in fleet.office.manifests[1:]]
    assert told == [["metadata_missing"], []]


async def test_an_alarm_makes_a_manifest_at_once_and_then_once_an_hour(fleet: Any) -> None:
    async with sending(fleet):
        await until(lambda: len(fleet.office.manifests) == 1)
        for _ in range(5):
            await fleet.manifests.alarm("metadata_expired")
        await until(lambda: len(fleet.office.manifests) == 2 and fleet.state.state.unsent is None)
        await fleet.manifests.alarm("metadata_expired")
        assert fleet.state.state.alarms == ()
        fleet.boot += 3601
        await fleet.manifests.alarm("metadata_expired")
        await until(lambda: len(fleet.office.manifests) == 3)


async def test_a_newer_manifest_carries_the_alarms_of_the_unsent(fleet: Any) -> None:
    await fleet.manifests.alarm("one")
    first = await fleet.manifests.make()
    await fleet.manifests.alarm("two")
    second = await fleet.manifests.make()
    # The first came to the office all the same, late: the second is still to be sent, with both.
    await fleet.state.accepted(first.decode())
    assert fleet.state.state.unsent == second.decode()
    assert {one.text for one in fleet.judge(second).alarms} == {"one", "two"}
    await fleet.state.accepted(second.decode())
    assert (fleet.state.state.unsent, fleet.state.state.alarms) == (None, ())


async def test_an_alarm_that_comes_while_a_manifest_is_under_way_is_not_lost(fleet: Any) -> None:
    sent = await fleet.manifests.make()
    await fleet.manifests.alarm("late")
    await fleet.state.accepted(sent.decode())
    assert fleet.state.state.alarms == ("late",)


async def test_alarms_are_bounded(fleet: Any) -> None:
    for n in range(3 * MOST_ALARMS):
        await fleet.manifests.alarm(f"alarm-{n}")
    verdict = fleet.judge(await fleet.manifests.make())
    assert len(verdict.alarms) == MOST_ALARMS
    await fleet.start_truck()
    assert len(fleet.state.state.alarms) == MOST_ALARMS


async def test_all_at_once_lose_nothing(fleet: Any) -> None:
    await asyncio.gather(
        *(fleet.manifests.alarm(f"alarm-{n}") for n in range(10)),
        *(fleet.manifests.make() for _ in range(5)),
    )
    await fleet.start_truck()
    assert fleet.state.state.seq == 5
    assert set(fleet.state.state.alarms) == {f"alarm-{n}" for n in range(10)}


@pytest.mark.parametrize("spoil", ["cut", "flip", "gone"])
async def test_a_lost_state_is_a_new_store(fleet: Any, spoil: str) -> None:
    fleet.judge(await fleet.manifests.make())
    path = fleet.folder / "manifest.json"
    raw = bytearray(path.read_bytes())
    raw[80] ^= 1
    match spoil:
        case "cut":
            path.write_bytes(raw[:50])
        case "flip":
            path.write_bytes(raw)
        case _:
            path.unlink()
    await fleet.start_truck()
    verdict = fleet.judge(await fleet.manifests.make())
    assert verdict.report is not None
    assert [one.text for one in verdict.alarms] == ([] if spoil == "gone" else [STATE_LOST])


async def test_an_old_state_that_came_back_begins_a_new_store(fleet: Any) -> None:
    await fleet.manifests.make()
    path = fleet.folder / "manifest.json"
    old = path.read_bytes()
    for _ in range(3):
        fleet.judge(await fleet.manifests.make())
    path.write_bytes(old)
    await fleet.start_truck()
    fleet.office.manifest_answers = [no(422, b'{"code": "manifest_replayed"}')]
    async with sending(fleet):
        await until(lambda: len(fleet.office.manifests) == 2 and fleet.state.state.unsent is None)
    assert fleet.judge(fleet.office.manifests[0]).alarms[0].alarm is Alarm.REPLAY
    verdict = fleet.judge(fleet.office.manifests[1])
    assert verdict.report is not None
    assert [one.text for one in verdict.alarms] == [STATE_LOST]


async def test_a_full_disk_sends_nothing_that_is_not_written(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("edge_agent.trust.manifest_state._write", full)
        with pytest.raises(StoreFailed):
            await fleet.manifests.make()
        await fleet.manifests.alarm("lost")
        async with sending(fleet):
            await until(lambda: "can't be written" in (fleet.manifests.last_error or ""))
        assert fleet.office.manifests == []
    async with sending(fleet):
        await until(lambda: len(fleet.office.manifests) == 1)


async def test_an_office_that_is_away_or_answers_without_an_end(fleet: Any) -> None:
    fleet.office.manifest_answers = [b"HTTP/1.1 500 X\r\nconnection: close\r\n\r\n"]
    fleet.office.endless = b"x" * 4096
    async with sending(fleet):
        await until(lambda: "500" in (fleet.manifests.last_error or ""))
    fleet.office.endless = None
    await fleet.office.stop()
    async with sending(fleet):
        await until(lambda: "500" not in (fleet.manifests.last_error or "500"))
    await fleet.office.start()


# --- the key ---------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_is_ours_alone(tmp_path: Path) -> None:
    made = load_or_make_key(tmp_path)
    assert (tmp_path / PRIVATE).stat().st_mode & 0o077 == 0
    assert load_or_make_key(tmp_path).public_key == made.public_key
    assert load_public((tmp_path / PUBLIC).read_bytes()).keyid == made.public_key.keyid


@pytest.mark.parametrize("spoil", ["open to all", "cut", "huge"])
def test_a_key_that_is_not_ours_to_use(tmp_path: Path, spoil: str) -> None:
    load_or_make_key(tmp_path)
    path = tmp_path / PRIVATE
    match spoil:
        case "open to all":
            path.chmod(0o644)
        case "cut":
            path.write_bytes(path.read_bytes()[:40])
        case _:
            path.write_bytes(b"x" * 100_000)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_or_make_key(tmp_path)
    assert path.read_bytes() == before


def test_the_state_is_json_that_an_older_agent_reads() -> None:
    """Unknown fields are passed over, so that yesterday's agent can return."""
    raw = msgspec.json.encode({"v": 1, "store_id": "a", "seq": 3, "later": [1]})
    assert msgspec.json.decode(raw, type=State).seq == 3
