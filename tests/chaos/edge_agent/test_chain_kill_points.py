"""The trust chain in the loop of a two-ECU release that is killed at its journal writes (chain_child.py).

After the kill either nothing has changed around the truck, or everything has: the metadata expired, keys were
rotated, another release is directed and the first one is not served any more. What had begun is finished by
what was trusted when it was selected; what had not does not begin. Whole-new or whole-old, never a third.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge_agent.trust.trust_store import read_store
from shared.messages import Command, CommandTarget
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from shared.trust.uptane.manifest import read_manifest
from shared.trust.uptane.matching import served_name
from sim.uptane_world import UptaneWorld, image_bytes

CHILD = Path(__file__).with_name("chain_child.py")
Live = Callable[[Path, str], int]
NEVER = "never#0"
OLD, NEW = "1.0.0", "1.1.0"


def serve(folder: Path, world: UptaneWorld) -> None:
    """What the office has now."""
    office = folder / "office"
    shutil.rmtree(office, ignore_errors=True)
    for (repository, name), raw in world.served.items():
        path = office / repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    (folder / "now").write_text(world.now.isoformat())


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """One life of the gateway in a folder, killed at the k-th point of a name; returns the exit code."""
    with subprocess.Popen(
        [sys.executable, "-P", str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A truck as it is before the release, and an office as it is when everything has moved on."""
    folder, later = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("later")
    world = UptaneWorld()
    private, public = new_key()
    (folder / "public.pem").write_bytes(public)
    (folder / "director.json").write_bytes(world.director.published["1.root.json"])
    (folder / "image.json").write_bytes(world.image.published["1.root.json"])
    images = folder / "gateway" / "images"
    images.mkdir(parents=True)
    for n, ecu in enumerate(world.vehicle.ecus):
        spec = world.spec(ecu, OLD, 1)
        runs = {"runs": [OLD, spec.sha256], "before": None, "armed": None}
        (folder / f"c{n}.flash").write_text(json.dumps(runs))
        if n == 1:
            # From before the chain: kept by its document.
            path = images / f"{spec.sha256}.bin"
            path.write_bytes(image_bytes(ecu.kind, OLD))
            document = make_document(spec, load_signer(private), datetime(2030, 1, 1, tzinfo=UTC)).decode()
            kept = {"version": OLD, "sha256": spec.sha256, "length": spec.length, "document": document}
            (images / "kept.json").write_text(json.dumps({"c1": {**kept, "image": "IMAGES/" + path.name}}))
    release = world.release(NEW, 2, document=world.ecu_document)
    world.direct(release)
    targets = tuple(
        CommandTarget(
            component=f"c{n}",
            version=one.version,
            sha256=one.sha256,
            length=one.length,
            document="",
            url=f"http://office/repo/image/{served_name(one.spec.target_path, one.sha256)}",
        )
        for n, one in enumerate(release.targets)
    )
    command = Command(command_id="c", job_id="job-1", attempt=1, revision=1, kind="install", targets=targets)
    (folder / "command.json").write_bytes(command.to_json())
    serve(folder, world)
    world.now += timedelta(days=60)
    for role in ("image/timestamp", "image/brake-controller", "director/targets"):
        world.rotate(role)
    world.served = {key: raw for key, raw in world.served.items() if NEW not in key[1]}
    world.direct(world.release("1.2.0", 3, document=world.ecu_document))
    serve(later, world)
    return folder, later


