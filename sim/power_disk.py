"""What a disk holds after a power cut: the log of sim/power.c replayed, and all that was not synced in doubt.

A file's content is safe when it was synced, a name when its folder was (fsync(2): syncing a file need not
save its entry in the folder). Of the rest STRICT keeps nothing. TORN keeps, by the seed, any of it: single
512-byte sectors of one write, a later write without an earlier one, a rename without the content of its file,
a removal without the creation before it. JOURNAL is a file system with one ordered journal of names (ext4):
a sync of anything saves all names so far; contents are as in TORN.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeAlias

SECTOR = 512
MOST_RECORD_BYTES = 64 * 1024 * 1024
_HEAD = struct.Struct("<B3xIIIQQQ")
_SHM = "-shm"
"""SQLite's shared memory means nothing after a restart (sqlite.org/walformat.html)."""


class Loss(Enum):
    """What a cut takes of that which was not synced."""

    STRICT = "strict"
    TORN = "torn"
    JOURNAL = "journal"


class LostTrack(Exception):
    """The process did something to the folder that the recording can't follow."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """One line of the log: C created, W wrote, T truncated, S synced, D synced a folder, M made a folder,
    U removed, R renamed, L linked, ? can't be followed.
    """

    op: str
    inode: int
    offset: int
    path: str
    second: str
    data: bytes


def read_log(path: Path) -> Iterator[Act]:
    """The acts in their order; one that a kill has torn off at the end did not happen. Raises LostTrack."""
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            op, path_bytes, second_bytes, _, inode, offset, data_bytes = _HEAD.unpack(head)
            wanted = path_bytes + second_bytes + data_bytes
            if wanted > MOST_RECORD_BYTES:
                raise LostTrack(f"a record of {wanted} bytes: this is no log")
            body = file.read(wanted)
            if len(body) < wanted:
                return
            names = path_bytes + second_bytes
            yield Act(
                op=chr(op),
                inode=inode,
                offset=offset,
                path=os.fsdecode(body[:path_bytes]),
                second=os.fsdecode(body[path_bytes:names]),
                data=body[names:],
            )


Change: TypeAlias = tuple[int, bytes | None]
"""(offset, data) of a write, (size, None) of a truncation."""


def content(safe: bytes, since: list[Change]) -> bytes:
    """A file's bytes after these changes."""
    made = bytearray(safe)
    for at, data in since:
        if data is None:
            made = made[:at] + bytes(max(0, at - len(made)))
            continue
        made += bytes(max(0, at - len(made)))
        made[at : at + len(data)] = data
    return bytes(made)


@dataclass(eq=False)
class File:
    """A file: what is safe of it, and what was done to it since."""

    safe: bytes = b""
    since: list[Change] = field(default_factory=list)

    def sync(self) -> None:
        """All of it is safe."""
        self.safe, self.since = content(self.safe, self.since), []


@dataclass(eq=False)
class Folder:
    """A folder: the names that are safe, and what was done to them since."""

    safe: dict[str, File | Folder] = field(default_factory=dict)
    since: list[Callable[[dict[str, File | Folder]], None]] = field(default_factory=list)

    def now(self) -> dict[str, File | Folder]:
        """The names as the running process sees them."""
        names = dict(self.safe)
        for act in self.since:
            act(names)
        return names

    def sync(self) -> None:
        """All names are safe."""
        self.safe, self.since = self.now(), []


