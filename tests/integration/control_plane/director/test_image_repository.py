"""Taking the image repository in: all or nothing, and never what a truck would refuse."""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from control_plane.director import api
from control_plane.storage.folder import FolderFiles
from shared.trust.uptane.matching import served_name
from shared.trust.uptane.repository_edit import release_target

TRUCK = "truck-7"


def _image_files(yard: Any) -> dict[str, bytes]:
    return {name: raw for (repository, name), raw in yard.world.served.items() if repository == "image"}


def _later(yard: Any, **more: int) -> None:
    yard.world.now = yard.clock[0] = yard.world.now + timedelta(**(more or {"minutes": 1}))


async def _timestamp(yard: Any) -> bytes:
    content: bytes = (await yard.truck.get("/repo/image/timestamp.json")).content
    return content


async def test_it_is_taken_in_once_and_shown(yard: Any) -> None:
    missing = await yard.operator.get("/api/v1/image-repository")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_image_repository")
    release = yard.world.release("1.1.0", 2)
    first = await yard.publish()
    assert first.status_code == 201, first.text
    body = first.json()
    assert (body["root"], body["snapshot"], body["timestamp"]) == (1, 2, 2)
    assert [one["path"] for one in body["releases"]] == [release.target_path]
    again = await yard.publish()
    assert (again.status_code, again.json()) == (200, body)
    assert (await yard.operator.get("/api/v1/image-repository")).json() == body


async def test_images_that_are_here_need_not_be_sent_again(yard: Any) -> None:
    yard.world.release("1.1.0", 2)
    assert (await yard.publish()).status_code == 201
    _later(yard)
    yard.world.release("1.2.0", 3)
    files = _image_files(yard)
    slim = {name: raw for name, raw in files.items() if not name.startswith("targets/") or "1.2.0" in name}
    assert len(slim) < len(files)
    assert (await yard.publish(slim)).status_code == 201


async def test_a_rotation_of_roots_is_followed_and_served(yard: Any) -> None:
    assert (await yard.publish()).status_code == 201
    _later(yard)
    yard.world.rotate("image/timestamp")
    yard.world.publish()
    answer = await yard.publish()
    assert (answer.status_code, answer.json()["root"]) == (201, 2)
    assert (await yard.truck.get("/repo/image/2.root.json")).status_code == 200
    outcome = await yard.verify(yard.world.store())
    assert outcome.refused is None


