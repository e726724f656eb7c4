"""`/api/v1/deltas` over HTTP: what is kept was tried, leads to an image that may be had, and goes with it."""

from __future__ import annotations

import asyncio
import hashlib
import lzma
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from control_plane.db import Database
from control_plane.firmware import deltas
from control_plane.firmware.deltas import DeltaService
from control_plane.storage.folder import FolderFiles
from shared.delta import FILTERS, HEADER, MAGIC, make_delta
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key

PRIVATE, _ = new_key()
OLD = random.Random(11).randbytes(30_000)
NEW = OLD[:500] + b"new code" * 9 + OLD[500:]
OTHER = OLD[:900] + b"other" * 5 + OLD[900:]
DELTA = make_delta(OLD, NEW)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def publish(operator: httpx.AsyncClient, image: bytes, version: str, kind: str = "brakes") -> str:
    spec = FirmwareSpec(
        kind=kind,
        hardware=("b",),
        version=version,
        release_counter=1,
        length=len(image),
        sha256=sha(image),
    )
    document = make_document(spec, load_signer(PRIVATE), datetime.now(UTC) + timedelta(days=30))
    answer = await operator.post("/api/v1/firmwares", files={"document": document, "image": image})
    assert answer.status_code == 201, answer.text
    firmware_id: str = answer.json()["firmware_id"]
    return firmware_id


async def put(
    operator: httpx.AsyncClient, delta: bytes, base: bytes = OLD, image: bytes = NEW
) -> httpx.Response:
    params = {"base_sha256": sha(base), "sha256": sha(image)}
    return await operator.put("/api/v1/deltas", params=params, content=delta)


async def shown(operator: httpx.AsyncClient, image: bytes = NEW) -> list[dict[str, Any]]:
    answer = await operator.get("/api/v1/deltas", params={"sha256": sha(image)})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def stored(files: FolderFiles) -> set[str]:
    assert list(files.incoming.folder.iterdir()) == []
    return {one.stem for one in files.incoming.folder.parent.iterdir() if one.is_file()}


async def both(operator: httpx.AsyncClient) -> str:
    await publish(operator, OLD, "1.0.0")
    return await publish(operator, NEW, "1.1.0")


async def test_a_delta_is_kept_once_and_served_like_an_image(
    operator: httpx.AsyncClient,
    anyone: httpx.AsyncClient,
    files: FolderFiles,
    unix_time: list[float],
) -> None:
    await both(operator)
    first = await put(operator, DELTA)
    assert first.status_code == 201, first.text
    body = first.json()
    assert {
        name: body[name] for name in ("base_sha256", "sha256", "delta_sha256", "length", "image_length")
    } == {
        "base_sha256": sha(OLD),
        "sha256": sha(NEW),
        "delta_sha256": sha(DELTA),
        "length": len(DELTA),
        "image_length": len(NEW),
    }
    assert (body["format"], body["taken_by"]) == ("quarry-delta-1", "admin")
    again = await put(operator, DELTA)
    assert (again.status_code, again.json()["delta_sha256"]) == (200, sha(DELTA))
    assert [one["delta_sha256"] for one in await shown(operator)] == [sha(DELTA)]
    url = files.url(sha(DELTA), for_s=60)
    whole = await anyone.get(url)
    assert (whole.status_code, whole.content) == (200, DELTA)
    rest = await anyone.get(url, headers={"Range": "bytes=10-", "If-Range": f'"{sha(DELTA)}"'})
    assert (rest.status_code, rest.content) == (206, DELTA[10:])
    unix_time[0] += 61
    late = await anyone.get(url)
    assert (late.status_code, late.json()["code"]) == (403, "url_expired")


