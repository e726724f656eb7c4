"""The bus at its boundary: full queues, dead drivers, one holder an interface."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import can
import pytest

from firmware_flashers.base import BusDown
from firmware_flashers.can_link import CanLink, open_link
from firmware_flashers.can_lock import InterfaceBusy, interface_lock, lock_folder, lock_path


class BrokenBus(can.BusABC):
    """Raises what it is told to, in order, and then works."""

    def __init__(self, *errors: Exception, then: can.Message | None = None) -> None:
        super().__init__(channel="broken")
        self.errors = list(errors)
        self.then = then
        self.sent: list[can.Message] = []

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        self._fail()
        self.sent.append(msg)

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        self._fail()
        return self.then, True


@pytest.fixture
def close_later() -> Any:
    opened: list[can.BusABC] = []
    yield opened.append
    for bus in opened:
        bus.shutdown()


def full() -> can.CanOperationError:
    return can.CanOperationError("Failed to transmit: No buffer space available", errno.ENOBUFS)


def test_a_full_queue_is_waited_out(close_later: Any) -> None:
    bus = BrokenBus(*[full() for _ in range(20)])
    close_later(bus)
    CanLink(bus, name="can0").send(0x7E0, b"\x02\x10\x03", extended=False)
    assert len(bus.sent) == 1


def test_a_queue_that_stays_full_is_bus_down(close_later: Any) -> None:
    bus = BrokenBus(*[full() for _ in range(100_000)])
    close_later(bus)
    with pytest.raises(BusDown, match="queue is full"):
        CanLink(bus, name="can0", send_timeout_s=0.02).send(0x7E0, b"\x00", extended=False)


@pytest.mark.parametrize(
    "error",
    [
        can.CanOperationError("Network is down", errno.ENETDOWN),
        can.CanOperationError("Transmit buffer full"),
        can.CanTimeoutError("late"),
        OSError(errno.ENODEV, "No such device"),
        ValueError("filedescriptor cannot be a negative integer"),
    ],
    ids=lambda error: type(error).__name__ + str(error)[:12],
)
def test_a_drivers_error_is_bus_down_with_its_cause(close_later: Any, error: Exception) -> None:
    bus = BrokenBus(error, error)
    close_later(bus)
    link = CanLink(bus, name="can0")
    with pytest.raises(BusDown, match="can0") as sending:
        link.send(0x7E0, b"\x00", extended=False)
    with pytest.raises(BusDown, match="can0") as receiving:
        link.receive(0.01)
    assert sending.value.__cause__ is error
    assert receiving.value.__cause__ is error


def test_bus_off_is_bus_down_and_other_error_frames_are_nothing(close_later: Any) -> None:
    off = BrokenBus(then=can.Message(arbitration_id=0x40, is_error_frame=True))
    warning = BrokenBus(then=can.Message(arbitration_id=0x04, is_error_frame=True))
    remote = BrokenBus(then=can.Message(arbitration_id=0x7E8, is_remote_frame=True))
    for bus in (off, warning, remote):
        close_later(bus)
    with pytest.raises(BusDown, match="bus-off"):
        CanLink(off, name="can0").receive(0.0)
    assert CanLink(warning, name="can0").receive(0.0) is None
    assert CanLink(remote, name="can0").receive(0.0) is None


async def test_only_the_ecus_frames_are_heard(tmp_path: Path, close_later: Any) -> None:
    other = can.Bus("filters", interface="virtual", ignore_config=True)
    close_later(other)
    async with open_link(interface="virtual", channel="filters", lock_folder=tmp_path) as held:
        link = held.connect([0x7E8])
        for arbitration_id, extended in ((0x7E9, False), (0x7E8, True), (0x7E8, False)):
            other.send(can.Message(arbitration_id=arbitration_id, data=b"\x01", is_extended_id=extended))
        heard = link.receive(1.0)
        assert heard is not None
        assert (heard.arbitration_id, heard.is_extended_id) == (0x7E8, False)
        assert link.receive(0.0) is None
        link.close()


@pytest.mark.parametrize(
    ("interface", "channel"),
    [("socketcan", "no-such-can"), ("slcan", "/dev/no-such-tty"), ("quarry-hub", "/nonexistent/hub.sock")],
)
async def test_a_bus_that_can_not_be_opened_is_bus_down_and_leaves_no_lock(
    tmp_path: Path, interface: str, channel: str
) -> None:
    with pytest.raises(BusDown):
        async with open_link(interface=interface, channel=channel, lock_folder=tmp_path) as link:
            link.connect([0x7E8])
    assert not list(tmp_path.iterdir())


def test_one_holder_an_interface_and_the_other_is_told_who(tmp_path: Path) -> None:
    with interface_lock("socketcan", "can0", holder="quarry agent", folder=tmp_path):
        with (
            pytest.raises(InterfaceBusy, match=rf"quarry agent \(process {os.getpid()}\)") as caught,
            interface_lock("socketcan", "can0", holder="quarry flash", folder=tmp_path),
        ):
            pass
        assert caught.value.code == "interface_busy"
        assert caught.value.retryable
        with interface_lock("socketcan", "can1", holder="quarry flash", folder=tmp_path):
            pass
    with interface_lock("socketcan", "can0", holder="quarry flash", folder=tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    hold = (
        "import sys, pathlib; from firmware_flashers.can_lock import interface_lock\n"
        "with interface_lock('socketcan', 'can0', holder='victim', folder=pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"held\n"
        with (
            pytest.raises(InterfaceBusy, match=f"victim \\(process {victim.pid}\\)"),
            interface_lock("socketcan", "can0", holder="us", folder=tmp_path),
        ):
            pass
        victim.kill()
        victim.wait(10)
        with interface_lock("socketcan", "can0", holder="us", folder=tmp_path):
            pass


def test_a_lock_file_that_was_removed_by_its_holder_is_made_again(tmp_path: Path, monkeypatch: Any) -> None:
    """Between our open and our lock the holder may remove the file: then we hold nothing, and try again."""
    path = lock_path("socketcan", "can0", tmp_path)
    real = fcntl.flock
    done: list[int] = []

    def flock(descriptor: int, how: int) -> None:
        if not done:
            done.append(1)
            path.unlink()
        real(descriptor, how)

    monkeypatch.setattr("firmware_flashers.can_lock.fcntl.flock", flock)
    with (
        interface_lock("socketcan", "can0", holder="us", folder=tmp_path),
        pytest.raises(InterfaceBusy),
        interface_lock("socketcan", "can0", holder="them", folder=tmp_path),
    ):
        pass


def test_other_users_can_lock_it_too(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with interface_lock("socketcan", "can0", holder="us", folder=tmp_path):
            [path] = tmp_path.iterdir()
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
    finally:
        os.umask(before)


def test_without_a_lock_nothing_is_opened(tmp_path: Path) -> None:
    lock_path("virtual", "x", tmp_path).symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(BusDown, match="no lock"),
        interface_lock("virtual", "x", holder="us", folder=tmp_path),
    ):
        pass
    with (
        pytest.raises(BusDown, match="no lock"),
        interface_lock("virtual", "x", holder="us", folder=tmp_path / "missing"),
    ):
        pass


def test_a_virtual_channel_is_each_processes_own(tmp_path: Path) -> None:
    assert str(os.getpid()) not in lock_path("virtual", "x", tmp_path).name
    assert lock_path("virtual", "x", tmp_path) != lock_path("socketcan", "x", tmp_path)
    assert lock_folder().is_dir()
