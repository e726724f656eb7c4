"""The hold file: a person at the truck says that nothing is to be flashed, and why.

`DATA/hold` is JSON, `{"by": "...", "why": "...", "at": "..."}`. It needs no agent that runs and no network;
it outlives restarts. What the file says is for people: that it is there is what counts, so one that can't
be read, or is damaged, holds all the same.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_agent.errors import EdgeError
from edge_agent.safe_files import read_bounded, sync_folder, write_whole

MOST_BYTES = 4096


class AlreadyHeld(EdgeError):
    """Somebody holds the truck already."""

    code = "already_held"
    advice = "Agree with them; `quarry agent release-hold` ends it, whoever set it."


class HoldFailed(EdgeError):
    """The hold file can't be written or removed."""

    code = "hold_failed"
    advice = "Run it as the agent's user or as root, and check the disk that holds the agent's data."


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the truck, why, and since when (UTC); `at` is None where the file can't tell."""

    by: Annotated[str, Meta(min_length=1, max_length=100)]
    why: Annotated[str, Meta(min_length=1, max_length=500)]
    at: Annotated[datetime, Meta(tz=True)] | None = None


UNREADABLE = Hold(by="unknown", why="the hold file is there and can't be read")


def hold_path(data_dir: Path) -> Path:
    """Where the hold file is."""
    return data_dir / "hold"


def read_hold(data_dir: Path) -> Hold | None:
    """The hold that is in force, or None. Never raises: what can't be read holds. Blocks."""
    try:
        return msgspec.json.decode(read_bounded(hold_path(data_dir), MOST_BYTES), type=Hold)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, msgspec.DecodeError):
        return UNREADABLE


def set_hold(data_dir: Path, hold: Hold) -> None:
    """Hold the truck, safe on the disk when this returns. Blocks. Raises AlreadyHeld or HoldFailed."""
    standing = read_hold(data_dir)
    if standing is not None:
        raise AlreadyHeld(f"{standing.by} holds this truck already: {standing.why}")
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(hold_path(data_dir), msgspec.json.encode(hold) + b"\n")
    except OSError as error:
        raise HoldFailed(f"{hold_path(data_dir)} can't be written: {error.strerror}") from error


def release_hold(data_dir: Path) -> Hold | None:
    """End the hold; returns it, None when there was none. Blocks. Raises HoldFailed."""
    standing = read_hold(data_dir)
    if standing is None:
        return None
    try:
        hold_path(data_dir).unlink(missing_ok=True)
        sync_folder(data_dir)
    except OSError as error:
        raise HoldFailed(f"{hold_path(data_dir)} can't be removed: {error.strerror}") from error
    return standing
