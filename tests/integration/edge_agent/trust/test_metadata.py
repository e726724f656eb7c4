"""The attack table where I/O matters, on a real socket: nothing accepted, the store whole, alarms by name."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edge_agent.errors import StoreFailed
from edge_agent.trust import metadata as metadata_module
from edge_agent.trust.metadata import CUTS_BEFORE_ALARM, SelectionChanged
from edge_agent.trust.metadata_source import FetchLimits
from shared.trust.uptane.errors import Expired, MetadataRefused, StoreUnreadable
from shared.trust.uptane.store import TrustedStore
from shared.trust.uptane.time_policy import TimePolicy
from sim.uptane_attacker import Attacker
from sim.uptane_world import BUILT_AT

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def test_an_honest_office_is_believed_and_the_disk_knows_it(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    assert done.outcome.refused is None
    assert done.outcome.selection.release.version == "1.1.0"
    assert TrustedStore.load(fleet.on_disk()) == fleet.keeper.store == done.outcome.store
    assert fleet.keeper.store.director.timestamp > 0
    assert fleet.time.now() == fleet.wall
    assert await fleet.alarms() == set()
    assert all(path.stat().st_mode & 0o077 == 0 for path in fleet.folder.rglob("*"))
    # The floor: another process, a clock in 1970.
    fleet.wall = EPOCH
    await fleet.start_truck()
    assert fleet.time.now() == fleet.world.now


async def test_what_is_listed_is_not_downloaded_twice(fleet: Any) -> None:
    assert await fleet.refused() is None
    fleet.office.asked.clear()
    await fleet.start_truck()
    assert await fleet.refused() is None
    asked = {name for name in fleet.office.asked if not name.endswith("root.json")}
    assert asked == {"director/timestamp.json", "image/timestamp.json"}


async def test_a_spoiled_cache_is_only_a_download(fleet: Any) -> None:
    assert await fleet.refused() is None
    for path in (fleet.folder / "files").iterdir():
        path.write_bytes(b"spoiled" + path.read_bytes())
    assert await fleet.refused() is None
    done = await fleet.metadata.refresh()
    assert await fleet.metadata.verify_again(done.selection_id, begun=False) == done.outcome.selection


# --- the attack table ------------------------------------------------------------------------------


def _endless(fleet: Any) -> None:
    def answer(body: bytes) -> list[bytes]:
        return [b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", body]

    fleet.office.answers["image/timestamp.json"] = answer
    fleet.office.endless = b" " * 4096


def _longer_than_listed(fleet: Any) -> None:
    name = max(name for where, name in fleet.office.served if where == "image" and "snapshot" in name)
    fleet.office.served["image", name] += b" "


def _truncated(fleet: Any) -> None:
    def answer(body: bytes) -> list[bytes]:
        return [b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", body[:-1]]

    fleet.office.answers["director/timestamp.json"] = answer


def _missing(name: str) -> Callable[[Any], None]:
    def set_up(fleet: Any) -> None:
        found = [key for key in fleet.office.served if key[1].endswith(name)]
        for key in found:
            del fleet.office.served[key]
        assert found

    return set_up


def _frozen(fleet: Any) -> None:
    """Everything as it was, for ever: the truck's clock goes on."""
    fleet.wall = fleet.world.now + timedelta(days=3)


def _fast_forward(fleet: Any) -> None:
    thief = Attacker(fleet.world, ["image/snapshot/1"])
    thief.relist("image", steps=100)
    fleet.office.served.update(thief.served)


def _silent(fleet: Any) -> None:
    fleet.office.answers["image/timestamp.json"] = lambda body: [
        f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode(),
        body[:10],
    ]
    fleet.office.silent = True
    fleet.metadata._office = _impatient(fleet, idle_s=0.05)


def _impatient(fleet: Any, **limits: float) -> Any:
    return dataclasses.replace(fleet.source, limits=FetchLimits(**limits))


