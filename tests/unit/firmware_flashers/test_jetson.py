"""The gateway's A/B flasher against a boot loader: every answer counts, silence and doubt refuse."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firmware_flashers import jetson, jetson_slots
from firmware_flashers.base import (
    BadImage,
    FirmwareImage,
    FlashError,
    Identity,
    NotProved,
    Progress,
    TrustClass,
    WrongEcu,
)
from firmware_flashers.jetson import JetsonFlasher, UnknownSlot
from firmware_flashers.jetson_settings import JetsonSettings, Slot
from firmware_flashers.jetson_slots import Note, SlotBusy, SlotFailed, judge_unmounted, read_note
from shared.errors import ConfigError
from shared.release import FirmwareSpec

PROGRAM = Path(__file__).parent / "fake_boot_loader.py"
SLOT_BYTES = 64 * 1024


def raw_image(version: str, nbytes: int = 30_000) -> bytes:
    body = hashlib.shake_256(version.encode()).digest(nbytes)
    return f"image {version} {nbytes} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def image(
    version: str, *, nbytes: int = 30_000, kind: str = "gateway", hardware: str = "G1"
) -> FirmwareImage:
    data = raw_image(version, nbytes)
    spec = FirmwareSpec(
        kind=kind,
        hardware=(hardware,),
        version=version,
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return FirmwareImage(spec=spec, data=data, document=b"")


class Gateway:
    """The machine: two slots, a boot loader, and what the flasher keeps."""

    def __init__(self, folder: Path, *, made: bool = True) -> None:
        self.folder = folder
        self.state = folder / "loader.json"
        if not made:
            return
        for slot in "ab":
            content = raw_image("1.0.0") if slot == "a" else b"\xff" * 100
            (folder / f"slot_{slot}").write_bytes(content.ljust(SLOT_BYTES, b"\0"))
        self.loader("make")

    def command(self, *words: str) -> tuple[str, ...]:
        return (sys.executable, "-I", "-S", str(PROGRAM), str(self.state), *words)

    def loader(self, *words: str) -> None:
        subprocess.run(self.command(*words), check=True, timeout=60)

    def settings(self, **changes: Any) -> JetsonSettings:
        values: dict[str, Any] = {
            "component": "gateway",
            "kind": "gateway",
            "hardware": "G1",
            "slots": tuple(Slot(name=slot, path=self.folder / f"slot_{slot}") for slot in "ab"),
            "note_file": self.folder / "note.json",
            "current_slot_command": self.command("current"),
            "switch_command": self.command("switch", "{slot}"),
            "version_command": self.command("version"),
            "confirm_command": self.command("confirm"),
            "reboot_command": self.command("reboot"),
            "boot_id_file": self.folder / "loader.json.boot_id",
        }
        return JetsonSettings(**values | changes)

    def flasher(self, **changes: Any) -> JetsonFlasher:
        return JetsonFlasher(self.settings(**changes))

    def now(self) -> dict[str, Any]:
        return dict(json.loads(self.state.read_text()))

    def change(self, **values: Any) -> None:
        self.state.write_text(json.dumps(self.now() | values))

    def calls(self, verb: str) -> list[str]:
        return [call for call in self.now()["calls"] if call.split()[0] == verb]

    def note(self) -> Note:
        return read_note(self.folder / "note.json")


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


async def flash(flasher: JetsonFlasher, new: FirmwareImage) -> Identity:
    await flasher.stage(new)
    await flasher.activate()
    identity = await flasher.verify(new)
    await flasher.confirm()
    return identity


async def test_an_update_goes_its_whole_way(gateway: Gateway) -> None:
    flasher, new = gateway.flasher(), image("2.0.0")
    before = await flasher.identify()
    assert before == Identity(
        kind="gateway", hardware="G1", version="1.0.0", sha256=None, in_bootloader=False
    )
    seen: list[Progress] = []
    await flasher.stage(new, progress=seen.append)
    assert (gateway.now()["running"], gateway.now()["next"]) == ("a", "a")
    await flasher.activate()
    identity = await flasher.verify(new)
    assert (identity.version, identity.sha256) == ("2.0.0", new.spec.sha256)
    assert gateway.now()["good"]["b"] is False
    await flasher.confirm()
    assert await flasher.identify() == identity
    gateway.loader("reboot")
    gateway.loader("reboot")
    assert await flasher.verify(new) == identity
    assert (gateway.now()["running"], gateway.now()["torn"]) == ("b", 0)
    await asyncio.sleep(0)
    assert [(step.step, step.done_bytes) for step in seen] == [
        ("writing", len(new.data)),
        ("reading_back", len(new.data)),
    ]


async def test_the_next_update_goes_into_the_other_slot(gateway: Gateway) -> None:
    for version, slot in (("2.0.0", "b"), ("3.0.0", "a")):
        await flash(gateway.flasher(), image(version))
        assert gateway.now()["running"] == slot
    assert gateway.now()["torn"] == 0


def test_what_it_can_is_said() -> None:
    gateway = Gateway(Path("/nowhere"), made=False)
    able = gateway.flasher().capabilities
    assert (able.slots, able.self_reverting, able.anti_rollback, able.isolated_bus) == (2, True, False, False)
    assert able.trust_class is TrustClass.GATEWAY_ONLY
    assert gateway.flasher(confirm_command=None).capabilities.self_reverting is False


async def test_nothing_is_written_where_the_image_runs_or_is_already(gateway: Gateway) -> None:
    flasher, old, new = gateway.flasher(), image("1.0.0"), image("2.0.0")
    passive = gateway.folder / "slot_b"
    before = passive.stat().st_mtime_ns
    assert await flash(flasher, old) == await flasher.identify() or gateway.note().proved == {}
    assert passive.stat().st_mtime_ns == before
    assert gateway.now()["boots"] == 1
    await flasher.stage(new)
    written = passive.stat().st_mtime_ns
    assert written > before
    await flasher.stage(new)
    assert passive.stat().st_mtime_ns == written
    await flasher.activate()
    await flasher.activate()
    assert gateway.now()["boots"] == 2
    await flasher.stage(new)
    assert passive.stat().st_mtime_ns == written
    await flasher.verify(new)


@pytest.mark.parametrize("confirmed", [False, True])
async def test_the_old_slot_that_answers_is_a_rollback(gateway: Gateway, confirmed: bool) -> None:
    flasher, new = gateway.flasher(), image("2.0.0")
    await flasher.stage(new)
    if confirmed:
        gateway.change(crashing=["2.0.0"])
        await flasher.activate()
    else:
        await flasher.activate()
        gateway.loader("reboot")
    with pytest.raises(NotProved, match=r"slot a with version 1\.0\.0 runs, not b with 2\.0\.0") as caught:
        await flasher.verify(new)
    assert (caught.value.code, caught.value.touched) == ("rolled_back", False)
    with pytest.raises(NotProved, match="nothing is confirmed") as caught:
        await flasher.confirm()
    assert caught.value.code == "rolled_back"
    assert gateway.calls("confirm") == ["confirm"]  # of the running slot, before the passive one was written
    await flasher.revert()
    assert gateway.now()["good"]["a"] is True
    gateway.change(crashing=[])
    await flash(flasher, new)
    assert gateway.now()["running"] == "b"


async def test_going_back_before_and_after_the_switch(gateway: Gateway) -> None:
    flasher, new = gateway.flasher(), image("2.0.0")
    await flasher.revert()
    await flasher.stage(new)
    await flasher.revert()
    assert (gateway.now()["running"], gateway.now()["boots"]) == ("a", 1)
    with pytest.raises(FlashError, match="no slot holds a proved image") as caught:
        await flasher.activate()
    assert caught.value.code == "nothing_staged"
    await flasher.stage(new)
    await flasher.activate()
    await flasher.revert()
    await flasher.revert()
    assert (gateway.now()["running"], gateway.now()["boots"]) == ("a", 3)
    gateway.loader("reboot")
    gateway.loader("reboot")
    assert gateway.now()["running"] == "a"
    assert (await flasher.verify(image("1.0.0"))).version == "1.0.0"


async def test_after_the_confirmation_there_is_no_way_back(gateway: Gateway) -> None:
    flasher = gateway.flasher()
    await flash(flasher, image("2.0.0"))
    await flasher.confirm()
    with pytest.raises(FlashError, match="slot b is confirmed") as caught:
        await flasher.revert()
    assert (caught.value.code, caught.value.retryable) == ("no_way_back", False)
    assert gateway.now()["running"] == "b"


async def test_a_damaged_slot_is_never_switched_to(gateway: Gateway) -> None:
    flasher, new = gateway.flasher(), image("2.0.0")
    await flasher.stage(new)
    with (gateway.folder / "slot_b").open("r+b") as file:
        file.seek(20_000)
        file.write(b"worn")
    with pytest.raises(NotProved, match="slot b no longer holds"):
        await flasher.activate()
    assert gateway.calls("switch") == ["switch a"]
    await flasher.stage(new)
    await flasher.activate()
    await flasher.verify(new)


async def test_a_damaged_way_back_is_not_taken(gateway: Gateway) -> None:
    flasher = gateway.flasher()
    await flash(flasher, image("2.0.0"))
    await flasher.stage(image("3.0.0"))
    await flasher.activate()
    with (gateway.folder / "slot_b").open("r+b") as file:
        file.seek(20_000)
        file.write(b"worn")
    with pytest.raises(NotProved, match=r"slot b no longer holds 2\.0\.0"):
        await flasher.revert()
    assert gateway.now()["running"] == "a"


async def test_the_way_back_is_not_overwritten_before_the_new_image_is_confirmed(gateway: Gateway) -> None:
    flasher = gateway.flasher()
    await flasher.stage(image("2.0.0"))
    await flasher.activate()
    with pytest.raises(FlashError, match="slot b is not confirmed yet; a is the way back") as caught:
        await flasher.stage(image("3.0.0"))
    assert (caught.value.code, caught.value.touched) == ("not_confirmed", False)
    await flasher.confirm()
    await flasher.stage(image("3.0.0"))


async def test_what_was_armed_is_disarmed_before_its_slot_is_written(gateway: Gateway) -> None:
    """A crash between switch and reboot: the next boot would be from the slot that is written now."""
    flasher = gateway.flasher()
    await flasher.stage(image("2.0.0"))
    with pytest.raises(FlashError, match="exit code"):
        await gateway.flasher(reboot_command=gateway.command("nonsense")).activate()
    assert gateway.now()["next"] == "b"
    seen: list[Any] = []

    def at_write(_: Progress) -> None:
        seen.append(gateway.now()["next"])

    await flasher.stage(image("3.0.0"), progress=at_write)
    await asyncio.sleep(0)
    assert set(seen) == {"a"}
    assert gateway.now()["good"]["a"] is True


async def test_the_slot_is_marked_as_unbootable_while_it_is_written(gateway: Gateway) -> None:
    flasher = gateway.flasher(unbootable_command=gateway.command("unbootable", "{slot}"))
    seen: list[Any] = []
    await flasher.stage(image("2.0.0"), progress=lambda _: seen.append(gateway.now()["calls"][-1]))
    await asyncio.sleep(0)
    assert set(seen) == {"unbootable b"}
    assert gateway.calls("switch") == [], "the running slot stays confirmed all the time"
    await flash(flasher, image("2.0.0"))
    assert gateway.now()["running"] == "b"


async def test_without_a_reboot_command_somebody_else_reboots(gateway: Gateway) -> None:
    flasher, new = gateway.flasher(reboot_command=None), image("2.0.0")
    await flasher.stage(new)
    await flasher.activate()
    assert (gateway.now()["running"], gateway.now()["next"]) == ("a", "b")
    gateway.loader("reboot")
    await flasher.verify(new)
    await flasher.revert()
    gateway.loader("reboot")
    await flasher.revert()
    assert gateway.now()["running"] == "a"
    gateway.loader("reboot")
    assert gateway.now()["running"] == "a"


async def test_without_a_confirm_command_a_boot_is_permanent(gateway: Gateway) -> None:
    flasher = gateway.flasher(confirm_command=None)
    await flash(flasher, image("2.0.0"))
    assert gateway.calls("confirm") == []


async def test_a_reboot_that_does_not_come_is_bounded(gateway: Gateway) -> None:
    flasher = gateway.flasher(reboot_command=gateway.command("confirm"), reboot_s=0.3)
    await flasher.stage(image("2.0.0"))
    with pytest.raises(FlashError, match="not rebooted within") as caught:
        await flasher.activate()
    assert caught.value.code == "not_rebooted"
    await gateway.flasher().activate()
    await gateway.flasher().verify(image("2.0.0"))


REFUSED: dict[str, tuple[FirmwareImage, type[FlashError], str]] = {
    "kind": (image("2.0.0", kind="camera"), WrongEcu, "is for camera"),
    "hardware": (image("2.0.0", hardware="G9"), WrongEcu, "hardware G9"),
    "too large": (image("2.0.0", nbytes=SLOT_BYTES), BadImage, "the slot .*slot_b holds 65536"),
    "other bytes": (
        replace(image("2.0.0"), data=image("2.0.1").data),
        BadImage,
        "the bytes are not those of gateway 2.0.0",
    ),
    "cut": (replace(image("2.0.0"), data=image("2.0.0").data[:-1]), BadImage, "the bytes are not those"),
}


@pytest.mark.parametrize(("new", "kind", "said"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_does_not_fit_is_refused_before_a_byte(
    gateway: Gateway, new: FirmwareImage, kind: type[FlashError], said: str
) -> None:
    before = (gateway.folder / "slot_b").stat().st_mtime_ns
    with pytest.raises(kind, match=said) as caught:
        await gateway.flasher().stage(new)
    assert caught.value.touched is False
    assert (gateway.folder / "slot_b").stat().st_mtime_ns == before
    assert gateway.now()["next"] == "a"


def says(text: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", f"print({text!r})")


@pytest.mark.parametrize(
    "changes",
    [
        {"current_slot_command": says("")},
        {"current_slot_command": says("c")},
        {"current_slot_command": says("a\nb")},
        {"current_slot_command": says("Error: a")},
        {"current_slot_command": says("x='a'\nx='b'"), "current_slot_pattern": "^x='(.*)'$"},
        {"current_slot_command": says("x='a'\nx='a'"), "current_slot_pattern": "^x='(.*)'$"},
    ],
    ids=["nothing", "another", "both", "words", "two lines", "twice"],
)
async def test_an_answer_that_names_no_slot_refuses(gateway: Gateway, changes: dict[str, Any]) -> None:
    with pytest.raises(UnknownSlot, match="not exactly one of a and b") as caught:
        await gateway.flasher(**changes).stage(image("2.0.0"))
    assert caught.value.touched is False


async def test_an_unknown_slot_refuses_everything(gateway: Gateway) -> None:
    flasher = gateway.flasher(current_slot_command=says("c"))
    new = image("2.0.0")
    before = (gateway.folder / "slot_b").read_bytes()
    for step in (
        flasher.identify(),
        flasher.stage(new),
        flasher.activate(),
        flasher.verify(new),
        flasher.confirm(),
        flasher.revert(),
    ):
        with pytest.raises(UnknownSlot, match="not exactly one of a and b"):
            await step
    assert (gateway.folder / "slot_b").read_bytes() == before
    assert gateway.now()["calls"] == []


async def test_the_answer_of_rauc_is_understood(gateway: Gateway) -> None:
    """Boot names in the answer, slot names in the commands."""
    answer = "RAUC_SYSTEM_COMPATIBLE='truck'\nRAUC_SYSTEM_BOOTED_BOOTNAME='A'\nRAUC_BOOT_PRIMARY='rootfs.1'\n"
    flasher = gateway.flasher(
        slots=tuple(
            Slot(name=slot.upper(), word=slot, path=gateway.folder / f"slot_{slot}") for slot in "ab"
        ),
        current_slot_command=says(answer),
        current_slot_pattern="^RAUC_SYSTEM_BOOTED_BOOTNAME='([^']*)'$",
        reboot_command=None,
    )
    await flasher.stage(image("2.0.0"))
    await flasher.activate()
    assert gateway.calls("switch") == ["switch a", "switch b"]


@pytest.mark.parametrize("said", ["", "\x1b[2J", "v" * 65])
async def test_a_version_that_is_none_is_refused(gateway: Gateway, said: str) -> None:
    with pytest.raises(FlashError, match="says no version") as caught:
        await gateway.flasher(version_command=says(said)).identify()
    assert (caught.value.code, caught.value.touched) == ("unknown_version", False)


async def test_the_version_may_stand_in_a_file(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "release"
    flasher = gateway.flasher(version_command=None, version_file=path)
    with pytest.raises(SlotFailed, match="release"):
        await flasher.identify()
    path.write_text("1.0.0\nbuilt yesterday\n")
    assert (await flasher.identify()).version == "1.0.0"


async def test_a_slot_that_holds_the_image_but_says_another_version_is_not_proved(gateway: Gateway) -> None:
    await flash(gateway.flasher(), image("2.0.0"))
    with pytest.raises(NotProved, match=r"slot b says version 2\.0\.1, not 2\.0\.0"):
        await gateway.flasher(version_command=says("2.0.1")).verify(image("2.0.0"))
    assert (await gateway.flasher(version_command=says("2.0.1")).identify()).sha256 is None
    with pytest.raises(NotProved, match=r"slot b does not hold gateway 3\.0\.0"):
        await gateway.flasher().verify(image("3.0.0"))


async def test_what_reads_back_otherwise_is_not_proved(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetson, "write_slot", lambda *_, **__: None)
    with pytest.raises(NotProved, match="slot b reads back as"):
        await gateway.flasher().stage(image("2.0.0"))
    assert "b" not in gateway.note().proved
    with pytest.raises(FlashError, match="no slot holds a proved image"):
        await gateway.flasher().activate()


async def test_the_slot_is_on_the_drive_before_it_is_read_back_and_before_the_note_says_so(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def watched(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *rest: Any) -> Any:
            result = act(descriptor, *rest)
            path = Path(f"/proc/self/fd/{descriptor}").readlink().name
            if path in {"slot_b", "note.json.new"}:
                order.append(f"{name} {path}")
            return result

        return call

    for name in ("write", "fsync", "posix_fadvise", "read"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    await gateway.flasher().stage(image("2.0.0"))
    last = len(order) - 1 - order[::-1].index("write slot_b")
    tail = list(dict.fromkeys(order[last:]))
    assert tail == [
        "write slot_b",
        "fsync slot_b",
        "posix_fadvise slot_b",
        "read slot_b",
        "fsync note.json.new",
    ]


@pytest.mark.parametrize("content", [b"{", b'{"unknown": 1}'])
async def test_a_lost_note_is_none_and_takes_any_slot_for_armed(gateway: Gateway, content: bytes) -> None:
    flasher = gateway.flasher()
    await flasher.stage(image("2.0.0"))
    (gateway.folder / "note.json").write_bytes(content)
    with pytest.raises(FlashError, match="no slot holds a proved image"):
        await flasher.activate()
    assert (await flasher.identify()).version == "1.0.0"
    await flash(flasher, image("2.0.0"))
    assert gateway.now()["torn"] == 0


async def test_a_second_program_is_kept_out(gateway: Gateway) -> None:
    with (gateway.folder / "note.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SlotBusy, match="another program is flashing this gateway") as caught:
            await gateway.flasher().identify()
        assert caught.value.touched is False
    await gateway.flasher().identify()


async def test_steps_take_turns(gateway: Gateway) -> None:
    flasher = gateway.flasher()
    found = await asyncio.gather(*(flasher.identify() for _ in range(3)))
    assert len({one.version for one in found}) == 1


async def test_a_cancelled_stage_ends_soon_and_its_repeat_ends_right(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetson_slots, "CHUNK", 1024)
    begun, go_on, real = threading.Event(), threading.Event(), os.write

    def slow(descriptor: int, data: Any) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "slot_b":
            begun.set()
            assert go_on.wait(30)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", slow)
    flasher, new = gateway.flasher(), image("2.0.0")
    task = asyncio.create_task(flasher.stage(new))
    assert await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert (gateway.folder / "slot_b").read_bytes()[2048:4096] == b"\0" * 2048
    assert gateway.note().proved == {}
    await flash(flasher, new)
    assert gateway.now()["torn"] == 0


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\nnonsense\n")
    return path


def test_a_mounted_block_device_is_not_written(
    mounts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "slot"
    path.write_bytes(b"x")
    judge_unmounted(path, mounts)
    real = os.stat_result((0o060660, 1, 1, 1, 0, 0, 1, 0, 0, 0))

    class Device:
        st_mode, st_rdev = real.st_mode, os.makedev(98, 0)

    monkeypatch.setattr(Path, "stat", lambda *_, **__: Device())
    with pytest.raises(SlotBusy, match="is mounted at /mnt2"):
        judge_unmounted(path, mounts)
    Device.st_rdev = os.makedev(98, 1)
    judge_unmounted(path, mounts)


async def test_slots_that_are_none_are_refused(gateway: Gateway) -> None:
    new = image("2.0.0")
    (gateway.folder / "slot_b").unlink()
    with pytest.raises(SlotFailed, match="slot_b"):
        await gateway.flasher().stage(new)
    (gateway.folder / "slot_b").symlink_to(gateway.folder / "slot_a")
    with pytest.raises(UnknownSlot, match="are the same") as caught:
        await gateway.flasher().stage(new)
    assert caught.value.touched is False
    (gateway.folder / "slot_b").unlink()
    (gateway.folder / "slot_b").mkdir()
    with pytest.raises(SlotFailed):
        await gateway.flasher().stage(new)
    assert (gateway.folder / "slot_a").read_bytes()[: len(raw_image("1.0.0"))] == raw_image("1.0.0")


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "component": ({"component": "a b"}, "component 'a b'"),
    "kind": ({"kind": ""}, "kind ''"),
    "hardware": ({"hardware": "x" * 65}, "hardware"),
    "same name": (
        {"slots": (Slot(name="a", path=Path("/x")), Slot(name="a", path=Path("/y")))},
        "both have the name a",
    ),
    "same path": (
        {"slots": (Slot(name="a", path=Path("/x")), Slot(name="b", path=Path("/x")))},
        "both have the path /x",
    ),
    "same word": (
        {"slots": (Slot(name="a", path=Path("/x"), word="b"), Slot(name="b", path=Path("/y")))},
        "both have the word b",
    ),
    "slot name": (
        {"slots": (Slot(name="-a", path=Path("/x")), Slot(name="b", path=Path("/y")))},
        r"slots\[0\].name",
    ),
    "slot word": (
        {"slots": (Slot(name="a", path=Path("/x")), Slot(name="b", path=Path("/y"), word=";"))},
        r"slots\[1\].word ';'",
    ),
    "slot path": (
        {"slots": (Slot(name="a", path=Path("x")), Slot(name="b", path=Path("/y")))},
        r"slots\[0\].path x",
    ),
    "note": ({"note_file": Path("note")}, "note_file note is not absolute"),
    "no command": ({"switch_command": ()}, "switch_command is not a list"),
    "empty argument": ({"current_slot_command": ("x", "")}, "current_slot_command is not a list"),
    "NUL": ({"confirm_command": ("x\0",)}, "confirm_command is not a list"),
    "too many": ({"reboot_command": ("x",) * 33}, "reboot_command is not a list"),
    "no slot": ({"switch_command": ("x",)}, "switch_command: {slot} is missing"),
    "a slot": ({"confirm_command": ("x", "{slot}")}, "confirm_command: {slot} is given"),
    "pattern": ({"current_slot_pattern": "("}, "current_slot_pattern"),
    "groups": ({"current_slot_pattern": "(a)(b)"}, "has 2 groups"),
    "no version": ({"version_command": None}, "give exactly one"),
    "two versions": ({"version_file": Path("/v")}, "give exactly one"),
    "time": ({"command_s": 0}, "command_s 0"),
    "long time": ({"reboot_s": 3601}, "reboot_s 3601"),
}


@pytest.mark.parametrize(("changes", "said"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_a_bad_setting_is_named(changes: dict[str, Any], said: str) -> None:
    gateway = Gateway(Path("/nowhere"), made=False)
    assert gateway.settings().component == "gateway"
    with pytest.raises(ConfigError, match=said):
        gateway.settings(**changes)
