"""A gateway with the trust chain that can be killed at any named point, as a program: `chain_child.py`.

Like release_child.py: lines `FOLDER NAME#K` in, exit codes out, a forked process a life. The office is the
folder FOLDER/office, `FOLDER/now` says what time it is, and two ECUs are files: `c0` of two slots, `c1` of
one, which is erased before it is written.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from edge_agent.clock import boot_s
from edge_agent.interlocks.safety import Policy
from edge_agent.interlocks.vehicle import BenchVehicle
from edge_agent.safe_files import write_whole
from edge_agent.store.store import Store
from edge_agent.trust.counters import Counters
from edge_agent.trust.known_images import KnownImages
from edge_agent.trust.manifest_key import load_or_make_key
from edge_agent.trust.manifest_state import ManifestState
from edge_agent.trust.metadata import Metadata
from edge_agent.trust.metadata_source import BundleSource, OfficeSource
from edge_agent.trust.selection import TruckEcu, TruckEcus
from edge_agent.trust.trust_chain import TrustChain
from edge_agent.trust.trust_config import Roots
from edge_agent.trust.trust_files import TrustFiles
from edge_agent.trust.trust_store import TrustKeeper
from edge_agent.trust.trusted_time import TrustedTime
from edge_agent.trust.vehicle_manifest import VehicleManifests
from edge_agent.trust.verifier import Verifier
from edge_agent.update.directed import DirectedAuthority, bundles_folder
from edge_agent.update.kept import KeptImages
from edge_agent.update.updater import ComponentAccess, Timing, Updater
from firmware_flashers.base import (
    Capabilities,
    FirmwareImage,
    Flasher,
    FlashError,
    Identity,
    NoAnswer,
    OnProgress,
    TrustClass,
    no_progress,
)
from shared.backoff import Backoff
from shared.logs import set_up_logs
from shared.messages import Command, Installed
from shared.trust.keys import key_ring
from shared.trust.uptane.time_policy import TimePolicy
from shared.trust.uptane.vehicle import Vehicle
from sim.uptane_world import BUILT_AT

Kill = Callable[[str], None]
ECUS = (("c0", "SN-0", "brake-controller", "H0", 2), ("c1", "SN-1", "hoist-controller", "H1", 1))


class Chip:
    """An ECU whose flash is a file; every change of it is a moment in which the gateway may die."""

    def __init__(self, path: Path, kind: str, hardware: str, slots: int, kill: Kill) -> None:
        self._path = path
        self._kind, self._hardware = kind, hardware
        self._kill = kill
        self.capabilities = Capabilities(
            slots=slots,
            self_reverting=slots == 2,
            anti_rollback=False,
            trust_class=TrustClass.VERIFIES,
            isolated_bus=False,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Flasher]:
        yield self

    def _read(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._path.read_text())
        return said

    def _change(self, **changes: Any) -> None:
        write_whole(self._path, json.dumps({**self._read(), **changes}).encode())
        self._kill(f"{self._path.stem}.changed")

    async def identify(self) -> Identity:
        version, sha256 = self._read()["runs"] or (None, None)
        return Identity(
            kind=self._kind,
            hardware=self._hardware,
            version=version,
            sha256=sha256,
            in_bootloader=version is None,
        )

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        assert image.document, "its bootloader would refuse it"
        if self.capabilities.slots == 1:
            self._change(runs=None, armed=None)
        self._change(armed=[image.spec.version, image.spec.sha256])

    async def activate(self) -> None:
        said = self._read()
        if said["armed"] is not None:
            self._change(before=said["runs"], runs=said["armed"], armed=None)
        elif said["runs"] is None:
            raise NoAnswer("nothing to boot")

    async def verify(self, image: FirmwareImage) -> Identity:
        return await self.identify()

    async def confirm(self) -> None:
        self._change(before=None)

    async def revert(self) -> None:
        said = self._read()
        if said["before"] is None:
            raise FlashError("nothing on trial", code="nothing_to_revert", retryable=False, touched=False)
        self._change(runs=said["before"], before=None)


class Images:
    """The office's images, by the address that the chain or a command has of them."""

    def __init__(self, folder: Path, kill: Kill) -> None:
        self._folder = folder
        self._kill = kill

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
        path = self._folder / "gateway" / "images" / f"{sha256}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        source = self._folder / "office" / "image" / url.partition("/repo/image/")[2]
        if not path.exists():
            path.write_bytes(source.read_bytes())
        self._kill("download.whole")
        return path

    async def note_installed(self, component: str, sha256: str) -> None:
        self._kill("installed.noted")


