"""Keeps the gateway from being switched off in an orderly way while an ECU is between two images.

By `systemd-inhibit` where it exists: it holds logind's lock for as long as the program that it runs lives,
and that one ends with our end of its pipe, so that no crash leaves a lock behind. It is a help and no
promise: where logind refuses (no rights, no logind), the service's stop time-out is what waits for the
ECU, and after a power cut the journal goes on.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import suppress

from shared.logs import get_log
from shared.since_310 import timeout

log = get_log("edge_agent.inhibit")

LOOK_EVERY_S = 0.5
END_WITHIN_S = 5.0
AGAIN_AFTER_S = 60.0
WHY = "An ECU is being flashed"


class Inhibitor:
    """`run` until cancelled; `touching` says whether an ECU is, or may be, between two images."""

    def __init__(self, touching: Callable[[], bool], *, program: str = "systemd-inhibit") -> None:
        self._touching = touching
        self._program = program
        self._child: asyncio.subprocess.Process | None = None
        self._not_before = 0.0

    @property
    def held(self) -> bool:
        """Whether the lock is held, as far as its holder still runs."""
        return self._child is not None and self._child.returncode is None

    async def run(self) -> None:
        """Take and give back the lock as the ECUs need it."""
        program = await asyncio.to_thread(shutil.which, self._program)
        if program is None:
            return
        try:
            while True:
                if self._touching() and not self.held:
                    await self._take(program)
                elif not self._touching() and self._child is not None:
                    await self._give_back()
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            await self._give_back()

    async def _take(self, program: str) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._not_before:
            return
        self._not_before = now + AGAIN_AFTER_S
        await self._give_back()
        try:
            self._child = await asyncio.create_subprocess_exec(
                *(
                    program,
                    "--what=shutdown:sleep",
                    "--mode=block",
                    "--who=Quarry OTA",
                    f"--why={WHY}",
                    "cat",
                ),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            log.warning("inhibit.failed", why=str(error))

    async def _give_back(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode not in (None, 0):
            log.warning("inhibit.refused", exit_code=child.returncode)
        assert child.stdin is not None
        child.stdin.close()
        try:
            async with timeout(END_WITHIN_S):
                await child.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
