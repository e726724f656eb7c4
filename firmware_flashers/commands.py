"""Runs one configured command of the operating system: no shell, a time-out, a bound on what it says.

The command is a list of arguments from the configuration. It runs in a process group of its own, which is
killed whole when time is up, too much is said, or the caller is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Sequence
from contextlib import suppress

from firmware_flashers.base import FlashError
from shared.since_310 import timeout

MOST_OUTPUT_BYTES = 64 * 1024
MOST_SAID = 200
KILL_S = 5.0
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class CommandFailed(FlashError):
    """A configured command could not be run, failed, took too long, or said too much."""

    code = "command_failed"
    advice = "Run the named command by hand on the gateway and correct it, or the agent's configuration."


async def run(argv: Sequence[str], *, timeout_s: float) -> str:
    """Run to its end and return what it wrote to standard output.

    Raises CommandFailed for everything but exit code 0 within `timeout_s` seconds and MOST_OUTPUT_BYTES.
    """
    name = " ".join(argv)[:MOST_SAID]
    try:
        process = await _start(argv)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{name}: can't be started: {error}") from error
    try:
        async with timeout(timeout_s):
            said, complained, code = await asyncio.gather(
                _read(process, process.stdout), _read(process, process.stderr), process.wait()
            )
    except TimeoutError:
        # What it started and left behind may still hold its output open.
        _kill(process)
        raise CommandFailed(f"{name}: not finished after {timeout_s:g} s") from None
    finally:
        await _end(process)
    if len(said) > MOST_OUTPUT_BYTES or len(complained) > MOST_OUTPUT_BYTES:
        raise CommandFailed(f"{name}: says more than {MOST_OUTPUT_BYTES} bytes")
    if code != 0:
        why = _UNPRINTABLE.sub(" ", (complained or said).decode(errors="replace")).strip()[:MOST_SAID]
        raise CommandFailed(f"{name}: exit code {code}" + (f": {why}" if why else ""))
    return said.decode(errors="replace")


async def _start(argv: Sequence[str]) -> asyncio.subprocess.Process:
    """Start it; a caller that is cancelled meanwhile leaves nothing of it either.

    Cancelled inside asyncio's own start, only the first process of the group would be ended.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(OSError, ValueError):
            await _end(await starting)
        raise


async def _read(process: asyncio.subprocess.Process, stream: asyncio.StreamReader | None) -> bytes:
    """All of it; whoever says too much is killed."""
    assert stream is not None  # both were asked for as pipes
    said = bytearray()
    while chunk := await stream.read(4096):
        if len(said) <= MOST_OUTPUT_BYTES:
            said += chunk
        if len(said) > MOST_OUTPUT_BYTES:
            _kill(process)
    return bytes(said)


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    _kill(process)
    with suppress(TimeoutError):
        async with timeout(KILL_S):
            await process.wait()
