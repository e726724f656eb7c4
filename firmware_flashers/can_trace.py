"""A log of every frame of a link, in a file that candump, SavvyCAN, CANalyzer and others read.

The suffix chooses the format (python-can writes it): `.log` candump, `.asc` Vector ASCII, `.blf` Vector
binary, `.csv`. Frames that carry seeds, keys or certificates' proofs are written with their payload
blanked. The file is bounded; what comes after the bound is left out, and said once.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import can

from firmware_flashers.clock import MONOTONIC, Clock
from shared.errors import ConfigError
from shared.logs import get_log
from shared.since_310 import Self

log = get_log("firmware_flashers")

SUFFIXES = (".log", ".asc", ".blf", ".csv")
MOST_FRAMES = 10_000_000
"""About 600 MB of candump lines: five hours of a full 500 kbit/s bus."""
SHOWN_WHEN_MASKED = 3
"""Bytes of a masked frame that are kept: ISO-TP's own, the service and its sub-function."""
CONSECUTIVE = 2
"""The high nibble of an ISO-TP consecutive frame, which carries nothing but payload behind its first byte."""


class Trace:
    """The file, as a resource; may be written to from several threads."""

    def __init__(self, path: Path, *, channel: str, most_frames: int = MOST_FRAMES) -> None:
        self._path = path
        self._channel = channel
        self._left = most_frames
        self._lock = threading.Lock()
        self._writer: Any = None

    def __enter__(self) -> Self:
        """Raises ConfigError for an unknown suffix or a file that can't be written."""
        if self._path.suffix not in SUFFIXES:
            raise ConfigError(
                f"trace {self._path} has no suffix of a known format: give one of {', '.join(SUFFIXES)}"
            )
        try:
            self._writer = can.Logger(self._path)
        except OSError as error:
            raise ConfigError(f"trace {self._path} can't be written: {error.strerror or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            try:
                self._writer.stop()
            except OSError:
                log.exception("flasher.trace_failed", path=str(self._path))
            self._writer = None

    def note(self, message: can.Message, clock: Clock, *, masked: bool) -> None:
        """Write one frame down; a full disk ends the trace, not the conversation."""
        with self._lock:
            if self._writer is None or self._left <= 0:
                return
            self._left -= 1
            try:
                self._writer.on_message_received(self._copy(message, clock, masked=masked))
            except OSError:
                self._left = 0
                log.exception("flasher.trace_failed", path=str(self._path))
                return
            if self._left == 0:
                log.warning("flasher.trace_full", path=str(self._path))

    def _copy(self, message: can.Message, clock: Clock, *, masked: bool) -> can.Message:
        data = bytes(message.data)
        if masked:
            shown = 1 if data and data[0] >> 4 == CONSECUTIVE else SHOWN_WHEN_MASKED
            data = data[:shown] + bytes(max(0, len(data) - shown))
        at = message.timestamp or (time.time() if clock is MONOTONIC else clock.now())
        return can.Message(
            timestamp=at,
            arbitration_id=message.arbitration_id,
            is_extended_id=message.is_extended_id,
            is_fd=message.is_fd,
            bitrate_switch=message.bitrate_switch,
            dlc=message.dlc,
            data=data,
            channel=self._channel,
            is_rx=message.is_rx,
        )
