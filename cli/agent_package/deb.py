"""Writes a Debian binary package (deb(5), format 2.0) byte for byte the same from the same content.

An ar archive of `debian-binary`, `control.tar.xz` and `data.tar.xz`; everything belongs to root, has one
time, and is in order. No program of Debian is needed, and no root.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

AR_MAGIC = b"!<arch>\n"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file, or a symbolic link when `link` is given, by its path from the root without a slash."""

    content: bytes = b""
    mode: int = 0o644
    link: str | None = None


def tar(entries: Mapping[str, Entry], *, mtime: int, folders: bool = True, prefix: str = "./") -> bytes:
    """A tar of entries and of the folders that they stand in; `mtime` in seconds since 1970."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in _folders(entries) if folders else ():
            archive.addfile(_info(f"{prefix}{name}".rstrip("/"), tarfile.DIRTYPE, 0o755, mtime))
        for name in sorted(entries):
            entry = entries[name]
            if entry.link is not None:
                info = _info(f"{prefix}{name}", tarfile.SYMTYPE, 0o777, mtime)
                info.linkname = entry.link
                archive.addfile(info)
                continue
            info = _info(f"{prefix}{name}", tarfile.REGTYPE, entry.mode, mtime)
            info.size = len(entry.content)
            archive.addfile(info, io.BytesIO(entry.content))
    return out.getvalue()


def _folders(entries: Iterable[str]) -> list[str]:
    found = {""}
    for name in entries:
        parts = name.split("/")[:-1]
        found |= {"/".join(parts[: n + 1]) for n in range(len(parts))}
    return sorted(found)


def _info(name: str, kind: bytes, mode: int, mtime: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, mtime
    info.uname = info.gname = "root"
    return info


def _ar(members: Mapping[str, bytes], mtime: int) -> bytes:
    out = bytearray(AR_MAGIC)
    for name, content in members.items():
        out += f"{name:<16}{mtime:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content
        if len(content) % 2:
            out += b"\n"
    return bytes(out)


def make_deb(
    *,
    control: Mapping[str, str],
    scripts: Mapping[str, bytes],
    conffiles: Iterable[str],
    entries: Mapping[str, Entry],
    mtime: int,
) -> bytes:
    """The package. `control` are its fields, in order; Installed-Size is added."""
    size_kib = sum(-(-len(entry.content) // 1024) for entry in entries.values())
    fields = {**control, "Installed-Size": str(size_kib)}
    sums = "".join(
        f"{hashlib.md5(entry.content, usedforsecurity=False).hexdigest()}  {name}\n"
        for name, entry in sorted(entries.items())
        if entry.link is None
    )
    about = {
        "control": Entry(content="".join(f"{key}: {value}\n" for key, value in fields.items()).encode()),
        "md5sums": Entry(content=sums.encode()),
        "conffiles": Entry(content="".join(f"/{name}\n" for name in conffiles).encode()),
        **{name: Entry(content=content, mode=0o755) for name, content in scripts.items()},
    }
    return _ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(tar(about, mtime=mtime)),
            "data.tar.xz": lzma.compress(tar(entries, mtime=mtime), preset=2),
        },
        mtime,
    )
