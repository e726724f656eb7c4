"""The gateway's flasher killed at every act of an update: the next run always ends right, nothing torn boots.

A child process does the steps and ends itself (os._exit: no `finally`, no cancellation) before or after its
n-th act: a command, a replaced note, a chunk written, a slot hashed. Then either only the agent starts again
or the whole machine does (the boot loader boots), as often as a power cut may, and the steps are done again.
The boot loader's program runs within the child here, so that all moments can be walked; that commands are
run as they should be is shown by tests/unit.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_flashers import jetson, jetson_slots
from firmware_flashers.base import FirmwareImage, FlashError, NotProved
from firmware_flashers.jetson import JetsonFlasher
from firmware_flashers.jetson_settings import JetsonSettings, Slot
from firmware_flashers.jetson_slots import hash_slot, write_note
from shared.release import FirmwareSpec

PROGRAM = Path(__file__).parents[2] / "unit" / "firmware_flashers" / "fake_boot_loader.py"
SLOT_BYTES = 16 * 1024
CODE = compile(PROGRAM.read_text(), str(PROGRAM), "exec")
KILLED, DONE = 9, 0
MOST_POINTS = 200
NEVER = 10**6


def image(version: str) -> FirmwareImage:
    body = hashlib.shake_256(version.encode()).digest(9000)
    data = f"image {version} 9000 {hashlib.sha256(body).hexdigest()}\n".encode() + body
    spec = FirmwareSpec(
        kind="gateway",
        hardware=("G1",),
        version=version,
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return FirmwareImage(spec=spec, data=data, document=b"")


OLD, NEW = image("1.0.0"), image("2.0.0")


def run_program(argv: Sequence[str]) -> str:
    before, sys.argv = sys.argv, list(argv)
    try:
        with redirect_stdout(io.StringIO()) as said:
            exec(CODE, {"__name__": "__main__"})
    finally:
        sys.argv = before
    return said.getvalue()


async def run_command(argv: Sequence[str], *, timeout_s: float) -> str:
    assert timeout_s > 0
    return run_program(argv)


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware_flashers.jetson.run", run_command)


class Machine:
    def __init__(self, folder: Path, *, marks: bool = True) -> None:
        self.marks = marks
        self.folder, self.state = folder, folder / "loader.json"
        (folder / "slot_a").write_bytes(OLD.data.ljust(SLOT_BYTES, b"\0"))
        (folder / "slot_b").write_bytes(b"\xff" * SLOT_BYTES)
        (folder / "note.json").unlink(missing_ok=True)
        self.loader("make")

    def command(self, *words: str) -> tuple[str, ...]:
        return (str(PROGRAM), str(self.state), *words)

    def loader(self, *words: str) -> None:
        run_program(self.command(*words))

    def now(self) -> dict[str, Any]:
        return dict(json.loads(self.state.read_text()))

    def flasher(self) -> JetsonFlasher:
        one, two = (Slot(name=slot, path=self.folder / f"slot_{slot}") for slot in "ab")
        return JetsonFlasher(
            JetsonSettings(
                component="gateway",
                kind="gateway",
                hardware="G1",
                slots=(one, two),
                note_file=self.folder / "note.json",
                current_slot_command=self.command("current"),
                switch_command=self.command("switch", "{slot}"),
                version_command=self.command("version"),
                confirm_command=self.command("confirm"),
                unbootable_command=self.command("unbootable", "{slot}") if self.marks else None,
                reboot_command=self.command("reboot"),
                boot_id_file=self.folder / "loader.json.boot_id",
            )
        )


Steps = Callable[[JetsonFlasher], Coroutine[Any, Any, None]]


async def update(flasher: JetsonFlasher) -> None:
    """What the agent does, from its beginning, whatever was done before."""
    await flasher.stage(NEW)
    await flasher.activate()
    await flasher.verify(NEW)
    await flasher.confirm()


async def go_back(flasher: JetsonFlasher) -> None:
    await flasher.revert()
    await flasher.verify(OLD)


def until_done(machine: Machine, steps: Steps) -> None:
    """Repeat as the agent would, which takes a rollback for a reason to flash again."""
    for _ in range(3):
        try:
            asyncio.run(steps(machine.flasher()))
        except NotProved as error:
            if error.code != "rolled_back":
                raise
        else:
            return
    pytest.fail("three tries did not end it")


def killed_at(machine: Machine, steps: Steps, point: int) -> bool:
    """Run the steps in a child that ends itself at its `point`-th moment; False when it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            moments = _arm(point)
            asyncio.run(steps(machine.flasher()))
            (machine.folder / "moments").write_text(str(moments()))
            code = DONE
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (DONE, KILLED), code
    return code == KILLED


