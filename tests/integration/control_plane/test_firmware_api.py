"""`/api/v1/firmwares` over HTTP: publishing is all or nothing, and what is published never changes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from control_plane import bodies
from control_plane.db import Database
from control_plane.errors import Conflict, NotFound
from control_plane.firmware import api as firmware_api
from control_plane.firmware import upload
from control_plane.firmware.service import FirmwareService
from control_plane.storage.base import StoreUnavailable
from control_plane.storage.folder import FolderFiles
from shared.release import MAX_IMAGE_BYTES, FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import key_ring, load_signer, new_key

IMAGE = bytes(range(256)) * 16
PRIVATE, PUBLIC = new_key()


def _spec(image: bytes = IMAGE, *, version: str = "1.0.0", counter: int = 1) -> FirmwareSpec:
    return FirmwareSpec(
        kind="brake-controller",
        hardware=("rev-b", "rev-c"),
        version=version,
        release_counter=counter,
        length=len(image),
        sha256=hashlib.sha256(image).hexdigest(),
    )


def _document(spec: FirmwareSpec, *, days: int = 365, private: bytes = PRIVATE) -> bytes:
    return make_document(spec, load_signer(private), datetime.now(UTC) + timedelta(days=days))


async def _publish(
    operator: httpx.AsyncClient, document: bytes, image: bytes, notes: str | None = None
) -> httpx.Response:
    return await operator.post(
        "/api/v1/firmwares",
        files={"document": ("d.json", document), "image": ("i.bin", image)},
        data={} if notes is None else {"notes": notes},
    )


def _refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    return body


def _left_over(files: FolderFiles) -> list[str]:
    """Names in the firmware folder, but for the empty folder of uploads."""
    assert list(files.incoming.folder.iterdir()) == []
    return sorted(one.name for one in files.incoming.folder.parent.iterdir() if one.is_file())


async def test_a_firmware_is_published_with_its_file(operator: httpx.AsyncClient, files: FolderFiles) -> None:
    document = _document(_spec())
    answer = await _publish(operator, document, IMAGE, "мягче тормозит\nна спуске")
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert {k: body[k] for k in ("kind", "version", "hardware", "release_counter", "length", "state")} == {
        "kind": "brake-controller",
        "version": "1.0.0",
        "hardware": ["rev-b", "rev-c"],
        "release_counter": 1,
        "length": len(IMAGE),
        "state": "published",
    }
    assert body["notes"] == "мягче тормозит\nна спуске"
    assert body["created_by"] == "admin"
    assert body["document"].encode() == document, "byte for byte: the signature is over these"
    read = await operator.get(answer.headers["location"])
    assert read.json() == body
    assert _left_over(files) == [f"{_spec().sha256}.bin"]
    assert files.path(_spec().sha256).read_bytes() == IMAGE


async def test_the_same_again_is_answered_again_other_bytes_are_a_conflict(
    operator: httpx.AsyncClient, files: FolderFiles
) -> None:
    document = _document(_spec())
    first = await _publish(operator, document, IMAGE)
    again = await _publish(operator, document, IMAGE)
    assert (again.status_code, again.json()) == (200, first.json())
    other = IMAGE[:-1] + b"!"
    _refused(await _publish(operator, _document(_spec(other)), other), 409, "version_exists")
    wider = replace(_spec(), hardware=("rev-a", "rev-b", "rev-c"))
    _refused(await _publish(operator, _document(wider), IMAGE), 409, "version_exists")
    assert _left_over(files) == [f"{_spec().sha256}.bin"], "refused bytes are not kept"
    assert len((await operator.get("/api/v1/firmwares")).json()["items"]) == 1


async def test_a_document_that_was_signed_anew_replaces_the_old_one(operator: httpx.AsyncClient) -> None:
    first = await _publish(operator, _document(_spec(), days=1), IMAGE)
    newer = _document(_spec(), days=900)
    again = await _publish(operator, newer, IMAGE)
    assert again.status_code == 200
    assert again.json() == first.json() | {"document": newer.decode()}


async def test_published_at_once_by_many_there_is_one(operator: httpx.AsyncClient) -> None:
    document = _document(_spec())
    other = IMAGE[:-1] + b"!"
    answers = await asyncio.gather(
        *(_publish(operator, document, IMAGE) for _ in range(3)),
        _publish(operator, _document(_spec(other)), other),
    )
    codes = sorted(one.status_code for one in answers)
    assert codes in ([200, 200, 201, 409], [201, 409, 409, 409])
    assert len((await operator.get("/api/v1/firmwares")).json()["items"]) == 1


async def test_the_same_image_under_two_versions_is_one_file(
    operator: httpx.AsyncClient, files: FolderFiles
) -> None:
    for version in ("1.0.0", "1.0.1"):
        answer = await _publish(operator, _document(_spec(version=version)), IMAGE)
        assert answer.status_code == 201
    assert _left_over(files) == [f"{_spec().sha256}.bin"]


WRONG: dict[str, tuple[Callable[[], tuple[bytes, bytes]], str]] = {
    "one bit flipped": (lambda: (_document(_spec()), b"\x01" + IMAGE[1:]), "wrong_image"),
    "cut off": (lambda: (_document(_spec()), IMAGE[:-1]), "wrong_image"),
    "one byte longer": (lambda: (_document(_spec()), IMAGE + b"\x00"), "wrong_image"),
    "document no JSON": (lambda: (b"hello", IMAGE), "bad_document"),
    "document no UTF-8": (lambda: (b"\xff\xfe\x00", IMAGE), "bad_document"),
    "document of nothing": (lambda: (b"{}", IMAGE), "bad_document"),
    "document too deep": (lambda: (b"[" * 30_000, IMAGE), "bad_document"),
    "counter too large": (lambda: (_document(_spec(counter=2**53 + 1)), IMAGE), "bad_document"),
    "counter beyond all bounds": (lambda: (_document(_spec(counter=10**30)), IMAGE), "bad_document"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_does_not_agree_is_refused_and_leaves_nothing(
    operator: httpx.AsyncClient, files: FolderFiles, name: str
) -> None:
    make, code = WRONG[name]
    _refused(await _publish(operator, *make()), 422, code)
    assert _left_over(files) == []
    assert (await operator.get("/api/v1/firmwares")).json()["items"] == []


BOUNDARY = b"--b\r\n"


def _part(name: str, content: bytes) -> bytes:
    return (
        BOUNDARY
        + f'Content-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode()
        + content
        + b"\r\n"
    )


END = b"--b--\r\n"
FORMS: dict[str, tuple[bytes, str, int, str]] = {
    "nothing": (b"", "multipart/form-data; boundary=b", 422, "invalid"),
    "no form": (b"{}", "application/json", 422, "invalid"),
    "no boundary": (END, "multipart/form-data", 422, "invalid"),
    "endless boundary": (END, "multipart/form-data; boundary=" + "b" * 300, 422, "invalid"),
    "other boundary": (_part("image", b"x") + END, "multipart/form-data; boundary=c", 422, "invalid"),
    "no image": (_part("document", b"{}") + END, "multipart/form-data; boundary=b", 422, "invalid"),
    "no document": (_part("image", b"x") + END, "multipart/form-data; boundary=b", 422, "invalid"),
    "empty image": (
        _part("document", b"{}") + _part("image", b"") + END,
        "multipart/form-data; boundary=b",
        422,
        "invalid",
    ),
    "ends in its middle": (
        _part("document", b"{}") + _part("image", b"x" * 100),
        "multipart/form-data; boundary=b",
        422,
        "invalid",
    ),
    "field twice": (
        _part("document", b"{}") + _part("image", b"x") + _part("image", b"y") + END,
        "multipart/form-data; boundary=b",
        422,
        "invalid",
    ),
    "unknown field": (
        _part("document", b"{}") + _part("image", b"x") + _part("path", b"/etc") + END,
        "multipart/form-data; boundary=b",
        422,
        "invalid",
    ),
    "part without a name": (
        BOUNDARY + b"Content-Disposition: form-data\r\n\r\nx\r\n" + END,
        "multipart/form-data; boundary=b",
        422,
        "invalid",
    ),
    "endless header": (
        BOUNDARY + b"X: " + b"y" * 20_000 + b"\r\n\r\n" + END,
        "multipart/form-data; boundary=b",
        422,
        "invalid",
    ),
    "null in notes": (
        _part("document", b"{}") + _part("image", b"x") + _part("notes", b"a\x00b") + END,
        "multipart/form-data; boundary=b",
        422,
        "invalid",
    ),
    "notes no UTF-8": (
        _part("document", b"{}") + _part("image", b"x") + _part("notes", b"\xff") + END,
        "multipart/form-data; boundary=b",
        422,
        "invalid",
    ),
    "endless notes": (
        _part("notes", b"n" * 8001) + END,
        "multipart/form-data; boundary=b",
        413,
        "too_large",
    ),
    "endless document": (
        _part("document", b" " * (64 * 1024 + 1)) + END,
        "multipart/form-data; boundary=b",
        413,
        "too_large",
    ),
}


@pytest.mark.parametrize("name", FORMS)
async def test_a_form_that_is_none_is_refused(
    operator: httpx.AsyncClient, files: FolderFiles, name: str
) -> None:
    content, kind, status, code = FORMS[name]

    async def trickle() -> AsyncIterator[bytes]:
        # In odd pieces, so that every state of the reader meets a break.
        for at in range(0, len(content), 997):
            yield content[at : at + 997]

    for sent in (content, trickle()):
        answer = await operator.post("/api/v1/firmwares", content=sent, headers={"Content-Type": kind})
        _refused(answer, status, code)
    assert _left_over(files) == []


async def test_an_image_that_is_too_large_is_refused_before_it_has_come(
    operator: httpx.AsyncClient, files: FolderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(10**12)}
    _refused(await operator.post("/api/v1/firmwares", content=b"x", headers=announced), 413, "too_large")

    assert upload.BOUNDS["image"] == MAX_IMAGE_BYTES
    monkeypatch.setitem(upload.BOUNDS, "image", 100_000)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield _part("document", b"{}")
        yield BOUNDARY + b'Content-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        while True:
            sent += 10_000
            yield b"x" * 10_000

    answer = await operator.post(
        "/api/v1/firmwares",
        content=endless(),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    _refused(answer, 413, "too_large")
    assert sent <= 120_000, "it stops reading at the first byte too many"
    assert _left_over(files) == []


async def test_an_upload_needs_little_memory(operator: httpx.AsyncClient, files: FolderFiles) -> None:
    piece = bytes(range(256)) * 256
    pieces = 256
    image = hashlib.sha256()
    for _ in range(pieces):
        image.update(piece)
    spec = replace(_spec(), length=len(piece) * pieces, sha256=image.hexdigest())
    assert spec.length > 16_000_000

    async def body() -> AsyncIterator[bytes]:
        yield _part("document", _document(spec))
        yield BOUNDARY + b'Content-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(pieces):
            yield piece
        yield b"\r\n" + END

    tracemalloc.start()
    try:
        answer = await operator.post(
            "/api/v1/firmwares",
            content=body(),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 201, answer.text
    assert peak < 4_000_000
    assert files.path(spec.sha256).stat().st_size == spec.length


async def test_a_full_disk_during_an_upload_is_an_outage(
    operator: httpx.AsyncClient, files: FolderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(upload, "write_all", full)
    _refused(await _publish(operator, _document(_spec()), IMAGE), 503, "store_unavailable")
    assert _left_over(files) == []


async def test_an_upload_that_stalls_is_given_up(
    operator: httpx.AsyncClient, files: FolderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "NEXT_BYTES_WITHIN_S", 0.05)
    released = asyncio.Event()

    async def stalls() -> AsyncIterator[bytes]:
        yield _part("document", b"{}")
        await released.wait()

    answer = await operator.post(
        "/api/v1/firmwares", content=stalls(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert _refused(answer, 422, "invalid")["retryable"] is True
    assert _left_over(files) == []


async def test_with_keys_the_office_refuses_what_they_did_not_sign(
    rooms_app: FastAPI, admin_token: str, database: Database, files: FolderFiles
) -> None:
    app = FastAPI()
    app.exception_handlers = rooms_app.exception_handlers
    app.state.authenticate = rooms_app.state.authenticate
    service = FirmwareService(database, files, keys=key_ring([PUBLIC]))
    app.include_router(firmware_api.make_router(service, files.incoming))
    stranger, _ = new_key()
    tampered = json.loads(_document(_spec()))
    [target] = tampered["signed"]["targets"].values()
    target["custom"]["hardware"] = ["rev-a"]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://x",
        headers={"Authorization": f"Bearer {admin_token}"},
    ) as operator:
        for name, document, code in [
            ("signed by a stranger", _document(_spec(), private=stranger), "unsigned"),
            ("changed after signing", json.dumps(tampered).encode(), "unsigned"),
            ("not signed", json.dumps(tampered | {"signatures": []}).encode(), "unsigned"),
            ("expired", _document(_spec(), days=-1), "expired"),
        ]:
            answer = await _publish(operator, document, IMAGE)
            assert (answer.status_code, answer.json()["code"]) == (422, code), name
        assert _left_over(files) == []
        assert (await _publish(operator, _document(_spec()), IMAGE)).status_code == 201


async def test_a_store_that_fails_publishes_nothing(
    operator: httpx.AsyncClient, files: FolderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise StoreUnavailable("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "put", full)
        _refused(await _publish(operator, _document(_spec()), IMAGE), 503, "store_unavailable")
    assert (await operator.get("/api/v1/firmwares")).json()["items"] == []
    assert (await _publish(operator, _document(_spec()), IMAGE)).status_code == 201


async def test_the_row_comes_after_the_file(
    database: Database, files: FolderFiles, firmwares: FirmwareService, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    seen: list[int] = []
    put = files.put

    async def watched(sha256: str, source: Path) -> None:
        await put(sha256, source)
        seen.append((await database.fetch("SELECT count(*) AS n FROM firmwares"))[0]["n"])

    files.put = watched  # type: ignore[method-assign]
    await firmwares.publish(_document(_spec()), image, notes="", by="admin")
    assert seen == [0]


async def test_a_damaged_file_is_mended_by_publishing_again(
    operator: httpx.AsyncClient, files: FolderFiles
) -> None:
    document = _document(_spec())
    await _publish(operator, document, IMAGE)
    files.path(_spec().sha256).write_bytes(b"rot" + IMAGE[3:])
    assert (await _publish(operator, document, IMAGE)).status_code == 200
    assert files.path(_spec().sha256).read_bytes() == IMAGE


async def test_a_withdrawn_firmware_stays_withdrawn(
    operator: httpx.AsyncClient, firmwares: FirmwareService, database: Database
) -> None:
    document = _document(_spec())
    firmware_id = (await _publish(operator, document, IMAGE)).json()["firmware_id"]
    url = f"/api/v1/firmwares/{firmware_id}"
    async with database.transaction() as connection:
        found = await firmwares.installable(connection, kind="brake-controller", version="1.0.0")
        assert found.spec == _spec()
        assert await firmwares.of_ids(connection, [firmware_id, "nope"]) == {firmware_id: found}
        with pytest.raises(NotFound):
            await firmwares.installable(connection, kind="brake-controller", version="2.0.0")

    first = await operator.post(f"{url}/withdraw", json={"why": "brakes late"})
    assert first.status_code == 200
    assert (first.json()["state"], first.json()["withdrawn_why"]) == ("withdrawn", "brakes late")
    again = await operator.post(f"{url}/withdraw", json={"why": "another reason"})
    assert again.json() == first.json()
    _refused(await _publish(operator, document, IMAGE), 409, "withdrawn")
    async with database.transaction() as connection:
        with pytest.raises(Conflict) as error:
            await firmwares.installable(connection, kind="brake-controller", version="1.0.0")
        assert error.value.code == "withdrawn"
        assert (await firmwares.of_ids(connection, [firmware_id]))[firmware_id].withdrawn


async def test_a_withdrawal_waits_for_the_job_that_relies_on_the_firmware(
    operator: httpx.AsyncClient, firmwares: FirmwareService, database: Database
) -> None:
    firmware_id = (await _publish(operator, _document(_spec()), IMAGE)).json()["firmware_id"]
    async with database.transaction() as connection:
        await firmwares.installable(connection, kind="brake-controller", version="1.0.0")
        withdrawal = asyncio.create_task(firmwares.withdraw(firmware_id, why="x", by="admin"))
        async with asyncio.timeout(10):
            while not (
                await database.fetch(
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND datname = current_database()"
                )
            ):
                assert not withdrawal.done()
    assert (await withdrawal).withdrawn


async def test_lists_are_paged_and_filtered(operator: httpx.AsyncClient) -> None:
    for number in range(5):
        answer = await _publish(operator, _document(_spec(version=f"1.0.{number}")), IMAGE)
        assert answer.status_code == 201
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": "2", "kind": "brake-controller"} | ({"cursor": cursor} if cursor else {})
        page = (await operator.get("/api/v1/firmwares", params=query)).json()
        assert all("document" not in one for one in page["items"])
        seen += [one["version"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"1.0.{number}" for number in (4, 3, 2, 1, 0)]
    assert (await operator.get("/api/v1/firmwares", params={"kind": "other"})).json()["items"] == []


async def test_wrong_input_is_refused(operator: httpx.AsyncClient) -> None:
    firmware_id = (await _publish(operator, _document(_spec()), IMAGE)).json()["firmware_id"]
    for query in (
        {"limit": "0"},
        {"limit": "9" * 30},
        {"cursor": "x"},
        {"cursor": "WyJhIl0"},
        {"cursor": "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwiYSJd"},
        {"kind": "a b"},
        {"kind": "a\x00"},
    ):
        _refused(await operator.get("/api/v1/firmwares", params=query), 422, "invalid")
    bodies: list[Any] = [{}, {"why": ""}, {"why": "a\x00"}, {"why": "x" * 2001}, {"why": 5}, [], None]
    for body in (*bodies, {"why": "x", "force": True}):
        answer = await operator.post(f"/api/v1/firmwares/{firmware_id}/withdraw", json=body)
        _refused(answer, 422, "invalid")
    _refused(await operator.get("/api/v1/firmwares/none"), 404, "unknown_firmware")
    _refused(
        await operator.post("/api/v1/firmwares/none/withdraw", json={"why": "x"}), 404, "unknown_firmware"
    )
    _refused(await operator.get("/api/v1/firmwares/a%00"), 422, "invalid")
    _refused(await operator.get("/api/v1/firmwares/" + "x" * 65), 422, "invalid")
    assert (await operator.get(f"/api/v1/firmwares/{firmware_id}")).json()["state"] == "published"
