"""The agent's log beside stderr: a few bounded files that turn, for gateways without a journal.

`DATA/log/agent.log` is the newest, `agent.log.1` the one before. Nothing is synced: a log is for people, and
flash wears. A disk that is full or broken stops neither the agent nor the log on stderr.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

AGAIN_AFTER_S = 60.0
"""After the disk refused a line, so long none is tried."""
NAME = "agent.log"


@dataclass(frozen=True, kw_only=True)
class LogFiles:
    """How many files there are at the most, the newest counted (0: none), and how large each gets (bytes)."""

    keep: int = 4
    each_bytes: int = 2 * 1024 * 1024


class TeeLog(io.TextIOBase):
    """A text stream whose lines go to `stream` and into the files. Threads may share it."""

    def __init__(
        self,
        stream: TextIO,
        folder: Path,
        files: LogFiles,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._path = folder / NAME
        self._files = files
        self._now = now
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._size = 0
        self._not_before = float("-inf")

    def write(self, text: str) -> int:
        """Each call is written whole to one file; a file grows over its bound by no line."""
        with self._lock:
            self._stream.write(text)
            if self._files.keep > 0 and self._now() >= self._not_before:
                try:
                    self._append(text.encode("utf-8", "replace"))
                except OSError:
                    self._not_before = self._now() + AGAIN_AFTER_S
                    self._shut()
        return len(text)

    def flush(self) -> None:
        """Only `stream` keeps anything back."""
        with self._lock:
            self._stream.flush()

    def close(self) -> None:
        """Close the file; `stream` stays open."""
        with self._lock:
            self._shut()
        super().close()

    def _append(self, raw: bytes) -> None:
        raw = raw[: self._files.each_bytes]
        if self._descriptor is not None and self._size + len(raw) > self._files.each_bytes:
            self._shut()
            self._turn()
        if self._descriptor is None:
            self._open(len(raw))
        assert self._descriptor is not None
        self._size += os.write(self._descriptor, raw)

    def _open(self, coming: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):
            if self._path.stat().st_size + coming > self._files.each_bytes:
                self._turn()
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _turn(self) -> None:
        def numbered(number: int) -> Path:
            return self._path.with_name(f"{NAME}.{number}") if number else self._path

        # A smaller `keep` than before takes the surplus away too.
        for old in self._path.parent.glob(f"{NAME}.*"):
            tail = old.name.removeprefix(f"{NAME}.")
            if tail.isdigit() and int(tail) >= self._files.keep - 1:
                old.unlink(missing_ok=True)
        for number in range(self._files.keep - 2, -1, -1):
            with suppress(FileNotFoundError):
                numbered(number).replace(numbered(number + 1))
        if self._files.keep == 1:
            self._path.unlink(missing_ok=True)

    def _shut(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