class Truck:
    """One truck's folder."""

    def __init__(self, models: tuple[Path, Path], folder: Path) -> None:
        self.folder, self._later = folder, models[1]
        shutil.copytree(models[0], folder)
        kept = folder / "gateway" / "images" / "kept.json"
        kept.write_text(kept.read_text().replace("IMAGES", str(kept.parent)))

    def move_on(self) -> None:
        for name in ("office", "now"):
            shutil.rmtree(self.folder / name) if name == "office" else (self.folder / name).unlink()
            source = self._later / name
            if name == "office":
                shutil.copytree(source, self.folder / name)
            else:
                shutil.copy(source, self.folder / name)

    @property
    def runs(self) -> list[str | None]:
        found: list[str | None] = []
        for n in (0, 1):
            said = json.loads((self.folder / f"c{n}.flash").read_text())
            assert said["before"] is None, "on trial"
            found.append(said["runs"][0] if said["runs"] else None)
        return found

    def check_end(self, *, moved_on: bool) -> str:
        """Whole, told once, and the trust on the disk agrees; returns how it ended."""
        lines = (self.folder / "told").read_text().splitlines()
        once = {one["message_id"]: one for one in map(json.loads, lines)}
        [final] = [one for one in once.values() if one["status"] in {"done", "error", "cancelled"}]
        store = read_store(self.folder / "gateway" / "trust")
        if final["status"] == "done":
            assert self.runs == [NEW, NEW]
            assert store.counters == {"SN-0": 2, "SN-1": 2}
        else:
            assert moved_on, final
            assert self.runs == [OLD, OLD]
            assert store.counters == {}
            # Before its selection stood in the journal the command means another release than is directed.
            assert final["error"]["code"] in {"selection_changed", "document_mismatch"}, final
        manifests = [read_manifest(raw) for raw in (self.folder / "manifests").read_bytes().splitlines()]
        # One that was sent and not yet noted as sent may come twice, byte for byte.
        by_number = {one.signed.seq: one for one in manifests}
        assert all(by_number[one.signed.seq] == one for one in manifests)
        status: str = final["status"]
        return status


def calm_points(live: Live, models: tuple[Path, Path], folder: Path) -> list[str]:
    truck = Truck(models, folder)
    assert live(folder, NEVER) == 0
    assert truck.check_end(moved_on=False) == "done"
    return (folder / "points").read_text().splitlines()


def kill_once(
    live: Live, models: tuple[Path, Path], folder: Path, point: str, *, moved_on: bool
) -> str | None:
    """How it ended; None when the point was not reached in this life."""
    truck = Truck(models, folder)
    code = live(folder, point)
    assert code in {0, -signal.SIGKILL}, point
    if code == 0:
        shutil.rmtree(folder)
        return None
    if moved_on:
        truck.move_on()
    assert live(folder, NEVER) == 0, point
    ended = truck.check_end(moved_on=moved_on)
    shutil.rmtree(folder)
    return ended


SAMPLE = (
    ("store.opened#1", "error"),
    ("act.after:look#1", "error"),
    ("journal.after:downloading#1", "error"),
    ("journal.before:waiting#1", "error"),
    # `flashing` stands in the journal: an ECU may be torn.
    ("journal.after:flashing#1", "done"),
    ("c0.changed#1", "done"),
    ("c1.changed#1", "done"),
    ("journal.before:confirming#1", "done"),
    ("journal.after:confirming#1", "done"),
    ("journal.before:done#1", "done"),
)


@pytest.mark.parametrize(("point", "ends"), SAMPLE)
def test_killed_before_everything_moves_on_it_ends_whole(
    live: Live, models: tuple[Path, Path], tmp_path: Path, point: str, ends: str
) -> None:
    assert kill_once(live, models, tmp_path / "t", point, moved_on=True) == ends


@pytest.mark.parametrize("point", ["act.after:look#1", "c1.changed#1", "journal.after:confirming#1"])
def test_killed_where_it_matters_it_ends_new(
    live: Live, models: tuple[Path, Path], tmp_path: Path, point: str
) -> None:
    assert kill_once(live, models, tmp_path / "t", point, moved_on=False) == "done"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("moved_on", [False, True], ids=["calm", "moved-on"])
def test_killed_at_each_point_it_ends_whole(
    live: Live, models: tuple[Path, Path], tmp_path: Path, moved_on: bool
) -> None:
    points = calm_points(live, models, tmp_path / "calm")
    ends = []
    for place, name in enumerate(points):
        point = f"{name}#{points[: place + 1].count(name)}"
        ends.append(kill_once(live, models, tmp_path / "t", point, moved_on=moved_on))
    assert ends.count(None) < len(points) * 0.1
    assert set(ends) - {None} == ({"done", "error"} if moved_on else {"done"})
