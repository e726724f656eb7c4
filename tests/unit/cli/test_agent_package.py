"""The parts of the agent's package that need no wheel: what is needed where, and the archive itself."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from cli.agent_package.closure import NotLocked, pinned
from cli.agent_package.deb import Entry, make_deb, tar
from cli.agent_package.tree import LOCK_310, MACHINES, PYTHONS, Machine, locked

OFFICE_AND_DEVELOPMENT = {
    "fastapi",
    "asyncpg",
    "pytest",
    "mypy",
    "ruff",
    "uv",
    "hypothesis",
    "esptool",
    "scapy",
}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("arch", MACHINES)
def test_the_truck_gets_what_it_needs_and_no_more(arch: str, python: str) -> None:
    text = locked(Machine(arch=arch, python=python))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    names = set(versions(lines))
    assert {"aiomqtt", "paho-mqtt", "httpx", "python-can", "udsoncan", "cryptography", "tuf"} <= names
    assert not names & OFFICE_AND_DEVELOPMENT
    assert "quarry-ota" not in names
    assert sum("==" in line for line in lines) == len(names)
    assert sum("--hash=sha256:" in line for line in lines) >= len(names)
    assert ";" not in "".join(lines)


def versions(lines: Iterable[str]) -> dict[str, str]:
    pins = (re.match(r"([a-z0-9.-]+)==([^ ]+)", line) for line in lines)
    return {pin[1]: pin[2] for pin in pins if pin}


@pytest.mark.parametrize("arch", MACHINES)
def test_the_lock_of_3_10_is_the_others_but_for_what_3_10_asks(arch: str) -> None:
    older = versions(LOCK_310.read_text().splitlines())
    newer = versions(locked(Machine(arch=arch, python="3.11")).splitlines())
    assert older.keys() - newer.keys() == {"exceptiongroup", "taskgroup", "tomli"}
    assert newer.keys() - older.keys() == set()
    others = {name for name, version in newer.items() if older[name] != version}
    # The version that is locked for the others says that it needs 3.11.
    for name in others:
        assert not SpecifierSet(metadata(name)["Requires-Python"]).contains("3.10.14"), name


def test_what_is_not_locked_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(
        "aiomqtt==2.5.1 \\\n    --hash=sha256:00\n    # via quarry-ota\nhttpx==1 \\\n    --hash=sha256:11\n"
    )
    assert pinned(lock, {"aiomqtt"}) == "aiomqtt==2.5.1 \\\n    --hash=sha256:00\n"
    with pytest.raises(NotLocked, match="cffi, tuf"):
        pinned(lock, {"aiomqtt", "tuf", "cffi"})


ENTRIES = {
    "usr/bin/x": Entry(link="../lib/x"),
    "usr/lib/x": Entry(content=b"#!/bin/sh\n", mode=0o755),
    "etc/x.toml": Entry(content=b"a = 1\n"),
}


def package(entries: dict[str, Entry] | None = None) -> bytes:
    return make_deb(
        control={"Package": "x", "Version": "1", "Architecture": "amd64"},
        scripts={"postinst": b"#!/bin/sh\n"},
        conffiles=["etc/x.toml"],
        entries=entries or ENTRIES,
        mtime=1_700_000_000,
    )


def test_the_same_content_is_the_same_package() -> None:
    backwards = dict(reversed(ENTRIES.items()))
    assert package() == package(backwards)
    assert package() != package({**ENTRIES, "etc/x.toml": Entry(content=b"a = 2\n")})


def test_a_package_is_an_ar_of_three_members() -> None:
    raw = package()
    assert raw.startswith(b"!<arch>\ndebian-binary   1700000000  0     0     100644  4         `\n2.0\n")
    at, names = 8, []
    while at < len(raw):
        header = raw[at : at + 60]
        assert header.endswith(b"`\n")
        names.append(header[:16].decode().strip())
        size = int(header[48:58])
        at += 60 + size + size % 2
    assert names == ["debian-binary", "control.tar.xz", "data.tar.xz"]
    assert at == len(raw)


def test_a_tar_belongs_to_root_and_names_each_folder_before_what_is_in_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar(ENTRIES, mtime=5))) as opened:
        members = opened.getmembers()
    assert {(one.uid, one.gid, one.uname, one.mtime) for one in members} == {(0, 0, "root", 5)}
    names = [one.name for one in members]
    for name in names[1:]:
        assert name.rpartition("/")[0] in names[: names.index(name)]
    assert {one.name: one.linkname for one in members if one.issym()} == {"./usr/bin/x": "../lib/x"}
