"""The gateway's power cut at every act on its disk: all that was not synced is lost, and no promise breaks.

SIGKILL never loses an unsynced page, so the agent's writers run once under a recording layer (sim/power.c:
each write, sync, rename and removal below the data folder, SQLite's own too). For each act the disk is made
as a cut at that moment may leave it, in three ways (sim/power_disk.py): nothing unsynced; any of it, sectors
and names in any order; a journalled file system. Then the agent's own readers look at it.

Chosen because it is exhaustive and needs a C compiler only. Rejected: a guest on its own file system (a boot
for each cut, and ext4 hides faults: it writes the content before such a rename); a VFS of SQLite's (sees no
other file).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.delivery import image_folder
from edge_agent.interlocks.hold import UNREADABLE, read_hold
from edge_agent.office.enrol import read_credentials
from edge_agent.store.store import Store
from edge_agent.trust import manifest_state, trust_store
from edge_agent.trust.counters import Counters
from edge_agent.trust.manifest_key import load_or_make_key
from edge_agent.trust.trust_files import TrustFiles
from edge_agent.update.kept import KeptImages
from shared.messages import Command
from shared.states import UpdateState
from sim.power import NoCompiler, Power, build
from sim.power_disk import Disk, Loss, put_back, read_log

CHILD = Path(__file__).with_name("power_child.py")
ROOT = Path(__file__).parents[3]
STATES = [one.value for one in UpdateState]
STEPS_AT_ONCE = 7
"""The thin run looks at every so manieth act of each way of losing."""


class Recorded:
    """One life of the agent's writers: the folder before it, its log, its promises."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.data = folder / "data"
        self.data.mkdir(mode=0o700)
        power = Power(library, self.data, folder)
        power.on()
        done = subprocess.run(
            [sys.executable, "-P", str(CHILD), str(self.data), str(folder / "promises")],
            env={**power.environment(), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        self.acts = list(read_log(power.log))
        lines = (folder / "promises").read_text().splitlines()
        self.promises: list[tuple[int, str, Any]] = [tuple(json.loads(line)) for line in lines]


@pytest.fixture
def looked_at() -> Iterator[Path]:
    """A folder in memory where there is one: nothing that the readers write there need be safe."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder) / "data"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    try:
        library = build(folder)
    except NoCompiler as error:
        pytest.skip(f"no power cuts here: {error.message}. {error.advice}")
    return Recorded(folder, library)


def disks(
    recorded: Recorded, loss: Loss, every: int, offset: int
) -> Iterator[tuple[int, dict[str, bytes | None]]]:
    """What is left of the disk after the first `n` acts, for each n that is looked at."""
    shutil.rmtree(recorded.data)
    recorded.data.mkdir(mode=0o700)
    disk = Disk(recorded.data)
    for number, act in enumerate(recorded.acts):
        if number % every == offset:
            yield number, disk.left(loss, random.Random(number))
        disk.replay(act, loss=loss)
    yield len(recorded.acts), disk.left(loss, random.Random(0))


async def broken_promises(data: Path, promises: list[tuple[int, str, Any]], acts: int) -> list[str]:
    """What the agent's readers find wrong; `acts` were done of the life."""
    kept: dict[str, Any] = {}
    seqs: dict[str, list[Any]] = {"told": [], "acked": [], "state": [], "command": []}
    held_later = kept_held = None
    for at, name, value in promises:
        if at <= acts:
            if name in seqs:
                seqs[name] += value if name in {"told", "acked"} else [value]
            kept[name] = value
            kept_held = value if name == "held" else kept_held
        elif name == "held" and held_later is None:
            held_later = value
    wrong = []

    def must(holds: object, what: str) -> None:
        if not holds:
            wrong.append(what)

    credentials = read_credentials(data)
    if "enrolled" in kept:
        must(credentials.enrolled is not None, "the enrolment is lost")
    counters = await Counters.open(data / "counters.json")
    must(counters.highest("brakes") >= kept.get("counter", 0), "a counter fell")
    hold = read_hold(data)
    if kept_held is not None and held_later is None:
        must((hold is not None) is kept_held, f"held is not {kept_held}")
    must(hold != UNREADABLE, "a hold of nobody's")
    if "key" in kept:
        load_or_make_key(data)
        digest = hashlib.sha256((data / "manifest-key.pem").read_bytes()).hexdigest()
        must(digest == kept["key"], "the truck's key changed")
    trust = data / "trust"
    told = [value for _, name, value in promises if name == "trusted"]
    try:
        found = hashlib.sha256(trust_store._read(trust).dump()).hexdigest()
        must(told.index(found) >= told.index(kept.get("trusted", told[0])), "trust fell back")
    except FileNotFoundError:
        must("trusted" not in kept, "trust is lost")
    state = (await manifest_state.ManifestState.open(trust)).state if trust.exists() else None
    if "manifest_state" in kept:
        must(state is not None and state.seq >= kept["manifest_state"], "a manifest's number fell")
    if "selected" in kept:
        must(TrustFiles(trust).load(kept["selected"]) is not None, "a selection is lost")
    if "asked" in kept:
        must((data / "asks" / f"{kept['asked']}.json").exists(), "what a person asked is lost")
    images = data / "images"
    for whole in images.glob("*.bin"):
        right = hashlib.sha256(whole.read_bytes()).hexdigest() == whole.stem
        must(right, "an image has its name and not its content")
    if "image" in kept:
        must((images / f"{kept['image']}.bin").exists(), "an image is lost")
    image_folder.read_bases(images)
    of = await KeptImages(images).of("brakes")
    if "kept" in kept:
        must(of is not None and of.version == "2.0.0", "the way back is lost")
    if "before" in kept:
        must(await KeptImages(images).was_begun(("job-1", 1), "another"), "what was before is lost")
    must(
        not (data / "images" / "kept.json").exists() or of is not None, "the record of kept images is damaged"
    )
    async with Store.open(data / "agent.db") as store:
        must(not store.was_replaced, "the database is damaged")
        must(store.store_id == kept.get("store", store.store_id), "it is another database")
        for job_id in seqs["command"]:
            must(await store.entry(job_id, 1), f"{job_id} is lost")
        for job_id, name in seqs["state"]:
            entry = await store.entry(job_id, 1)
            must(entry is not None and STATES.index(entry.state) >= STATES.index(name), f"{job_id} fell back")
        left = {one.message_id: one for one in await store.next_statuses()}
        acked = set(seqs["acked"])
        # An ack that was under way may have been taken.
        acked_later = {one for at, name, value in promises if name == "acked" and at > acts for one in value}
        for seq, message_id, step in seqs["told"]:
            if message_id in acked:
                must(message_id not in left, f"{step} is told again behind its ack")
            elif message_id not in acked_later:
                must(message_id in left and left[message_id].seq == seq, f"status {seq} {step} is lost")
        again = Command(command_id="c9", job_id="job-9", attempt=1, revision=1, kind="cancel")
        await store.take_command(again)
        [*_, newest] = await store.next_statuses()
        must(newest.seq > max((seq for seq, _, _ in seqs["told"]), default=0), "a number is given twice")
        must(await store.next_manifest_seq() > kept.get("manifest", 0), "a manifest's number is given twice")
    return wrong


async def every_cut(recorded: Recorded, folder: Path, loss: Loss, every: int, offset: int) -> None:
    broken = {}
    seen = 0
    for acts, left in disks(recorded, loss, every, offset):
        folder.mkdir(exist_ok=True)
        put_back(folder, left)
        wrong = await broken_promises(folder, recorded.promises, acts)
        seen += 1
        if wrong:
            done = recorded.acts[acts - 1] if acts else None
            name = "" if done is None else f"{done.op} {os.path.relpath(done.path, recorded.data)}"
            broken[f"{acts} after {name}"] = wrong
    assert not broken
    assert seen >= len(recorded.acts) // every


def test_the_recording_sees_every_kind_of_act(recorded: Recorded) -> None:
    assert {act.op for act in recorded.acts} >= set("CWTSDMUR")
    synced = {Path(act.path).name for act in recorded.acts if act.op == "S"}
    assert {"agent.db", "agent.db-wal", ".counters.json.part", ".kept.json.part"} <= synced


@pytest.mark.parametrize("loss", Loss)
async def test_a_power_cut_breaks_no_promise(recorded: Recorded, looked_at: Path, loss: Loss) -> None:
    await every_cut(recorded, looked_at, loss, STEPS_AT_ONCE, list(Loss).index(loss))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("loss", Loss)
async def test_a_power_cut_at_each_act_breaks_no_promise(
    recorded: Recorded, looked_at: Path, loss: Loss
) -> None:
    await every_cut(recorded, looked_at, loss, 1, 0)