def _arm(point: int) -> Callable[[], int]:
    """Count a moment before and after each act, and end the process at the one that was asked for."""
    passed = 0

    def moment() -> None:
        nonlocal passed
        if passed == point:
            os._exit(KILLED)
        passed += 1

    def around(act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            moment()
            result = act(*words, **more)
            moment()
            return result

        return call

    async def command(argv: Sequence[str], *, timeout_s: float) -> str:
        moment()
        said = await run_command(argv, timeout_s=timeout_s)
        moment()
        return said

    write = os.write

    def chunk(descriptor: int, data: Any) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith("slot_"):
            moment()
        return write(descriptor, data)

    # In a child of its own: nothing is put back.
    jetson_slots.CHUNK = 4096
    jetson.run = command  # type: ignore[attr-defined]
    jetson.write_note = around(write_note)  # type: ignore[attr-defined]
    jetson.hash_slot = around(hash_slot)  # type: ignore[attr-defined]
    os.write = chunk
    return lambda: passed


def moments_of(machine: Machine, steps: Steps) -> int:
    """How many moments a whole run has."""
    assert not killed_at(machine, steps, NEVER)
    return int((machine.folder / "moments").read_text())


def assert_ended(machine: Machine, version: str) -> None:
    now = machine.now()
    assert (now["version"], now["torn"]) == (version, 0)
    for _ in range(2):
        machine.loader("reboot")
    now = machine.now()
    assert (now["version"], now["torn"]) == (version, 0), "it stays so"


@pytest.mark.parametrize("cuts", [0, 1, 2], ids=["agent killed", "power cut", "two cuts"])
def test_an_update_killed_at_any_moment_ends_with_the_new_image(tmp_path: Path, cuts: int) -> None:
    moments = moments_of(Machine(tmp_path), update)
    assert moments > 30
    for point in range(moments):
        _update_killed_at(Machine(tmp_path), point, cuts)


@pytest.mark.parametrize("cuts", [0, 1])
def test_the_same_where_no_slot_can_be_marked_as_unbootable(tmp_path: Path, cuts: int) -> None:
    """Two cuts between "switch" and "confirm" of the running slot are the gap that the marking closes."""
    for point in range(moments_of(Machine(tmp_path, marks=False), update)):
        _update_killed_at(Machine(tmp_path, marks=False), point, cuts)


def _update_killed_at(machine: Machine, point: int, cuts: int) -> None:
    assert killed_at(machine, update, point)
    for _ in range(cuts):
        machine.loader("reboot")
    assert machine.now()["version"] in ("1.0.0", "2.0.0")
    until_done(machine, update)
    assert_ended(machine, "2.0.0")


@pytest.mark.parametrize("cuts", [0, 1])
def test_a_way_back_killed_at_any_moment_ends_with_the_old_image(tmp_path: Path, cuts: int) -> None:
    def activated() -> Machine:
        machine = Machine(tmp_path)

        async def steps(flasher: JetsonFlasher) -> None:
            await flasher.stage(NEW)
            await flasher.activate()

        asyncio.run(steps(machine.flasher()))
        return machine

    moments = moments_of(activated(), go_back)
    assert moments > 10
    for point in range(moments):
        machine = activated()
        assert killed_at(machine, go_back, point)
        if cuts:
            machine.loader("reboot")
        until_done(machine, go_back)
        assert_ended(machine, "1.0.0")


ACTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["update", "back"]), st.integers(0, 50)),
        st.tuples(st.just("reboot"), st.just(0)),
    ),
    max_size=8,
)


@settings(max_examples=30, deadline=None)
@given(ACTS)
def test_any_history_of_kills_and_cuts_ends_right(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]]
) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    for act, point in acts:
        if act == "reboot":
            machine.loader("reboot")
        else:
            _killed_or_ended(machine, update if act == "update" else _back_if_possible, point)
        assert machine.now()["torn"] == 0
    until_done(machine, update)
    assert_ended(machine, "2.0.0")


async def _back_if_possible(flasher: JetsonFlasher) -> None:
    await flasher.revert()


def _killed_or_ended(machine: Machine, steps: Steps, point: int) -> None:
    """A step may also refuse (a way back after the confirmation, a rollback): that is an end like others."""

    async def tolerant(flasher: JetsonFlasher) -> None:
        try:
            await steps(flasher)
        except FlashError as error:
            if error.code not in ("no_way_back", "rolled_back", "not_reverted"):
                raise

    killed_at(machine, tolerant, point)