def _trickle(fleet: Any) -> None:
    """A byte now and then keeps the time-out between two bytes quiet; the whole has one, too."""

    def answer(body: bytes) -> list[bytes]:
        return [b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", *(bytes([b]) for b in body[:3])]

    fleet.office.answers["image/timestamp.json"] = answer
    fleet.office.silent = True
    fleet.metadata._office = _impatient(fleet, idle_s=60.0, file_s=0.05, least_bytes_per_s=1e9)


ATTACKS: dict[str, tuple[Callable[[Any], None], str]] = {
    "endless data": (_endless, "metadata_too_large"),
    "a byte more than is listed": (_longer_than_listed, "metadata_not_as_listed"),
    "slow retrieval: silence": (_silent, "slow_retrieval"),
    "slow retrieval: a trickle": (_trickle, "slow_retrieval"),
    "truncated": (_truncated, "metadata_unreadable"),
    "no timestamp": (_missing("timestamp.json"), "metadata_missing"),
    "no snapshot": (_missing(".snapshot.json"), "metadata_missing"),
    "no targets": (_missing(".targets.json"), "metadata_missing"),
    "no delegated role": (_missing(".brake-controller.json"), "metadata_missing"),
    "freeze": (_frozen, "metadata_expired"),
    "snapshot key stolen, fast forward": (_fast_forward, "metadata_unsigned"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_changes_nothing_and_has_a_name(fleet: Any, attack: str) -> None:
    set_up, code = ATTACKS[attack]
    before = fleet.keeper.store
    honest = fleet.world.verify(before).store
    set_up(fleet)
    assert await fleet.refused() == code
    # A repository that verified whole may be trusted by now; none is half of it.
    assert fleet.keeper.store.director in (before.director, honest.director)
    assert fleet.keeper.store.image in (before.image, honest.image)
    assert await fleet.alarms() == {code}
    assert fleet.office.sent < 2 * 1024 * 1024
    # The honest office is back: nothing is left of it but the alarm.
    fresh = fleet.world
    fleet.office.answers.clear()
    fleet.office.endless, fleet.office.silent = None, False
    fleet.metadata._office = fleet.source
    fleet.wall = fresh.now
    fresh.served.update({("image", name): raw for name, raw in fresh.image.published.items()})
    fresh.direct(fresh.release("1.2.0", 3))
    fleet.office.served.update(fresh.served)
    assert await fleet.refused() is None


async def test_a_rollback_is_refused_after_a_restart(fleet: Any) -> None:
    old = dict(fleet.office.served)
    await fleet.renew("1.2.0", 3)
    assert await fleet.refused() is None
    trusted = fleet.keeper.store
    fleet.office.served.clear()
    fleet.office.served.update(old)
    await fleet.start_truck()
    assert await fleet.refused() == "metadata_rolled_back"
    assert fleet.keeper.store == trusted
    assert await fleet.alarms() == {"metadata_rolled_back"}


async def test_a_release_counter_that_an_ecu_ran_is_not_gone_below(fleet: Any) -> None:
    await fleet.keeper.ran("SN-0", 9)
    await fleet.start_truck()
    assert await fleet.refused() == "release_counter_rolled_back"
    assert await fleet.alarms() == {"release_counter_rolled_back"}


async def test_a_connection_cut_at_any_byte_leaves_old_or_new(fleet: Any, tmp_path: Path) -> None:
    """Cut after n bytes of a whole run, for n all over it: refused, and the next run is whole."""
    assert await fleet.refused() is None
    fleet.office.sent = 0
    fleet.later(hours=1)
    await fleet.renew("1.2.0", 3)
    keep = (fleet.folder / "store.json").read_bytes()
    old = fleet.keeper.store
    assert await fleet.refused() is None
    total, new = fleet.office.sent, fleet.keeper.store
    for cut in range(1, total, max(1, total // 12)):
        for path in fleet.folder.glob("files/*"):
            path.unlink()
        (fleet.folder / "store.json").write_bytes(keep)
        await fleet.start_truck()
        fleet.office.sent, fleet.office.cut_after = 0, cut
        code = await fleet.refused()
        assert code in {"metadata_link_cut", "office_unreached"}, (cut, code)
        seen = fleet.keeper.store
        assert seen.director in (old.director, new.director)
        assert seen.image in (old.image, new.image)
        fleet.office.cut_after = None
        assert await fleet.refused() is None
        assert fleet.keeper.store == new


async def test_a_link_that_is_always_cut_is_an_alarm_and_one_that_breaks_is_none(fleet: Any) -> None:
    fleet.office.cut_after = 100
    for n in range(CUTS_BEFORE_ALARM):
        assert await fleet.alarms() == set(), n
        fleet.office.sent = 0
        assert await fleet.refused() == "metadata_link_cut"
    assert await fleet.alarms() == {"metadata_link_cut"}


@pytest.mark.parametrize("code", [301, 401, 403, 429, 500, 503])
async def test_an_answer_that_is_no_offices_is_no_missing_file(fleet: Any, code: int) -> None:
    """A 503 on the probe for the next root must not be taken for its end."""
    fleet.office.answers["director/2.root.json"] = lambda _: [
        f"HTTP/1.1 {code} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
    ]
    assert await fleet.refused() == "office_unreached"
    assert await fleet.alarms() == set()


async def test_an_office_that_is_away_is_no_alarm(fleet: Any) -> None:
    await fleet.office.stop()
    assert await fleet.refused() == "office_unreached"
    assert await fleet.alarms() == set()
    await fleet.office.start()


async def test_a_rotation_that_was_seen_is_kept_although_the_run_was_cut(fleet: Any) -> None:
    fleet.world.rotate("image/timestamp")
    fleet.world.publish()
    fleet.office.answers["image/timestamp.json"] = lambda _: [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"]
    assert await fleet.refused() == "metadata_link_cut"
    assert fleet.keeper.store.image.read_root().signed.version == 2
    await fleet.start_truck()
    assert fleet.keeper.store.image.read_root().signed.version == 2


async def test_all_of_a_run_has_its_time(fleet: Any) -> None:
    fleet.run_s = 0.0
    await fleet.start_truck()
    assert await fleet.refused() == "slow_retrieval"


async def test_all_of_a_run_has_its_bytes(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_module, "MOST_RUN_BYTES", 2000)
    assert await fleet.refused() == "metadata_too_large"


# --- time ------------------------------------------------------------------------------------------


async def test_1970_is_lifted_by_what_was_signed(fleet: Any) -> None:
    fleet.wall = EPOCH
    await fleet.start_truck()
    assert await fleet.refused() is None
    assert fleet.time.now() >= fleet.world.now


async def test_what_expired_while_offline_is_renewed_first(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    fleet.later(weeks=9)
    with pytest.raises(Expired):
        await fleet.metadata.verify_again(done.selection_id, begun=False)
    # An ECU that is erased already is finished all the same.
    again = await fleet.metadata.verify_again(done.selection_id, begun=True)
    assert again.release == done.outcome.selection.release
    await fleet.renew("1.2.0", 3)
    renewed = await fleet.metadata.refresh()
    assert renewed.outcome.selection.release.version == "1.2.0"
    assert await fleet.metadata.verify_again(renewed.selection_id, begun=False)
    assert await fleet.alarms() == set()


async def test_a_month_ahead_is_put_right_by_a_token(fleet: Any) -> None:
    fleet.with_time = True
    fleet.wall += timedelta(days=31)
    fleet.says_time(fleet.world.now)
    await fleet.start_truck()
    assert await fleet.refused() is None
    assert fleet.time.now() == fleet.world.now
    # And it goes on by the clock that nobody sets.
    fleet.boot += 60.0
    assert fleet.time.now() == fleet.world.now + timedelta(seconds=60)
    assert TrustedStore.load(fleet.on_disk()).times["director/time"] == fleet.world.now
    assert await fleet.alarms() == set()


async def test_a_policy_that_asks_for_a_token_gets_one(fleet: Any) -> None:
    fleet.policy = TimePolicy(built_at=BUILT_AT, token_when_behind=True)
    fleet.wall = EPOCH
    await fleet.start_truck()
    assert await fleet.refused() == "time_not_proved"
    fleet.with_time = True
    fleet.says_time(fleet.world.now)
    await fleet.start_truck()
    assert await fleet.refused() is None


async def test_a_token_of_a_stranger_proves_nothing(fleet: Any) -> None:
    fleet.with_time = True
    fleet.wall += timedelta(days=31)
    fleet.says_time(fleet.world.now, fleet.world.signers("image/timestamp"))
    await fleet.start_truck()
    assert await fleet.refused() == "metadata_expired"
    assert fleet.time.proved is None
    assert await fleet.alarms() == {"metadata_unsigned", "metadata_expired"}


@pytest.mark.parametrize("raw", [b"", b"{}", b"x" * 100_000])
async def test_an_answer_that_is_no_token(fleet: Any, raw: bytes) -> None:
    fleet.with_time = True
    fleet.wall += timedelta(days=31)
    fleet.office.time = lambda _: raw
    await fleet.start_truck()
    assert await fleet.refused() == "metadata_expired"
    assert await fleet.alarms() == {"time_token_refused", "metadata_expired"}


async def test_a_token_that_is_replayed(fleet: Any) -> None:
    fleet.with_time = True
    fleet.says_time(fleet.world.now)
    old = fleet.office.time("ab" * 24)
    fleet.office.time = lambda _: old
    fleet.wall += timedelta(days=31)
    await fleet.start_truck()
    assert await fleet.refused() == "metadata_expired"
    assert "time_token_refused" in await fleet.alarms()


async def test_nobody_answers_the_question(fleet: Any) -> None:
    fleet.with_time = True
    fleet.wall += timedelta(days=31)
    await fleet.start_truck()
    fleet.metadata._asker._url = "http://127.0.0.1:9/time"
    assert await fleet.refused() == "metadata_expired"


# --- the disk --------------------------------------------------------------------------------------


async def test_a_damaged_store_trusts_nothing_and_says_what_to_do(fleet: Any) -> None:
    assert await fleet.refused() is None
    path = fleet.folder / "store.json"
    path.write_bytes(path.read_bytes()[:-2])
    await fleet.start_truck()
    with pytest.raises(StoreUnreadable) as caught:
        await fleet.metadata.refresh()
    assert str(fleet.folder) in caught.value.advice
    assert fleet.office.asked
    assert await fleet.alarms() == {"trusted_store_unreadable"}


async def test_a_begun_flash_is_finished_although_the_store_is_damaged(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    (fleet.folder / "store.json").unlink()
    await fleet.start_truck()
    with pytest.raises(StoreUnreadable):
        await fleet.metadata.verify_again(done.selection_id, begun=False)
    again = await fleet.metadata.verify_again(done.selection_id, begun=True)
    assert again.release == done.outcome.selection.release


@pytest.mark.parametrize("call", ["fsync", "replace"])
async def test_a_full_disk_trusts_nothing_new(fleet: Any, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = fleet.on_disk()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, full)
        with pytest.raises(StoreFailed):
            await fleet.metadata.refresh()
    assert fleet.on_disk() == before
    assert TrustedStore.load(before) == fleet.keeper.store
    assert fleet.keeper.store.director.timestamp == 0
    assert await fleet.refused() is None


async def test_a_selection_that_can_not_be_kept_is_none(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("edge_agent.trust.trust_files.write_whole", full)
        with pytest.raises(StoreFailed):
            await fleet.metadata.refresh()
    assert await fleet.refused() is None


# --- once more, right before the flash -------------------------------------------------------------


async def test_verified_again_from_the_disk_without_a_network(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    store = fleet.keeper.store
    await fleet.office.stop()
    await fleet.start_truck()
    assert await fleet.metadata.verify_again(done.selection_id, begun=False) == done.outcome.selection
    assert fleet.keeper.store == store
    await fleet.office.start()


async def test_a_selection_whose_key_was_rotated_away_begins_nothing(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    fleet.world.rotate("image/timestamp")
    fleet.world.publish()
    fleet.office.answers["image/timestamp.json"] = lambda _: [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"]
    assert await fleet.refused() == "metadata_link_cut"
    with pytest.raises(MetadataRefused) as caught:
        await fleet.metadata.verify_again(done.selection_id, begun=False)
    assert caught.value.code == "metadata_unsigned"
    again = await fleet.metadata.verify_again(done.selection_id, begun=True)
    assert again.release.version == "1.1.0"


async def test_a_selection_that_was_replaced_begins_nothing(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    await fleet.renew("1.2.0", 3)
    assert await fleet.refused() is None
    with pytest.raises(MetadataRefused) as caught:
        await fleet.metadata.verify_again(done.selection_id, begun=False)
    assert caught.value.code == "metadata_rolled_back"


async def test_grace_is_for_dates_alone(fleet: Any) -> None:
    fleet.policy = TimePolicy(built_at=BUILT_AT, grace=timedelta(days=30))
    await fleet.start_truck()
    done = await fleet.metadata.refresh()
    fleet.later(days=20)
    assert await fleet.metadata.verify_again(done.selection_id, begun=False)
    fleet.later(days=20)
    with pytest.raises(Expired):
        await fleet.metadata.verify_again(done.selection_id, begun=False)
    fleet.later(days=-20)
    await fleet.keeper.ran("SN-0", 9)
    with pytest.raises(MetadataRefused) as caught:
        await fleet.metadata.verify_again(done.selection_id, begun=False)
    assert caught.value.code == "release_counter_rolled_back"


async def test_a_spoiled_kept_file_begins_nothing(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    for path in (fleet.folder / "files").iterdir():
        path.write_bytes(path.read_bytes()[::-1])
    for begun in (False, True):
        with pytest.raises(MetadataRefused) as caught:
            await fleet.metadata.verify_again(done.selection_id, begun=begun)
        assert caught.value.code == "metadata_missing"


async def test_a_spoiled_kept_selection_begins_nothing(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    path = fleet.folder / "selected" / f"{done.selection_id}.json"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreUnreadable):
        await fleet.metadata.verify_again(done.selection_id, begun=True)


@pytest.mark.parametrize("name", ["", "../store", "0" * 32, "0" * 33])
async def test_a_selection_that_is_not_there(fleet: Any, name: str) -> None:
    with pytest.raises(StoreUnreadable):
        await fleet.metadata.verify_again(name, begun=False)


async def test_an_ecu_that_was_changed_since_begins_nothing(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    other = dataclasses.replace(fleet.vehicle.ecus[0], hardware="H9")
    fleet.vehicle = dataclasses.replace(fleet.vehicle, ecus=(other, *fleet.vehicle.ecus[1:]))
    with pytest.raises(MetadataRefused) as caught:
        await fleet.metadata.verify_again(done.selection_id, begun=False)
    assert caught.value.code == "wrong_hardware"


async def test_a_swapped_kept_selection_is_not_what_its_files_select(fleet: Any) -> None:
    done = await fleet.metadata.refresh()
    kept = fleet.files.load(done.selection_id)
    await fleet.renew("1.2.0", 3)
    newer = await fleet.metadata.refresh()
    files = fleet.files.load(newer.selection_id).files
    fleet.files.keep(dataclasses.replace(kept, files=files))
    with pytest.raises(SelectionChanged):
        await fleet.metadata.verify_again(done.selection_id, begun=False)


async def test_no_more_is_kept_than_is_needed(fleet: Any) -> None:
    first = await fleet.metadata.refresh()
    fleet.metadata._needed = lambda: [first.selection_id]
    for n in range(12):
        await fleet.renew(f"1.2.{n}", 3 + n)
        assert await fleet.refused() is None
    selected = sorted(path.stem for path in (fleet.folder / "selected").iterdir())
    assert first.selection_id in selected
    assert len(selected) <= 10
    assert await fleet.metadata.verify_again(first.selection_id, begun=True)
    fleet.metadata._needed = tuple
    for n in range(3):
        await fleet.renew(f"1.3.{n}", 30 + n)
        assert await fleet.refused() is None
    named = set()
    for path in (fleet.folder / "selected").iterdir():
        named |= set(fleet.files.load(path.stem).files.values())
    assert {path.name for path in (fleet.folder / "files").iterdir()} == named


# --- a USB stick -----------------------------------------------------------------------------------


def stick(fleet: Any, folder: Path) -> Path:
    """A bundle: everything that is served, and the offline selection."""
    for (repository, name), raw in fleet.office.served.items():
        path = folder / repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return folder


async def test_a_stick_selects_without_a_network(fleet: Any, tmp_path: Path) -> None:
    fleet.world.direct_offline(fleet.world.release("1.2.0", 3))
    folder = stick(fleet, tmp_path / "usb")
    fleet.later(weeks=2)
    done = await fleet.metadata.refresh_from(folder)
    assert done.outcome.refused is None
    assert done.outcome.selection.release.version == "1.2.0"
    again = await fleet.metadata.verify_again(done.selection_id, begun=False)
    assert again == done.outcome.selection
    assert fleet.office.asked == []
    assert fleet.keeper.store.offline == 1


def _escaping_link(folder: Path) -> None:
    path = folder / "image" / "timestamp.json"
    outside = folder.parent / "outside.json"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def _pipe(folder: Path) -> None:
    path = folder / "image" / "timestamp.json"
    path.unlink()
    os.mkfifo(path)


def _huge(folder: Path) -> None:
    (folder / "image" / "timestamp.json").write_bytes(b" " * 1_000_000)


STICKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a link out of the stick": (_escaping_link, "metadata_unreadable"),
    "a pipe": (_pipe, "metadata_unreadable"),
    "no selection for this truck": (
        lambda folder: (folder / "director" / "offline" / "truck-7.json").unlink(),
        "metadata_missing",
    ),
    "a file that never ends": (
        _huge,
        "metadata_too_large",
    ),
}


@pytest.mark.parametrize("case", STICKS)
async def test_a_bad_stick(fleet: Any, tmp_path: Path, case: str) -> None:
    spoil, code = STICKS[case]
    fleet.world.direct_offline(fleet.world.release("1.2.0", 3))
    folder = stick(fleet, tmp_path / "usb")
    spoil(folder)
    done = await fleet.metadata.refresh_from(folder)
    assert done.outcome.refused.code == code
    assert done.selection_id is None
    assert await fleet.alarms() == {code}


async def test_two_runs_at_once_are_one_after_the_other(fleet: Any) -> None:
    first, second = await asyncio.gather(fleet.metadata.refresh(), fleet.metadata.refresh())
    assert first.outcome.selection == second.outcome.selection