def _without(*parts: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {n: raw for n, raw in files.items() if not any(part in n for part in parts)}


def _damaged(part: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {n: bytes([raw[0] ^ 1]) + raw[1:] if part in n else raw for n, raw in files.items()}


def _longer(part: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {n: raw + b"!" if part in n else raw for n, raw in files.items()}


BROKEN = {
    "no timestamp": (_without("timestamp.json"), "metadata_missing"),
    "no snapshot": (_without("snapshot.json"), "metadata_missing"),
    "no role of a family": (_without("hoist-controller.json"), "metadata_missing"),
    "a role that is not the listed one": (_damaged("brake-controller.json"), "metadata_not_as_listed"),
    "a timestamp that nobody signed": (
        lambda files: (
            files | {"timestamp.json": files["timestamp.json"].replace(b'"version":2', b'"version":9')}
        ),
        "metadata_unsigned",
    ),
    "no image": (_without("targets/hoist-controller"), "target_missing"),
    "no release document": (_without("targets/releases"), "target_missing"),
    "another image": (_damaged("targets/hoist-controller"), "target_damaged"),
    "a longer image": (_longer("targets/hoist-controller"), "target_damaged"),
    "another release document": (_damaged("targets/releases"), "release_unreadable"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_not_whole_changes_nothing(yard: Any, files: FolderFiles, name: str) -> None:
    assert (await yard.publish()).status_code == 201
    before = await _timestamp(yard)
    _later(yard)
    release = yard.world.release("1.1.0", 2)
    change, code = BROKEN[name]
    answer = await yard.publish(change(_image_files(yard)))
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert await _timestamp(yard) == before
    document = release_target(release)
    url = f"/repo/image/{served_name(document.path, document.hashes['sha256'])}"
    assert (await yard.truck.get(url)).status_code == 404
    assert (await yard.operator.get("/api/v1/image-repository")).json()["releases"] == []
    assert list(files.incoming.folder.iterdir()) == []
    assert (await yard.publish()).status_code == 201


async def test_an_older_repository_is_refused(yard: Any) -> None:
    yard.world.release("1.1.0", 2)
    old = _image_files(yard)
    _later(yard)
    yard.world.release("1.2.0", 3)
    assert (await yard.publish()).status_code == 201
    answer = await yard.publish(old)
    assert (answer.status_code, answer.json()["code"]) == (422, "metadata_rolled_back")


async def test_a_bundle_mixed_of_two_publications_is_refused(yard: Any) -> None:
    old = _image_files(yard)
    assert (await yard.publish()).status_code == 201
    _later(yard)
    yard.world.release("1.1.0", 2)
    new = _image_files(yard)
    # The newest timestamp over what lies in the old folder.
    answer = await yard.publish(old | {"timestamp.json": new["timestamp.json"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "metadata_missing")
    # The newest listing over the family's old role under the new name.
    mixed = new | {"2.brake-controller.json": new["1.brake-controller.json"]}
    answer = await yard.publish(mixed)
    assert (answer.status_code, answer.json()["code"]) == (422, "metadata_not_as_listed")


async def test_two_publications_of_one_version_are_a_fork(yard: Any) -> None:
    image = yard.world.image
    yard.world.release("1.1.0", 2)
    assert (await yard.publish()).status_code == 201
    # The same people, from a folder that was restored, publish something else as version 2.
    yard.world.image = image
    yard.world.release("1.1.1", 2)
    answer = await yard.publish()
    assert (answer.status_code, answer.json()["code"]) == (422, "metadata_forked")


async def test_a_repository_of_other_roots_is_refused(yard: Any) -> None:
    other = type(yard.world)()
    files = {name: raw for (repository, name), raw in other.served.items() if repository == "image"}
    answer = await yard.publish(files)
    assert (answer.status_code, answer.json()["code"]) == (422, "metadata_unsigned")


async def test_an_expired_repository_is_refused(yard: Any) -> None:
    yard.clock[0] += timedelta(days=8)
    answer = await yard.publish()
    assert (answer.status_code, answer.json()["code"]) == (422, "metadata_expired")


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, raw in members:
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


TARS = {
    "nothing": b"",
    "no tar": b"no tar at all" * 100,
    "a link": _tar((_member("timestamp.json", tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "a hard link": _tar((_member("timestamp.json", tarfile.LNKTYPE, "other"), b"")),
    "a name above": _tar((_member("../timestamp.json"), b"{}")),
    "an absolute name": _tar((_member("/timestamp.json"), b"{}")),
    "a device": _tar((_member("timestamp.json", tarfile.CHRTYPE), b"")),
    "a name twice": _tar((_member("a"), b"1"), (_member("./a"), b"2")),
    "a header without end": _tar((_member("x", tarfile.XHDTYPE), b"9 a=b\n" * 20_000)),
    "a name without end": _tar((_member("x", tarfile.GNUTYPE_LONGNAME), b"n" * 100_000)),
    "cut in its middle": _tar((_member("timestamp.json"), b"x" * 4000))[:2000],
}


@pytest.mark.parametrize("name", TARS)
async def test_a_tar_with_anything_but_plain_files_is_refused(
    yard: Any, files: FolderFiles, name: str
) -> None:
    answer = await yard.operator.post("/api/v1/image-repository", content=TARS[name])
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in {"invalid", "metadata_missing", "metadata_unreadable"}
    assert ("a header of" in answer.json()["detail"]) == ("without end" in name)
    assert list(files.incoming.folder.iterdir()) == []


async def test_what_the_tar_command_packs_is_read(yard: Any, tmp_path: Path) -> None:
    yard.world.release("1.1.0", 2)
    for name, raw in _image_files(yard).items():
        place = tmp_path / "public" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(raw)
    for arguments in (
        ["-C", str(tmp_path / "public"), "-cf", "-", "."],
        ["-C", str(tmp_path), "-cf", "-", "public"],
    ):
        made = await asyncio.to_thread(
            subprocess.run, ["tar", *arguments], check=True, capture_output=True, timeout=30
        )
        answer = await yard.operator.post("/api/v1/image-repository", content=made.stdout)
        assert answer.status_code in {200, 201}, answer.text
    assert answer.status_code == 200


async def test_too_large_a_bundle_is_refused_while_it_comes(
    yard: Any, files: FolderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "MOST_BUNDLE_BYTES", 1000)
    answer = await yard.operator.post("/api/v1/image-repository", content=b"x" * 1001)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert list(files.incoming.folder.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "9.root.json",
        "targets/x/y",
        "../../etc/passwd",
        "targets/brake-controller/1.1.0/" + "0" * 64 + "." + "0" * 64 + ".bin",
        "nul%00.json",
    ],
)
async def test_what_is_not_there_is_not_found(yard: Any, name: str) -> None:
    yard.world.release("1.1.0", 2)
    assert (await yard.publish()).status_code == 201
    answer = await yard.truck.get(f"/repo/image/{name}")
    assert answer.status_code in {404, 422}
    assert answer.headers["content-type"] == "application/problem+json"
