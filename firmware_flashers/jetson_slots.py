"""The two slots of a gateway as files or block devices, and the note of what was put into them.

Blocking; called in a thread. The note (`Note`, a small JSON file outside both slots) is replaced in one piece
and synced, so that after a power cut it is the old or the new one. An unreadable note counts as none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from firmware_flashers.base import BadImage, FlashError

CHUNK = 1024 * 1024
MOST_NOTE_BYTES = 64 * 1024
MOST_TEXT_BYTES = 4096
MOUNTS = Path("/proc/self/mountinfo")

Report = Callable[[int], None]
"""Called with the bytes done so far."""


class SlotFailed(FlashError):
    """A slot can't be read or written."""

    code = "slot_io"
    advice = "Look at the slot's path in the configuration and at the kernel's log for errors of the drive."


class SlotBusy(FlashError):
    """Another program flashes the gateway, or the passive slot is mounted."""

    code = "slot_busy"
    advice = "Wait until the other program has finished; unmount the passive slot."


class Content(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was proved to be in a slot: its first `length` bytes have this hash."""

    version: str
    length: int
    sha256: str


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the flasher must know after a crash, by slots' names.

    `staged` holds the image that is to run, `previous` is the slot to go back to; `confirmed` is the slot of
    the last image that was made permanent. `armed` says that the next boot may be from another slot than
    the running one.
    """

    proved: dict[str, Content] = {}
    staged: str | None = None
    previous: str | None = None
    confirmed: str | None = None
    armed: bool = True


def read_note(path: Path) -> Note:
    """The note, or an empty one (which takes any slot for armed) where there is none to be read."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MOST_NOTE_BYTES), type=Note)
    except (OSError, msgspec.MsgspecError):
        return Note()


def write_note(path: Path, note: Note) -> None:
    """Replace the note; when this returns it is on the drive. Raises SlotFailed."""
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(note))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise SlotFailed(f"{path}: {error}") from error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Only one program at a time. Raises SlotBusy, SlotFailed."""
    try:
        descriptor = os.open(
            path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise SlotFailed(f"{path}: {error}", touched=False) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SlotBusy(f"{path}: another program is flashing this gateway", touched=False) from None
        yield
    finally:
        os.close(descriptor)


def judge_room(path: Path, length: int) -> None:
    """Raises BadImage when the slot is smaller than the image, SlotFailed when it is no place for one."""
    with _opened(path, os.O_RDONLY) as descriptor:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise SlotFailed(f"{path} is neither a file nor a block device", touched=False)
        room = os.lseek(descriptor, 0, os.SEEK_END)
    if length > room:
        raise BadImage(f"the image has {length} bytes, the slot {path} holds {room}", touched=False)


def judge_unmounted(path: Path, mounts: Path = MOUNTS) -> None:
    """Raises SlotBusy when the block device `path` is mounted (proc(5): field 3 is major:minor)."""
    try:
        status = path.stat()
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError as error:
        raise SlotFailed(f"{path}: {error}", touched=False) from error
    if not stat.S_ISBLK(status.st_mode):
        return
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    for line in lines:
        fields = line.split()
        if len(fields) > 4 and fields[2] == device:
            raise SlotBusy(f"{path} is mounted at {fields[4]}", touched=False)


def write_slot(path: Path, data: bytes, *, interrupt: threading.Event, report: Report) -> None:
    """Write from the slot's start and sync. Raises SlotFailed."""
    with _opened(path, os.O_WRONLY) as descriptor:
        view = memoryview(data)
        for start in range(0, len(data), CHUNK):
            _go_on(interrupt)
            chunk = view[start : start + CHUNK]
            while chunk:
                chunk = chunk[os.write(descriptor, chunk) :]
            report(min(start + CHUNK, len(data)))
        os.fsync(descriptor)


def hash_slot(
    path: Path, length: int, *, interrupt: threading.Event, report: Report = lambda _: None
) -> str | None:
    """SHA-256 in hex of the slot's first `length` bytes as the drive gives them; None where it is shorter.

    The kernel is told to forget what it keeps of the file, so that the bytes are read back from the drive.
    """
    digest = hashlib.sha256()
    with _opened(path, os.O_RDONLY) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        left = length
        while left:
            _go_on(interrupt)
            chunk = os.read(descriptor, min(CHUNK, left))
            if not chunk:
                return None
            digest.update(chunk)
            left -= len(chunk)
            report(length - left)
    return digest.hexdigest()


def is_same(one: Path, two: Path) -> bool:
    """Whether both paths lead to one file or device. Raises SlotFailed."""
    try:
        return one.samefile(two)
    except OSError as error:
        raise SlotFailed(f"{one}, {two}: {error}", touched=False) from error


def read_text(path: Path) -> str:
    """The beginning of a small text file of the running system. Raises SlotFailed."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_TEXT_BYTES).decode(errors="replace")
    except OSError as error:
        raise SlotFailed(f"{path}: {error}", touched=False) from error


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            with suppress(OSError):
                os.close(descriptor)
    except OSError as error:
        raise SlotFailed(f"{path}: {error}") from error


def _go_on(interrupt: threading.Event) -> None:
    if interrupt.is_set():
        raise SlotFailed("given up, since the caller was cancelled", code="cancelled")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
