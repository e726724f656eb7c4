"""A two-ECU release (STM32 of one slot, ESP32 of two) killed at every journal write and in every phase.

The gateway is a process of its own (release_child.py) that is ended by SIGKILL; the ECUs are simulated MCUs
on one CAN hub. What goes with it: nothing, the ECUs' power, or the power of all, where the gateway also
loses what it had not synced (sim/power.c, see test_power_cuts.py), in another way each time. Then the
gateway lives again. It ends whole-new or whole-old, never a third, after another power cycle of both ECUs
too, and the office has exactly one final status.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import can
import pytest

from shared.messages import Command, CommandTarget
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.can_bus import hub_in_thread
from sim.mcu.assembly import McuSettings
from sim.mcu.esp32_mcu import Esp32Mcu, Esp32Settings, esp32_factory
from sim.mcu.esp_images import build_esp_image
from sim.mcu.faults import Faults
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.profile import EcuIdentity
from sim.mcu.server import Stm32Mcu, factory
from sim.mcu.trouble_codes import TroubleCodes
from sim.power import NoCompiler, Power, build
from sim.power_disk import Loss

CHILD = Path(__file__).with_name("release_child.py")
Live = Callable[[Path, str], int]
NEVER = "*#0"
PRIVATE, PUBLIC = new_key()
SECRET = secrets.token_bytes(32)
BYTES = 8 * 1024
BRAKES = {one: build_image(one, BYTES, DEFAULT_MAP.slot.start) for one in ("1.0.0", "2.0.0")}
DISPLAY = {one: build_esp_image(version=one, nbytes=BYTES) for one in ("4.0.0", "5.0.0")}
NEW = ("2.0.0", "5.0.0")
OLD = ("1.0.0", "4.0.0")


class Cut(Enum):
    """What goes beside the gateway's process."""

    GATEWAY = "gateway"
    ECUS_TOO = "gateway-and-ecus"
    POWER = "power-of-all"


WORN = TroubleCodes(always={0xC10000: 0x2F})
FAULTY = TroubleCodes(always={0xC10000: 0x2F}, of_version={"2.0.0": {0x000123: 0x08}}, after_s=0.1)
CASES = ("good", "bad_brakes", "bad_display")
"""Both images come up; the brakes' does not, when the display runs its new one; the display's does not."""


