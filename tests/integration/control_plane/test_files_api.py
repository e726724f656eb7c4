"""`/files/{sha256}`: signed URLs and ranges, as a truck on a bad link needs them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from control_plane.storage.folder import FolderFiles
from control_plane.storage.urls import UrlSigner

IMAGE = bytes(range(251)) * 800
SHA256 = hashlib.sha256(IMAGE).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
SIZE = len(IMAGE)


@pytest.fixture
async def url(files: FolderFiles, tmp_path: Path) -> str:
    source = tmp_path / "source"
    source.write_bytes(IMAGE)
    await files.put(SHA256, source)
    return files.url(SHA256, for_s=600)


async def test_the_whole_file(anyone: httpx.AsyncClient, url: str) -> None:
    answer = await anyone.get(url)
    assert answer.status_code == 200
    assert answer.content == IMAGE
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"


async def test_head_tells_what_get_would_give_and_knows_no_range(anyone: httpx.AsyncClient, url: str) -> None:
    answer = await anyone.head(url, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["etag"] == f'"{SHA256}"'


PARTS = {
    "first byte": ("bytes=0-0", 0, 1),
    "some": ("bytes=100-199", 100, 200),
    "from here on": (f"bytes={SIZE - 5}-", SIZE - 5, SIZE),
    "longer than there is": (f"bytes=10-{SIZE * 2}", 10, SIZE),
    "last bytes": ("bytes=-7", SIZE - 7, SIZE),
    "more last bytes than there are": (f"bytes=-{SIZE * 2}", 0, SIZE),
    "over the size of a chunk": ("bytes=1000-150000", 1000, 150_001),
    "upper case": ("Bytes=1-2", 1, 3),
}


async def test_a_part(anyone: httpx.AsyncClient, url: str) -> None:
    for name, (header, first, end) in PARTS.items():
        answer = await anyone.get(url, headers={"Range": header})
        assert answer.status_code == 206, name
        assert answer.content == IMAGE[first:end], name
        assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{SIZE}", name
        assert answer.headers["content-length"] == str(end - first), name


async def test_a_range_that_is_none_is_answered_with_the_whole(anyone: httpx.AsyncClient, url: str) -> None:
    for header in (
        *("bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-4", "bytes=--5", "bytes=0x1-2", "bytes=1_0-20"),
        *("bytes=+1-2", "bytes=0-1,5-6", "lines=0-5", "bytes=" + "9" * 5000 + "-", "bytes=1-2-3", "", "=0-1"),
    ):
        answer = await anyone.get(url, headers={"Range": header})
        assert (answer.status_code, len(answer.content)) == (200, SIZE), header


async def test_a_range_behind_the_end_is_416_with_the_size(anyone: httpx.AsyncClient, url: str) -> None:
    for header in (f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", "bytes=" + "9" * 18 + "-"):
        answer = await anyone.get(url, headers={"Range": header})
        assert answer.status_code == 416, header
        assert answer.headers["content-range"] == f"bytes */{SIZE}"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "range_not_satisfiable"


async def test_if_range_never_joins_two_files(anyone: httpx.AsyncClient, url: str) -> None:
    same = {"Range": "bytes=5-9", "If-Range": f'"{SHA256}"'}
    answer = await anyone.get(url, headers=same)
    assert (answer.status_code, answer.content) == (206, IMAGE[5:10])
    for tag in (f'"{OTHER}"', SHA256, f'W/"{SHA256}"', "Wed, 25 Nov 2026 00:00:00 GMT", ""):
        answer = await anyone.get(url, headers=same | {"If-Range": tag})
        assert (answer.status_code, len(answer.content)) == (200, SIZE), tag


async def test_a_url_is_good_until_its_time(
    anyone: httpx.AsyncClient, url: str, unix_time: list[float]
) -> None:
    unix_time[0] += 599.9
    assert (await anyone.get(url)).status_code == 200
    unix_time[0] += 0.1
    for method in ("GET", "HEAD"):
        answer = await anyone.request(method, url, headers={"Range": "bytes=0-0"})
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await anyone.get(url)).json()["code"] == "url_expired"


async def test_a_url_that_was_changed_opens_nothing(
    anyone: httpx.AsyncClient, url: str, signer: UrlSigner, unix_time: list[float]
) -> None:
    good = httpx.URL(url)
    expires, signature = good.params["expires"], good.params["sig"]
    flipped = ("1" if signature[0] == "0" else "0") + signature[1:]
    changed = {
        "later": good.copy_merge_params({"expires": str(int(expires) + 1)}),
        "far later": good.copy_merge_params({"expires": "9" * 15}),
        "endless": good.copy_merge_params({"expires": "9" * 40}),
        "same time, spelled otherwise": good.copy_merge_params({"expires": f"0{expires}"}),
        "with a sign": good.copy_merge_params({"expires": f"+{expires}"}),
        "no time": good.copy_with(params={"sig": signature}),
        "no signature": good.copy_with(params={"expires": expires}),
        "nothing": good.copy_with(params={}),
        "one digit": good.copy_merge_params({"sig": flipped}),
        "upper case": good.copy_merge_params({"sig": signature.upper()}),
        "cut": good.copy_merge_params({"sig": signature[:-1]}),
        "no hex": good.copy_merge_params({"sig": "ж" * 64}),
        "null": good.copy_merge_params({"sig": "\x00" * 64}),
        "of another file": httpx.URL(signer.url(OTHER, for_s=600)).copy_with(path=f"/files/{SHA256}"),
        "by another key": httpx.URL(
            UrlSigner(b"x" * 32, "http://office.test", clock=lambda: unix_time[0]).url(SHA256, for_s=600)
        ),
    }
    for name, one in changed.items():
        answer = await anyone.get(one)
        assert (answer.status_code, answer.json()["code"]) == (403, "bad_signature"), name


async def test_a_changed_url_says_nothing_of_its_time(
    anyone: httpx.AsyncClient, url: str, unix_time: list[float]
) -> None:
    unix_time[0] += 10_000
    tampered = httpx.URL(url).copy_merge_params({"sig": "0" * 64})
    assert (await anyone.get(tampered)).json()["code"] == "bad_signature"


async def test_a_file_that_is_gone(anyone: httpx.AsyncClient, url: str, files: FolderFiles) -> None:
    await files.remove(SHA256)
    answer = await anyone.get(url)
    assert (answer.status_code, answer.json()["code"]) == (404, "gone")
    assert (await anyone.head(url)).status_code == 404


async def test_wrong_input(anyone: httpx.AsyncClient) -> None:
    for path in (
        "/files/abc",
        f"/files/{SHA256.upper()}",
        f"/files/{SHA256}0",
        "/files/%00",
        "/files/..%2f..%2fx",
    ):
        assert (await anyone.get(path)).status_code in (404, 422), path
    assert (await anyone.post(f"/files/{SHA256}")).status_code == 405
    long = await anyone.get(f"/files/{SHA256}", params={"expires": "1" * 41, "sig": "x"})
    assert long.status_code == 422


async def test_no_file_stays_open(anyone: httpx.AsyncClient, url: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for headers in ({}, {"Range": "bytes=1-5"}, {"Range": f"bytes={SIZE}-"}):
        await anyone.get(url, headers=headers)
        await anyone.head(url, headers=headers)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
