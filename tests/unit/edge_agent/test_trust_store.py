"""The trusted store's file: whole, sealed, never begun anew by itself; and the order of its syncs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from edge_agent.errors import StoreFailed
from edge_agent.trust.trust_config import Roots
from edge_agent.trust.trust_store import MARK, STORE, TrustKeeper, sealed, unsealed
from shared.trust.uptane.errors import MetadataRefused, StoreUnreadable
from sim.uptane_world import BUILT_AT, NOW, UptaneWorld


@pytest.fixture(scope="module")
def roots() -> Roots:
    world = UptaneWorld()
    return Roots(director=world.director.published["1.root.json"], image=world.image.published["1.root.json"])


async def test_a_new_truck_trusts_its_two_roots(tmp_path: Path, roots: Roots) -> None:
    folder = tmp_path / "trust"
    keeper = await TrustKeeper.open(folder, roots, ran={"SN-0": 7})
    assert keeper.store.director.root == roots.director.decode()
    assert keeper.store.counters == {"SN-0": 7}
    assert keeper.floor(BUILT_AT) == BUILT_AT
    assert folder.stat().st_mode & 0o077 == 0
    # Later roots in the configuration change nothing: the truck has its own chain.
    again = await TrustKeeper.open(folder, Roots(director=b"x", image=b"y"), ran={"SN-0": 9})
    assert again.store == keeper.store


async def test_roots_that_are_none_provision_nothing(tmp_path: Path, roots: Roots) -> None:
    for bad in (Roots(director=b"{}", image=roots.image), Roots(director=roots.image, image=roots.image)):
        with pytest.raises(MetadataRefused):
            await TrustKeeper.open(tmp_path / "trust", bad)
    assert not (tmp_path / "trust").exists()


async def test_counters_and_times_survive(tmp_path: Path, roots: Roots) -> None:
    keeper = await TrustKeeper.open(tmp_path, roots)
    await keeper.ran("SN-0", 5)
    await keeper.ran("SN-0", 3)
    await keeper.keep(keeper.store.seen_time("director/time", NOW))
    again = await TrustKeeper.open(tmp_path, roots)
    assert again.store == keeper.store
    assert again.store.counters == {"SN-0": 5}
    assert again.floor(BUILT_AT) == NOW


async def test_a_counter_that_rose_during_a_run_stays_risen(tmp_path: Path, roots: Roots) -> None:
    keeper = await TrustKeeper.open(tmp_path, roots)
    run = keeper.store.seen_time("director/time", NOW)
    await keeper.ran("SN-0", 5)
    await keeper.keep(run)
    again = await TrustKeeper.open(tmp_path, roots)
    assert (again.store.counters, again.floor(BUILT_AT)) == ({"SN-0": 5}, NOW)


async def test_all_at_once_lose_nothing(tmp_path: Path, roots: Roots) -> None:
    keeper = await TrustKeeper.open(tmp_path, roots)
    await asyncio.gather(*(keeper.ran(f"SN-{n}", n + 1) for n in range(8)))
    assert (await TrustKeeper.open(tmp_path, roots)).store.counters == {f"SN-{n}": n + 1 for n in range(8)}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b" ",
    "huge": lambda raw: raw + b" " * (1 << 20),
    "no sum": lambda raw: raw[65:],
    "zeros": lambda raw: bytes(len(raw)),
    "sealed, but no store": lambda raw: sealed(b"{}"),
    "sealed, another version": lambda raw: sealed(raw[65:].replace(b'"v":1', b'"v":2')),
    "a counter's bit": lambda raw: raw.replace(b'"SN-0":4', b'"SN-0":0'),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_trusts_nothing_and_says_what_to_do(tmp_path: Path, roots: Roots, damage: str) -> None:
    keeper = await TrustKeeper.open(tmp_path, roots)
    await keeper.ran("SN-0", 4)
    path = tmp_path / STORE
    spoiled = DAMAGE[damage](path.read_bytes())
    assert spoiled != path.read_bytes()
    path.write_bytes(spoiled)
    keeper = await TrustKeeper.open(tmp_path, roots)
    with pytest.raises(StoreUnreadable) as caught:
        _ = keeper.store
    assert str(tmp_path) in caught.value.advice
    with pytest.raises(StoreUnreadable):
        await keeper.ran("SN-0", 9)
    assert keeper.floor(BUILT_AT) == BUILT_AT
    # Nothing is repaired by itself.
    assert path.read_bytes() == spoiled


async def test_a_store_that_is_gone_is_no_new_truck(tmp_path: Path, roots: Roots) -> None:
    await TrustKeeper.open(tmp_path, roots)
    (tmp_path / STORE).unlink()
    keeper = await TrustKeeper.open(tmp_path, roots)
    with pytest.raises(StoreUnreadable, match="is gone"):
        _ = keeper.store
    assert not (tmp_path / STORE).exists()
    # What the advice says: the whole folder removed by hand.
    (tmp_path / MARK).unlink()
    assert (await TrustKeeper.open(tmp_path, roots)).store


async def test_a_store_that_can_not_be_read(tmp_path: Path, roots: Roots) -> None:
    await TrustKeeper.open(tmp_path, roots)
    (tmp_path / STORE).unlink()
    (tmp_path / STORE).mkdir()
    keeper = await TrustKeeper.open(tmp_path, roots)
    with pytest.raises(StoreUnreadable):
        _ = keeper.store


async def test_synced_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut needs; a kill alone never loses a page that was not synced."""
    keeper = await TrustKeeper.open(tmp_path, roots)
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(path: Path, to: Path) -> Path:
        done.append(f"{path.name} becomes {to.name}")
        return replace(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    await keeper.ran("SN-0", 4)
    assert done == [
        f"sync {tmp_path.parent.name}",
        "sync .store.json.part",
        ".store.json.part becomes store.json",
        f"sync {tmp_path.name}",
    ]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
async def test_a_write_that_fails_changes_nothing(
    tmp_path: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    keeper = await TrustKeeper.open(tmp_path, roots)
    before, raw = keeper.store, (tmp_path / STORE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path if call == "replace" else os, call, full)
        with pytest.raises(StoreFailed):
            await keeper.ran("SN-0", 4)
    assert keeper.store == before
    assert (tmp_path / STORE).read_bytes() == raw
    await keeper.ran("SN-0", 4)
    assert (await TrustKeeper.open(tmp_path, roots)).store.counters == {"SN-0": 4}


async def test_a_store_that_would_not_be_read_again_is_not_written(tmp_path: Path, roots: Roots) -> None:
    keeper = await TrustKeeper.open(tmp_path, roots)
    huge = msgspec.structs.replace(keeper.store, counters={f"{n:0200d}": 1 for n in range(4000)})
    with pytest.raises(StoreFailed):
        await keeper.keep(huge)
    assert (await TrustKeeper.open(tmp_path, roots)).store == keeper.store


def test_a_seal_is_whole() -> None:
    assert unsealed(sealed(b"")) == b""
    with pytest.raises(ValueError, match="not those"):
        unsealed(b"")


async def test_the_floor_is_the_newest_of_all(tmp_path: Path, roots: Roots) -> None:
    keeper = await TrustKeeper.open(tmp_path, roots)
    await keeper.keep(keeper.store.seen_time("director/time", NOW))
    await keeper.keep(keeper.store.seen_time("image/timestamp", NOW - timedelta(days=1)))
    assert keeper.floor(BUILT_AT) == NOW
