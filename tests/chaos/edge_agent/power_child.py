"""Everything that the agent writes into its data folder, once, saying after each what must be safe now.

Run as `power_child.py DATA PROMISES` under sim/power.c: a line of PROMISES is a JSON list, (acts on the disk
so far, name, value). An act that is under way may be on the disk already, whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import struct
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.delivery import image_folder
from edge_agent.delivery.downloader import Downloader
from edge_agent.delivery.transfer import Network
from edge_agent.hands.asks import Ask, leave
from edge_agent.interlocks.hold import Hold, release_hold, set_hold
from edge_agent.office.enrol import Credentials, Enrolled, write_credentials
from edge_agent.store.journal import Change, Entry
from edge_agent.store.release import Former
from edge_agent.store.store import Store
from edge_agent.trust import known_images, manifest_state, trust_store
from edge_agent.trust.counters import Counters
from edge_agent.trust.manifest_key import load_or_make_key
from edge_agent.trust.trust_files import KeptSelection, TrustFiles
from edge_agent.update.kept import KeptImages
from edge_agent.update.update_events import Activated, Event, Fetched, Fits, Proved, Ready, Staged, Verified
from edge_agent.update.update_machine import decide
from shared.messages import Command, CommandTarget, TargetResult
from sim.uptane_world import UptaneWorld

IMAGE = bytes(range(256)) * 48
SHA256 = hashlib.sha256(IMAGE).hexdigest()
FORMERS = {"brakes": Former(version="1.0.0", sha256="0" * 64, is_kept=True)}


class Promises:
    """What is said to be safe, and at which act."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._control = Path(os.environ["QUARRY_POWER_CONTROL"])

    def say(self, name: str, value: Any) -> None:
        acts = struct.unpack("<qqqq", self._control.read_bytes())[3]
        with self._path.open("a") as file:
            file.write(json.dumps([acts, name, value]) + "\n")


def command(job_id: str) -> Command:
    target = CommandTarget(
        component="brakes", version="2.0.0", sha256=SHA256, length=len(IMAGE), document="{}", url="x"
    )
    return Command(
        command_id=f"c-{job_id}", job_id=job_id, attempt=1, revision=1, kind="install", targets=(target,)
    )


async def journal(data: Path, promises: Promises) -> None:
    """Two jobs through the store, and the office's acks of the first."""
    result = TargetResult(component="brakes", version="2.0.0", sha256=SHA256)
    events: tuple[Event, ...] = (
        *(Fits(), Fetched("image"), Verified(), Ready(), Staged(), Activated(), Proved(result)),
    )
    for job_id in ("job-1", "job-2"):
        # Opened anew for each: a checkpoint and a fresh log of the database in between.
        async with Store.open(data / "agent.db") as store:
            promises.say("store", store.store_id)
            await store.take_command(command(job_id))
            promises.say("command", job_id)
            for event in events:
                entry: Entry | None = await store.entry(job_id, 1)
                assert entry is not None
                move = decide(entry, event)
                await store.record(Change(entry=move.entry, report=move.report))
                promises.say("state", [job_id, move.entry.state])
            waiting = await store.next_statuses()
            # These left the truck: their numbers are never given again.
            promises.say("told", [[one.seq, one.message_id, one.step] for one in waiting])
            if job_id == "job-1":
                await store.acked([one.message_id for one in waiting])
                promises.say("acked", [one.message_id for one in waiting])
            promises.say("manifest", await store.next_manifest_seq())


async def small_files(data: Path, promises: Promises) -> None:
    """Every small file beside the database."""
    enrolled = Enrolled(
        device_id="truck-1",
        mqtt_host="127.0.0.1",
        mqtt_port=1883,
        http_token="s" * 43,
        mqtt_password="s" * 43,
    )
    write_credentials(data, Credentials(enrolled=enrolled))
    promises.say("enrolled", "truck-1")
    counters = await Counters.open(data / "counters.json")
    for counter in (2, 3):
        await counters.raise_to("brakes", counter)
        promises.say("counter", counter)
    set_hold(data, Hold(by="somebody", why="a test"))
    promises.say("held", True)
    release_hold(data)
    promises.say("held", False)
    load_or_make_key(data)
    promises.say("key", hashlib.sha256((data / "manifest-key.pem").read_bytes()).hexdigest())
    trust = data / "trust"
    world = UptaneWorld()
    first = world.store()
    world.direct(world.release("1.1.0", 2))
    for store in (first, world.verify(first).store):
        trust_store._write(trust, store)
        promises.say("trusted", hashlib.sha256(store.dump()).hexdigest())
    for seq in (1, 2):
        state = manifest_state.State(store_id="a", seq=seq)
        manifest_state._write(trust / "manifest.json", trust_store.sealed(msgspec.json.encode(state)))
        promises.say("manifest_state", seq)
    known_images._write(trust / "known.json", trust_store.sealed(b"[]"))
    promises.say("known", True)
    outcome = world.verify(first)
    assert outcome.selection is not None
    kept = KeptSelection(
        selection=outcome.selection, store=outcome.store, vehicle=world.vehicle, offline=False, files={}
    )
    promises.say("selected", TrustFiles(trust).keep(kept))
    leave(data, Ask(ask_id="ask-1", kind="retry", job_id="job-1", by="somebody", at=datetime.now(UTC)))
    promises.say("asked", "ask-1")


async def images(data: Path, promises: Promises) -> None:
    """A downloaded image, and what is remembered of it."""
    folder = data / "images"
    async with Downloader(folder, Network()):
        pass
    part, whole = folder / f"{SHA256}.part", folder / f"{SHA256}.bin"
    with image_folder.open_part(part, 0) as file:
        for begin in range(0, len(IMAGE), 4096):
            image_folder.write_all(file, IMAGE[begin : begin + 4096])
    image_folder.settle(part, whole)
    promises.say("image", SHA256)
    image_folder.note_base(folder, "brakes", SHA256)
    kept = KeptImages(folder)
    target = command("job-1").targets[0]
    await kept.remember_before(("job-1", 1), "journal", FORMERS)
    promises.say("before", "job-1")
    await kept.keep(target, str(whole))
    promises.say("kept", "2.0.0")


async def main(data: Path, promises: Promises) -> None:
    await small_files(data, promises)
    await images(data, promises)
    await journal(data, promises)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Promises(Path(sys.argv[2]))))