class Disk:
    """The folder `root` as it is now, before a process whose acts are recorded begins to work in it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_inode: dict[int, File] = {}
        self._tree = self._read(root)

    def _read(self, folder: Path) -> Folder:
        made = Folder()
        for path in folder.iterdir():
            if path.is_dir():
                made.safe[path.name] = self._read(path)
            elif path.is_file() and not path.name.endswith(_SHM):
                file = File(safe=path.read_bytes())
                self._by_inode[path.stat().st_ino] = made.safe[path.name] = file
        return made

    def replay(self, act: Act, *, loss: Loss) -> None:
        """One act of the process. Raises LostTrack."""
        if act.path.endswith(_SHM):
            return
        match act.op:
            case "C":
                self._name(act.path, self._new_file(act.inode))
            case "W":
                self._file(act).since.append((act.offset, act.data))
            case "T":
                self._file(act).since.append((act.offset, None))
            case "S":
                self._file(act).sync()
                self._sync_all_names(loss)
            case "D":
                self._folder(act.path).sync()
                self._sync_all_names(loss)
            case "M":
                self._name(act.path, Folder())
            case "U":
                folder, name = self._place(act.path)
                folder.since.append(lambda names: _forget(names, name))
            case "R" | "L":
                self._rename(act)
            case _:
                raise LostTrack(f"{act.path}: {act.second or act.op}")

    def _new_file(self, inode: int) -> File:
        made = self._by_inode[inode] = File()
        return made

    def _file(self, act: Act) -> File:
        found = self._by_inode.get(act.inode)
        if found is None:
            raise LostTrack(f"{act.path} was changed, and nobody saw it made")
        return found

    def _folder(self, path: str) -> Folder:
        found: File | Folder = self._tree
        for part in Path(path).relative_to(self._root).parts:
            child = found.now().get(part) if isinstance(found, Folder) else None
            if child is None:
                raise LostTrack(f"{path}: there is no such folder")
            found = child
        if not isinstance(found, Folder):
            raise LostTrack(f"{path} is no folder")
        return found

    def _place(self, path: str) -> tuple[Folder, str]:
        folder, _, name = path.rpartition("/")
        return self._folder(folder), name

    def _name(self, path: str, made: File | Folder) -> None:
        folder, name = self._place(path)
        folder.since.append(lambda names: names.update({name: made}))

    def _rename(self, act: Act) -> None:
        (folder, name), (other, new_name) = self._place(act.path), self._place(act.second)
        moved = folder.now().get(name)
        if moved is None or folder is not other:
            raise LostTrack(f"{act.path} -> {act.second}: not a known name in one folder")

        def renamed(names: dict[str, File | Folder]) -> None:
            names[new_name] = moved
            if act.op == "R" and names.get(name) is moved:
                del names[name]

        folder.since.append(renamed)

    def _sync_all_names(self, loss: Loss) -> None:
        if loss is not Loss.JOURNAL:
            return
        left = [self._tree]
        while left:
            folder = left.pop()
            folder.sync()
            left += [one for one in folder.safe.values() if isinstance(one, Folder)]

    def left(self, loss: Loss, dice: random.Random) -> dict[str, bytes | None]:
        """Path below the root -> bytes of each file, None for a folder, after a cut at this moment."""
        return dict(_left(self._tree, "", loss, dice))


def _forget(names: dict[str, File | Folder], name: str) -> None:
    names.pop(name, None)


def _left(folder: Folder, at: str, loss: Loss, dice: random.Random) -> Iterator[tuple[str, bytes | None]]:
    names = dict(folder.safe)
    for act in folder.since:
        if loss is not Loss.STRICT and dice.random() < 0.5:
            act(names)
    for name, found in sorted(names.items()):
        if isinstance(found, Folder):
            yield f"{at}{name}", None
            yield from _left(found, f"{at}{name}/", loss, dice)
        else:
            kept = [] if loss is Loss.STRICT else list(_torn(found.since, dice))
            yield f"{at}{name}", content(found.safe, kept)


def _torn(since: list[Change], dice: random.Random) -> Iterator[Change]:
    for at, data in since:
        how = dice.random()
        if data is None:
            if how < 0.5:
                yield at, None
        elif how < 0.4:
            yield at, data
        elif how < 0.8:
            begin = 0
            while begin < len(data):
                # The bounds of sectors are the file's, not the write's.
                end = min(len(data), begin + SECTOR - (at + begin) % SECTOR)
                if dice.random() < 0.5:
                    yield at + begin, data[begin:end]
                begin = end


def cut_power(root: Path, disk: Disk, log: Path, *, loss: Loss, seed: int) -> None:
    """Make `root` what the disk holds after a cut at the end of the log, whose process is gone.

    `disk` was made before that process began; it is used up. Raises LostTrack.
    """
    for act in read_log(log):
        disk.replay(act, loss=loss)
    put_back(root, disk.left(loss, random.Random(seed)))  # no secret


def put_back(root: Path, found: dict[str, bytes | None]) -> None:
    """Make `root` hold exactly this."""
    shutil.rmtree(root)
    root.mkdir(mode=0o700)
    for name, data in found.items():
        path = root / name
        if data is None:
            path.mkdir(mode=0o700)
        else:
            path.touch(mode=0o600)
            path.write_bytes(data)