async def chain_of(
    folder: Path, installed: Callable[[], Any], needed: Callable[[], Any], kill: Kill
) -> TrustChain:
    """The trust chain of the gateway, whose office is a folder."""
    gateway = folder / "gateway"
    trust = gateway / "trust"
    roots = Roots(
        director=(folder / "director.json").read_bytes(), image=(folder / "image.json").read_bytes()
    )
    keeper = await TrustKeeper.open(trust, roots)
    kill("store.opened")
    known = await KnownImages.open(trust)
    state = await ManifestState.open(trust)
    time = TrustedTime(
        keeper,
        TimePolicy(built_at=BUILT_AT),
        wall=lambda: datetime.fromisoformat((folder / "now").read_text()),
    )
    ecus = TruckEcus(
        ecus=tuple(
            TruckEcu(component=name, serial=serial, kind=kind, hardware=hardware)
            for name, serial, kind, hardware, _ in ECUS
        ),
        gateway=TruckEcu(component="", serial="gateway", kind="gateway", hardware="gateway"),
    )

    async def send(manifest: bytes) -> str | None:
        with (folder / "manifests").open("ab") as file:
            file.write(manifest + b"\n")
        kill("manifest.sent")
        return None

    async def vehicle() -> Vehicle:
        return ecus.vehicle("truck-7", await installed(), known)

    manifests = VehicleManifests(
        vehicle_id="truck-7",
        ecus=ecus,
        signer=load_or_make_key(gateway),
        state=state,
        known=known,
        installed=installed,
        now=time.now,
        send=send,
    )
    metadata = Metadata(
        keeper=keeper,
        files=TrustFiles(trust),
        office=BundleSource(folder=folder / "office"),
        time=time,
        vehicle=vehicle,
        alarm=manifests.alarm,
        learn=known.learn,
        needed=needed,
    )
    return TrustChain(
        keeper=keeper,
        time=time,
        known=known,
        ecus=ecus,
        source=OfficeSource(base="http://127.0.0.1:9", device_id="truck-7", token="", tls=lambda: False),
        metadata=metadata,
        manifests=manifests,
    )


async def tell_office(store: Store, office: Path, kill: Kill) -> None:
    """What mqtt_link and the office do: received durably first, then acknowledged."""
    while statuses := await store.next_statuses(20):
        with office.open("a") as file:
            for one in statuses:
                file.write(json.dumps({"store_id": store.store_id, **one.to_obj()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        kill("office.received")
        await store.acked([one.message_id for one in statuses], [])


async def live(folder: Path, kill: Kill) -> None:
    """From the start of the process to the end of the job and its last ack."""
    gateway = folder / "gateway"
    command = Command.from_json((folder / "command.json").read_bytes())
    chips = {
        name: Chip(folder / f"{name}.flash", kind, hardware, slots, kill)
        for name, _, kind, hardware, slots in ECUS
    }
    made: list[Any] = []

    async def installed() -> Sequence[Installed]:
        return await made[1].installed() if made else ()

    async with Store.open(gateway / "agent.db") as store:
        writing = False

        def statement(sql: str) -> None:
            # Called before each statement runs: before COMMIT all of a transaction is still undone.
            nonlocal writing
            word = sql.split(maxsplit=1)[0]
            if word == "BEGIN":
                writing = "IMMEDIATE" in sql
            elif writing and word == "COMMIT":
                kill("sql.COMMIT")

        await store._file.read(lambda db: db.set_trace_callback(statement))
        chain = await chain_of(folder, installed, lambda: made[0].needed() if made else (), kill)
        # Intervals are real ones; only the calendar is the test's.
        clock = replace(chain.time.clock(), boot_s=boot_s)
        verifier = Verifier(
            keys=key_ring([(folder / "public.pem").read_bytes()]),
            clock=clock,
            counters=await Counters.open(gateway / "counters.json"),
        )
        kept = KeptImages(gateway / "images")
        authority = DirectedAuthority(
            chain, verifier=verifier, kept=kept, bundles=bundles_folder(gateway), installed=installed
        )
        await authority.in_use(await store.live())
        if not await store.jobs():
            await store.take_command(command)
        updater = Updater(
            store,
            downloader=Images(folder, kill),
            verifier=verifier,
            authority=authority,
            components={
                name: ComponentAccess(kind=kind, hardware=hardware, open=chips[name].open)
                for name, _, kind, hardware, _ in ECUS
            },
            vehicle=BenchVehicle(),
            policy=Policy(),
            clock=clock,
            backoff=Backoff(first_s=0.005, most_s=0.02),
            timing=Timing(poll_s=0.05, refused_s=0.05, link_s=0.05, progress_s=0.05, rest_s=1.0),
            kept=kept,
            kill_point=kill,
        )
        made += [authority, updater]
        tasks = [asyncio.create_task(updater.run()), asyncio.create_task(chain.run())]
        async with asyncio.timeout(60):
            while await store.live():
                await asyncio.wait({asyncio.create_task(updater.ended.wait()), *tasks}, timeout=0.05)
                for task in tasks:
                    if task.done():
                        await task
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await tell_office(store, folder / "told", kill)


def one_life(folder: Path, kill_at: str) -> None:
    """Live, writing the kill points that were passed into the file `points`."""
    passed: list[str] = []
    wanted, _, number = kill_at.rpartition("#")

    def kill(name: str) -> None:
        passed.append(name)
        if name == wanted and passed.count(name) == int(number):
            (folder / "points").write_text("\n".join(passed))
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        asyncio.run(live(folder, kill))
    finally:
        (folder / "points").write_text("\n".join(passed))


def main() -> None:
    """Serve lives."""
    with Path(os.devnull).open("w") as nowhere:
        set_up_logs("chain-child", level="error", stream=nowhere)
        for line in sys.stdin:
            folder, kill_at = line.rsplit(maxsplit=1)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    one_life(Path(folder), kill_at)
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