def target(component: str, kind: str, hardware: str, version: str, image: bytes, path: Path) -> CommandTarget:
    spec = FirmwareSpec(
        kind=kind,
        hardware=(hardware,),
        version=version,
        release_counter=int(version[0]),
        length=len(image),
        sha256=hashlib.sha256(image).hexdigest(),
    )
    path.write_bytes(image)
    document = make_document(spec, load_signer(PRIVATE), datetime(2030, 1, 1, tzinfo=UTC)).decode()
    return CommandTarget(
        component=component,
        version=version,
        sha256=spec.sha256,
        length=spec.length,
        document=document,
        url=path.as_uri(),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """What makes power cuts; None without a compiler."""
    with suppress(NoCompiler):
        return build(tmp_path_factory.mktemp("power"))
    return None


@pytest.fixture(scope="module")
def live(library: Path | None) -> Iterator[Live]:
    """One life of the gateway in a folder, killed at the k-th point of a name; returns the exit code."""
    with subprocess.Popen(
        [sys.executable, "-P", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **({} if library is None else {"LD_PRELOAD": str(library)})},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def act(folder: Path, kill_at: str) -> int:
            stdin.write(f"{folder} {kill_at}\n")
            stdin.flush()
            return int(stdout.readline())

        yield act
        stdin.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A truck as the factory left it, to be copied."""
    folder = tmp_path_factory.mktemp("model")
    images = folder / "gateway" / "images"
    images.mkdir(parents=True)
    (folder / "public.pem").write_bytes(PUBLIC)
    (folder / "secret").write_bytes(SECRET)
    (folder / "secret").chmod(0o600)
    at_the_factory = folder / "old-brakes"
    old = target("brakes", "brake-controller", "rev-b", "1.0.0", BRAKES["1.0.0"], at_the_factory)
    display = target("display", "display", "rev-a", "4.0.0", DISPLAY["4.0.0"], folder / "old-display")
    factory(folder / "brakes.flash", BRAKES["1.0.0"], old.document.encode())
    esp32_factory(folder / "display.flash", DISPLAY["4.0.0"], display.document.encode())
    kept = images / f"{old.sha256}.bin"
    kept.write_bytes(BRAKES["1.0.0"])
    (images / "kept.json").write_text(json.dumps({"brakes": {**old.to_obj(), "image": str(kept)}}))
    command = Command(
        command_id="c1",
        job_id="job-1",
        attempt=1,
        revision=1,
        kind="install",
        targets=(
            target("brakes", "brake-controller", "rev-b", "2.0.0", BRAKES["2.0.0"], folder / "new-brakes"),
            target("display", "display", "rev-a", "5.0.0", DISPLAY["5.0.0"], folder / "new-display"),
        ),
    )
    (folder / "command.json").write_bytes(command.to_json())
    return folder


class Truck:
    """Two powered ECUs on a hub, and the gateway's folder."""

    def __init__(self, model: Path, folder: Path, case: str) -> None:
        self.folder = folder
        self.case = case
        self.gateway = folder / "gateway"
        shutil.copytree(model, folder)
        # Where the copy's kept image is.
        record = self.gateway / "images" / "kept.json"
        record.write_text(record.read_text().replace(str(model), str(folder)))
        commanded = folder / "command.json"
        commanded.write_text(commanded.read_text().replace(model.as_uri(), folder.as_uri()))
        if case == "bad_brakes":
            (folder / "brakes_bad").touch()
        self._stack = ExitStack()

    def __enter__(self) -> Truck:
        with ExitStack() as stack:
            channel = self.folder / "can.sock"
            stack.enter_context(hub_in_thread(channel, bitrate=None))
            (self.folder / "channel").write_text(str(channel))
            buses = [
                stack.enter_context(can.Bus(str(channel), interface="quarry-hub", ignore_config=True))
                for _ in range(2)
            ]
            self.brakes = stack.enter_context(
                Stm32Mcu(
                    McuSettings(
                        flash_file=self.folder / "brakes.flash",
                        identity=EcuIdentity(kind="brake-controller", hardware="rev-b"),
                        trouble=FAULTY if self.case == "faulty_brakes" else WORN,
                        public_keys=(PUBLIC,),
                        security_secret=SECRET,
                    ),
                    buses[0],
                )
            )
            self.display = stack.enter_context(
                Esp32Mcu(
                    Esp32Settings(
                        flash_file=self.folder / "display.flash",
                        identity=EcuIdentity(kind="display", hardware="rev-a"),
                        public_keys=(PUBLIC,),
                        security_secret=SECRET,
                        request_id=0x7E1,
                        response_id=0x7E9,
                    ),
                    buses[1],
                    faults=Faults(bad_app=self.case == "bad_display"),
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def power_cycle(self) -> None:
        for mcu in (self.brakes, self.display):
            mcu.power_cycle()

    @property
    def runs(self) -> tuple[str, str]:
        """The versions that run, by the flash's content and not by anybody's word."""
        brakes = self.brakes.boots().spec
        assert brakes is not None, "torn"
        assert not self.brakes.uds.in_bootloader
        assert self.brakes.content(BYTES) == BRAKES[brakes.version]
        running = self.display.uds.running
        assert running is not None
        content = self.display.content(running[0], BYTES)
        [version] = [one for one, image in DISPLAY.items() if image == content]
        return brakes.version, version

    def check_end(self) -> None:
        received = [json.loads(line) for line in (self.folder / "office").read_text().splitlines()]
        once = sorted({one["message_id"]: one for one in received}.values(), key=lambda one: one["seq"])
        # Progress is thinned, so that numbers are left out; none is given twice.
        assert len({one["seq"] for one in once}) == len(once)
        [final] = [one for one in once if one["status"] in {"done", "error", "cancelled"}]
        assert once[-1] is final
        counters = self.gateway / "counters.json"
        for _ in range(2):
            if self.case == "good":
                assert self.runs == NEW
                assert final["status"] == "done"
                assert [one["version"] for one in final["targets"]] == list(NEW)
                assert json.loads(counters.read_text()) == {"brakes": 2, "display": 5}
            else:
                assert self.runs == OLD
                assert final["status"] == "error"
                assert not counters.exists()
            # What was on trial, or waited for its start, would show itself.
            self.power_cycle()


def passed(folder: Path) -> list[str]:
    return (folder / "points").read_text().splitlines()


def calm_points(live: Live, model: Path, folder: Path, case: str) -> list[str]:
    with Truck(model, folder, case) as truck:
        assert live(folder, NEVER) == 0
        truck.check_end()
    return passed(folder)


class Killer:
    """Kills a truck's gateway, and what goes with it. `library` is needed for Cut.POWER."""

    def __init__(self, live: Live, truck: Truck, library: Path | None, cut: Cut) -> None:
        self._live = live
        self._truck = truck
        self._power = None
        if cut is Cut.POWER:
            if library is None:
                pytest.skip("no power cuts here: there is no C compiler")
            self._power = Power(library, truck.gateway, truck.folder)
        self._cut = cut

    def life(self, point: str, seed: int = 0, *, disk_act: int = 0) -> bool:
        """One life that is killed at a point, or instead of an act on the disk; whether it was reached."""
        if self._power is not None:
            self._power.on()
            self._power.kill_at(disk_act)
        code = self._live(self._truck.folder, point)
        assert code in {0, -signal.SIGKILL}, point
        if code == 0:
            return False
        if self._cut is not Cut.GATEWAY:
            self._truck.power_cycle()
        if self._power is not None:
            self._power.cut(list(Loss)[seed % 3], seed)
        return True

    def last_life(self) -> None:
        """One that nothing ends."""
        assert not self.life(NEVER)


def kill_once(
    live: Live,
    model: Path,
    folder: Path,
    case: str,
    point: str,
    cut: Cut,
    library: Path | None,
    seed: int = 0,
) -> bool:
    """Whether the point was reached again; how often progress is told differs from life to life."""
    with Truck(model, folder, case) as truck:
        killer = Killer(live, truck, library, cut)
        killed = killer.life(point, seed)
        if killed:
            killer.last_life()
        truck.check_end()
    shutil.rmtree(folder)
    return killed


SAMPLE = {
    "good": (
        "journal.before:flashing#2",
        "brakes.erasing#1",
        "journal.after:activating#2",
        "journal.before:confirming#1",
        "journal.after:confirming#1",
        "display.confirmed#1",
    ),
    "bad_brakes": ("journal.before:restoring#1", "brakes.erasing#2", "display.reverted#1"),
    "bad_display": ("display.activated#1", "journal.after:restoring#1"),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_in_the_phases_that_matter_it_ends_whole(
    live: Live, library: Path | None, model: Path, tmp_path: Path, case: str
) -> None:
    cuts = [one for one in Cut if library is not None or one is not Cut.POWER]
    for number, point in enumerate(SAMPLE[case]):
        cut = cuts[number % len(cuts)]
        assert kill_once(live, model, tmp_path / f"t{number}", case, point, cut, library, number), point


def test_the_hardware_is_asked_before_memory_is_believed(live: Live, model: Path, tmp_path: Path) -> None:
    """The journal says that the release is committed; meanwhile somebody gave the brakes another part."""
    truck = Truck(model, tmp_path / "t", "good")
    with truck:
        assert Killer(live, truck, None, Cut.GATEWAY).life("journal.after:confirming#1")
        assert truck.runs == NEW
    shutil.copyfile(model / "brakes.flash", truck.folder / "brakes.flash")
    with truck:
        assert truck.runs[0] == OLD[0]
        Killer(live, truck, None, Cut.GATEWAY).last_life()
        truck.check_end()


@pytest.mark.parametrize("case", ["good", "faulty_brakes"])
def test_killed_in_the_middle_of_a_health_check_it_ends_whole(
    live: Live, model: Path, tmp_path: Path, case: str
) -> None:
    """What was there before the release is known from the journal; the new fault is not taken for it."""
    for number, point in enumerate(("brakes.codes_read#1", "display.codes_read#3", "brakes.codes_read#3")):
        with Truck(model, tmp_path / f"t{number}", case) as truck:
            (truck.folder / "asks_health").write_text("2" if case == "faulty_brakes" else "30")
            killer = Killer(live, truck, None, Cut.GATEWAY)
            assert killer.life(point), point
            killer.last_life()
            truck.check_end()


@pytest.mark.parametrize("case", CASES)
def test_cut_at_any_act_on_the_disk_again_and_again_it_ends_whole(
    live: Live, library: Path | None, model: Path, tmp_path: Path, case: str
) -> None:
    walk_of_cuts(live, library, model, tmp_path / "t", case, seed=1)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_walks_of_power_cuts_end_whole(
    live: Live, library: Path | None, model: Path, tmp_path: Path, case: str
) -> None:
    for seed in range(2, 42):
        walk_of_cuts(live, library, model, tmp_path / f"t{seed}", case, seed)


def walk_of_cuts(live: Live, library: Path | None, model: Path, folder: Path, case: str, seed: int) -> None:
    """Up to four lives that end by a power cut at a random act on the disk, then one that does not."""
    dice = random.Random(f"{case}-{seed}")
    with Truck(model, folder, case) as truck:
        killer = Killer(live, truck, library, Cut.POWER)
        for life in range(dice.randint(2, 4)):
            if not killer.life(NEVER, seed + life, disk_act=dice.randint(1, 250)):
                break
        else:
            killer.last_life()
        truck.check_end()
    shutil.rmtree(folder)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cut", Cut, ids=lambda cut: cut.value)
@pytest.mark.parametrize("case", CASES)
def test_killed_at_each_point_it_ends_whole(
    live: Live, library: Path | None, model: Path, tmp_path: Path, case: str, cut: Cut
) -> None:
    points = calm_points(live, model, tmp_path / "calm", case)
    needed = {"good": "confirming", "bad_brakes": "restoring", "bad_display": "restoring"}[case]
    for name in (f"journal.before:{needed}", f"journal.after:{needed}", "sql.COMMIT"):
        assert name in points
    killed = 0
    for place, name in enumerate(points):
        point = f"{name}#{points[: place + 1].count(name)}"
        killed += kill_once(live, model, tmp_path / "t", case, point, cut, library, place)
    assert killed > len(points) * 0.9
