"""A gateway that can be killed at any named point, as a program: `truck_child.py`.

Reads lines `FOLDER NAME#K` and for each forks a process that lives one life of the gateway in FOLDER and
kills itself with SIGKILL at the K-th kill point of that name (`*`: of any; 0: never); answers with the
exit code. Everything of the life is on the disk: the store, the image, the ECU's flash, and what
the office received. Forked from a warm process, since a life takes milliseconds and imports a second.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from edge_agent.clock import Clock
from edge_agent.interlocks.safety import Policy
from edge_agent.interlocks.vehicle import BenchVehicle
from edge_agent.store.store import Store
from edge_agent.trust.counters import Counters
from edge_agent.trust.verifier import Verifier
from edge_agent.update.updater import ComponentAccess, Timing, Updater
from firmware_flashers.base import (
    Capabilities,
    FirmwareImage,
    Flasher,
    Identity,
    NoAnswer,
    NotProved,
    OnProgress,
    Progress,
    TrustClass,
    no_progress,
)
from shared.backoff import Backoff
from shared.logs import set_up_logs
from shared.messages import Command
from shared.trust.keys import key_ring

Kill = Callable[[str], None]


class FlashChip:
    """A single-slot ECU in files: `flash`, `document` (written last, erased first) and `mode`."""

    capabilities = Capabilities(
        slots=1,
        self_reverting=False,
        anti_rollback=False,
        trust_class=TrustClass.VERIFIES,
        isolated_bus=False,
    )

    def __init__(self, folder: Path, kill: Kill) -> None:
        self._flash = folder / "flash"
        self._document = folder / "document"
        self._mode = folder / "mode"
        self._kill = kill

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Flasher]:
        yield self

    def _valid(self) -> tuple[str | None, str | None]:
        try:
            said = json.loads(self._document.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None, None  # none, or its writing was cut
        sha256 = hashlib.sha256(self._flash.read_bytes()).hexdigest()
        return (said["version"], sha256) if said["sha256"] == sha256 else (None, None)

    async def identify(self) -> Identity:
        version, sha256 = self._valid()
        return Identity(
            kind="brake-controller",
            hardware="rev-b",
            version=version,
            sha256=sha256,
            in_bootloader=self._mode.read_text() == "bootloader",
        )

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        assert hashlib.sha256(image.data).hexdigest() == image.spec.sha256, "an unverified image"
        total = len(image.data)
        self._mode.write_text("bootloader")
        self._kill("ecu.entered")
        progress(Progress(step="erasing", done_bytes=0, total_bytes=total))
        self._document.unlink(missing_ok=True)
        self._kill("ecu.document_erased")
        self._flash.write_bytes(b"")
        self._kill("ecu.erased")
        progress(Progress(step="writing", done_bytes=0, total_bytes=total))
        for begin in range(0, total, total // 3 + 1):
            await asyncio.sleep(0)
            with self._flash.open("ab") as file:
                file.write(image.data[begin : begin + total // 3 + 1])
            self._kill("ecu.written")
        self._document.write_text(json.dumps({"version": image.spec.version, "sha256": image.spec.sha256}))
        self._kill("ecu.document_written")

    async def activate(self) -> None:
        if self._valid() == (None, None):
            raise NoAnswer("nothing to boot")
        self._kill("ecu.reset")
        self._mode.write_text("application")

    async def verify(self, image: FirmwareImage) -> Identity:
        identity = await self.identify()
        if identity.sha256 != image.spec.sha256 or identity.in_bootloader:
            raise NotProved("it runs something else")
        return identity

    async def confirm(self) -> None:
        self._kill("ecu.confirm")

    async def revert(self) -> None:
        raise NoAnswer("one slot")


class Folder:
    """The office's image, copied in two parts."""

    def __init__(self, folder: Path, kill: Kill) -> None:
        self._folder = folder
        self._kill = kill

    async def note_installed(self, component: str, sha256: str) -> None:
        """Nothing is remembered: this download needs no delta."""

    async def fetch(
        self,
        url: str,
        *,
        sha256: str,
        length: int,
        keep: Collection[str] = (),
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        **_more: object,
    ) -> Path:
        data = Path(url).read_bytes()
        path = self._folder / sha256
        path.write_bytes(data[: length // 2])
        self._kill("download.half")
        path.write_bytes(data)
        self._kill("download.whole")
        return path


async def tell_office(store: Store, office: Path, kill: Kill) -> None:
    """What mqtt_link and the office do: received durably first, then acknowledged."""
    while statuses := await store.next_statuses(3):
        kill("office.before")
        with office.open("a") as file:
            for one in statuses:
                file.write(json.dumps({"store_id": store.store_id, **one.to_obj()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        kill("office.received")
        await store.acked([one.message_id for one in statuses], [])
        kill("office.acked")


async def live(folder: Path, kill: Kill, *, every_write: bool) -> None:
    """From the start of the process to the end of the job and its last ack."""
    command = Command.from_json((folder / "command.json").read_bytes())
    clock = Clock(wall=lambda: datetime(2027, 1, 1, tzinfo=UTC))
    chip = FlashChip(folder, kill)
    async with Store.open(folder / "agent.db") as store:
        counters = await Counters.open(folder / "counters.json")

        writing = False

        def statement(sql: str) -> None:
            # Called before each statement runs: before COMMIT all of a transaction is still undone.
            nonlocal writing
            word = sql.split(maxsplit=1)[0]
            if word == "BEGIN":
                writing = "IMMEDIATE" in sql
            elif writing and (word == "COMMIT" or (every_write and word != "SELECT")):
                kill(f"sql.{word}")

        await store._file.read(lambda db: db.set_trace_callback(statement))
        kill("command.before")
        if not await store.jobs():
            await store.take_command(command)
        kill("command.taken")
        await tell_office(store, folder / "office", kill)
        updater = Updater(
            store,
            downloader=Folder(folder, kill),
            verifier=Verifier(
                keys=key_ring([(folder / "public.pem").read_bytes()]), clock=clock, counters=counters
            ),
            components={"brakes": ComponentAccess(kind="brake-controller", hardware="rev-b", open=chip.open)},
            vehicle=BenchVehicle(),
            policy=Policy(),
            clock=clock,
            backoff=Backoff(first_s=0.001, most_s=0.01),
            timing=Timing(poll_s=0.01, refused_s=0.01, link_s=0.01, progress_s=0.01, rest_s=1.0),
            kill_point=kill,
        )
        task = asyncio.create_task(updater.run())
        async with asyncio.timeout(30):
            while await store.live():
                await asyncio.wait({asyncio.create_task(updater.ended.wait()), task}, timeout=0.05)
                if task.done():
                    await task
        task.cancel()
        await asyncio.wait({task})
        await tell_office(store, folder / "office", kill)


def one_life(folder: Path, kill_at: str, points: Path) -> None:
    """Live, counting kill points into the file `points`. A folder whose name ends in `-sql` has one at
    every statement that writes, others only at commits.
    """
    passed: list[str] = []

    wanted, _, number = kill_at.rpartition("#")

    def kill(name: str) -> None:
        passed.append(name)
        seen = len(passed) if wanted == "*" else passed.count(name)
        if wanted in {"*", name} and seen == int(number):
            points.write_text("\n".join(passed))
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        asyncio.run(live(folder, kill, every_write=folder.name.endswith("-sql")))
    finally:
        points.write_text("\n".join(passed))


def main() -> None:
    """Serve lives."""
    with Path(os.devnull).open("w") as nowhere:
        set_up_logs("truck-child", level="error", stream=nowhere)
        for line in sys.stdin:
            folder, kill_at = line.rsplit(maxsplit=1)
            points = Path(folder) / "points"
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    one_life(Path(folder), kill_at, points)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
