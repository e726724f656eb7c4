"""What a running agent shows of itself to people at the truck: a small file, and whether it runs."""

from __future__ import annotations

import fcntl
import os
from datetime import datetime
from pathlib import Path

import msgspec

MOST_BYTES = 16 * 1024


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """`DATA/live.json`, as the agent wrote it last."""

    device_id: str
    agent_version: str
    pid: int
    started_at: datetime
    connected: bool
    link_error: str = ""
    certificate_error: str = ""


def write_live(data_dir: Path, live: Live) -> None:
    """Replace the file in one step. Blocks. Raises OSError."""
    path = data_dir / "live.json"
    part = path.with_suffix(".json.part")
    part.write_bytes(msgspec.json.encode(live))
    part.replace(path)


def read_live(data_dir: Path) -> Live | None:
    """What a running agent, or the last one, wrote; None when there is nothing readable. Blocks."""
    try:
        with (data_dir / "live.json").open("rb") as file:
            return msgspec.json.decode(file.read(MOST_BYTES), type=Live)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def is_running(store: Path) -> bool:
    """Whether an agent holds the store's lock now: the kernel's word, which no crash leaves behind."""
    try:
        descriptor = os.open(f"{store}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