async def test_only_operators_give_deltas(operator: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
    await both(operator)
    assert (await put(anyone, DELTA)).status_code == 401
    assert (await anyone.get("/api/v1/deltas", params={"sha256": sha(NEW)})).status_code == 401
    assert await shown(operator) == []


REFUSED: dict[str, tuple[bytes, bytes, bytes, int, str]] = {
    "noise": (random.Random(2).randbytes(2000), OLD, NEW, 422, "bad_delta"),
    "nothing": (b"", OLD, NEW, 422, "bad_delta"),
    "a cut one": (DELTA[:-1], OLD, NEW, 422, "bad_delta"),
    "one of another image": (make_delta(OLD, OTHER), OLD, NEW, 422, "bad_delta"),
    "one of another image of that length": (make_delta(OLD, NEW[:-1] + b"?"), OLD, NEW, 422, "bad_delta"),
    "one from another base": (make_delta(OTHER, NEW), OLD, NEW, 422, "bad_delta"),
    "one that is as long as the image": (random.Random(3).randbytes(len(NEW)), OLD, NEW, 422, "bad_delta"),
    "a base that is not here": (make_delta(OTHER, NEW), OTHER, NEW, 404, "gone"),
    "an image that is not here": (make_delta(OLD, OTHER), OLD, OTHER, 404, "gone"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_makes_not_exactly_that_image_is_not_kept(
    operator: httpx.AsyncClient, files: FolderFiles, name: str
) -> None:
    await both(operator)
    delta, base, image, status, code = REFUSED[name]
    answer = await put(operator, delta, base, image)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert await shown(operator, image) == []
    assert stored(files) == {sha(OLD), sha(NEW)}


async def test_one_that_takes_too_long_to_apply_is_not_kept(
    operator: httpx.AsyncClient, files: FolderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    await both(operator)
    monkeypatch.setattr(deltas, "APPLIED_WITHIN_S", -1.0)
    answer = await put(operator, DELTA)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_delta")
    assert stored(files) == {sha(OLD), sha(NEW)}


async def test_a_longer_body_than_any_delta_is_refused(
    operator: httpx.AsyncClient, files: FolderFiles
) -> None:
    await both(operator)
    answer = await put(operator, bytes(2 * 1024 * 1024))
    assert answer.status_code == 413
    assert stored(files) == {sha(OLD), sha(NEW)}


async def test_another_delta_between_the_same_images_takes_its_place(
    operator: httpx.AsyncClient, files: FolderFiles
) -> None:
    await both(operator)
    assert (await put(operator, make_delta_of_half())).status_code == 201
    assert (await put(operator, DELTA)).status_code == 201
    assert [one["delta_sha256"] for one in await shown(operator)] == [sha(DELTA)]
    assert stored(files) == {sha(OLD), sha(NEW), sha(DELTA)}


def make_delta_of_half() -> bytes:
    """A delta from OLD to NEW that brings the first half of NEW as new bytes."""
    half, gap = len(OLD) // 2, len(NEW) - len(OLD)
    numbers = [leb128(one) for one in (0, half + gap, half << 1, len(OLD) - half, 0, 0)]
    parts = (b"".join(numbers), bytes(len(OLD) - half), NEW[: half + gap])
    streams = [lzma.compress(one, lzma.FORMAT_RAW, filters=FILTERS) for one in parts]
    return HEADER.pack(MAGIC, len(OLD), len(NEW), *map(len, streams)) + b"".join(streams)


def leb128(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + leb128(value >> 7)


async def test_deltas_to_a_withdrawn_firmware_go_and_those_away_from_it_stay(
    operator: httpx.AsyncClient, files: FolderFiles
) -> None:
    bad = await both(operator)
    await publish(operator, OTHER, "1.2.0")
    away = make_delta(NEW, OTHER)
    assert (await put(operator, DELTA)).status_code == 201
    assert (await put(operator, away, NEW, OTHER)).status_code == 201
    gone = await operator.post(f"/api/v1/firmwares/{bad}/withdraw", json={"why": "brakes late"})
    assert gone.status_code == 200
    assert await shown(operator) == []
    assert [one["base_sha256"] for one in await shown(operator, OTHER)] == [sha(NEW)]
    assert stored(files) == {sha(OLD), sha(NEW), sha(OTHER), sha(away)}
    late = await put(operator, DELTA)
    assert (late.status_code, late.json()["code"]) == (409, "withdrawn")
    assert stored(files) == {sha(OLD), sha(NEW), sha(OTHER), sha(away)}


async def test_an_image_that_another_firmware_has_keeps_its_deltas(operator: httpx.AsyncClient) -> None:
    bad = await both(operator)
    await publish(operator, NEW, "1.1.0", kind="hoist")
    assert (await put(operator, DELTA)).status_code == 201
    assert (
        await operator.post(f"/api/v1/firmwares/{bad}/withdraw", json={"why": "for brakes only"})
    ).status_code == 200
    assert len(await shown(operator)) == 1


async def test_a_withdrawal_is_not_kept_waiting_and_leaves_none_behind(
    operator: httpx.AsyncClient, files: FolderFiles
) -> None:
    bad = await both(operator)
    answers = await asyncio.gather(
        *(put(operator, DELTA) for _ in range(4)),
        operator.post(f"/api/v1/firmwares/{bad}/withdraw", json={"why": "now"}),
        *(put(operator, DELTA) for _ in range(4)),
    )
    assert {one.status_code for one in answers} <= {200, 201, 409}
    assert await shown(operator) == []
    assert stored(files) == {sha(OLD), sha(NEW)}


async def test_so_many_deltas_lead_to_an_image_and_no_more(
    operator: httpx.AsyncClient, files: FolderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    await both(operator)
    await publish(operator, OTHER, "1.2.0")
    monkeypatch.setattr(deltas, "MOST_PER_IMAGE", 1)
    assert (await put(operator, DELTA)).status_code == 201
    full = await put(operator, make_delta(OTHER, NEW), OTHER, NEW)
    assert (full.status_code, full.json()["code"]) == (409, "too_many_deltas")
    assert (await put(operator, DELTA)).status_code == 200
    assert stored(files) == {sha(OLD), sha(NEW), sha(OTHER), sha(DELTA)}


async def test_a_delta_that_is_an_image_too_is_not_removed_with_its_row(
    operator: httpx.AsyncClient, files: FolderFiles, database: Database
) -> None:
    bad = await both(operator)
    assert (await put(operator, DELTA)).status_code == 201
    await publish(operator, DELTA, "1.0.0", kind="odd")
    await operator.post(f"/api/v1/firmwares/{bad}/withdraw", json={"why": "brakes late"})
    assert await shown(operator) == []
    assert files.path(sha(DELTA)).exists()


async def test_forgetting_what_nobody_has_does_nothing(database: Database, files: FolderFiles) -> None:
    assert await DeltaService(database, files).forget("0" * 64) == 0
