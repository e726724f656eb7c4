"""The hub between real processes: nothing lost, order kept, slow readers waited for, dead ones dropped."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import can
import pytest

from sim.can_bits import classic_bits, fd_bits
from sim.can_bus import HubBus, HubError, HubServer, hub_in_thread
from sim.can_frames import FD, FRAME, GREETING, MAGIC, VERSION

COUNT = 20_000

PEER = """
import sys, can
path, act, own_id, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
bus = can.Bus(path, interface="quarry-hub", ignore_config=True)
print("joined", flush=True)
sys.stdin.readline()
if act == "exchange":
    for number in range(count):
        bus.send(can.Message(arbitration_id=own_id, data=number.to_bytes(8, "big"), is_extended_id=False))
    nexts = {}
    while sum(nexts.values()) < 2 * count:
        got = bus.recv(20)
        assert got is not None, f"lost: {nexts}"
        number = int.from_bytes(got.data, "big")
        assert nexts.get(got.arbitration_id, 0) == number, (got, nexts)
        nexts[got.arbitration_id] = number + 1
    print("whole", flush=True)
elif act == "stand":
    try:
        while bus.recv(10):
            pass
        print("silence", flush=True)
    except can.CanOperationError as error:
        print(error, flush=True)
bus.shutdown()
"""


@contextmanager
def peer(path: Path, act: str, own_id: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Another process on the bus."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PEER, str(path), act, str(own_id), str(COUNT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "joined\n"
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "can.sock"


Open = Callable[[], HubBus]


@pytest.fixture
def open_bus(path: Path) -> Iterator[Open]:
    opened: list[HubBus] = []

    def one() -> HubBus:
        opened.append(HubBus(path))
        return opened[-1]

    yield one
    for bus in opened:
        bus.shutdown()


def frame(number: int, can_id: int = 0x7E0) -> can.Message:
    return can.Message(arbitration_id=can_id, data=number.to_bytes(8, "big"), is_extended_id=False)


def numbers(bus: HubBus, count: int) -> list[int]:
    got: list[int] = []
    while len(got) < count and (message := bus.recv(20)):
        got.append(int.from_bytes(message.data, "big"))
    return got


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def test_bursts_between_three_processes_lose_nothing(path: Path, open_bus: Open) -> None:
    """All send their burst before they read one frame: only what waits in the bus keeps it going."""
    with hub_in_thread(path) as hub, peer(path, "exchange", 1) as one, peer(path, "exchange", 2) as two:
        bus = open_bus()
        go(one)
        go(two)
        for number in range(COUNT):
            bus.send(frame(number, 3))
        nexts = {1: 0, 2: 0}
        while sum(nexts.values()) < 2 * COUNT:
            got = bus.recv(20)
            assert got is not None, f"lost: {nexts}"
            assert nexts[got.arbitration_id] == int.from_bytes(got.data, "big")
            nexts[got.arbitration_id] += 1
        assert [said(one), said(two)] == ["whole", "whole"]
        assert hub.frames == 3 * COUNT


def sends(bus: HubBus, message: can.Message) -> bool:
    """Whether the bus takes one more frame soon."""
    try:
        bus.send(message, timeout=0.3)
    except can.CanTimeoutError:
        return False
    return True


def test_a_slow_reader_slows_the_bus_and_loses_nothing(path: Path, open_bus: Open) -> None:
    with hub_in_thread(path, stall_s=60) as hub:
        sender, fast, slow = open_bus(), open_bus(), open_bus()
        sent = 0
        while sends(sender, frame(sent)):
            sent += 1
            fast.recv(0)
        assert sent < 20_000, "what the bus holds is bounded"
        assert numbers(slow, sent) == list(range(sent))
        sender.send(frame(sent))
        assert numbers(slow, 1) == [sent]
        assert hub.endpoints == 3


def test_a_frozen_process_is_dropped_and_the_bus_goes_on(path: Path, open_bus: Open) -> None:
    with hub_in_thread(path, stall_s=0.3) as hub, peer(path, "stand") as frozen:
        frozen.send_signal(signal.SIGSTOP)
        sender, reader = open_bus(), open_bus()
        got: list[int] = []
        for number in range(COUNT):
            sender.send(frame(number))
            if message := reader.recv(0):
                got.append(int.from_bytes(message.data, "big"))
        got += numbers(reader, COUNT - len(got))
        assert got == list(range(COUNT))
        wait_until(lambda: hub.endpoints == 2)
        frozen.send_signal(signal.SIGCONT)
        go(frozen)
        assert "has gone or dropped this endpoint" in said(frozen)


def test_a_killed_process_leaves_the_bus_whole(path: Path, open_bus: Open) -> None:
    with hub_in_thread(path) as hub, peer(path, "stand") as killed:
        sender, reader = open_bus(), open_bus()
        sender.send(frame(0))
        killed.kill()
        wait_until(lambda: hub.endpoints == 2)
        sender.send(frame(1))
        assert numbers(reader, 2) == [0, 1]


def test_an_endpoint_is_frozen_after_its_nth_frame(path: Path, open_bus: Open) -> None:
    with hub_in_thread(path) as hub:
        victim, other = open_bus(), open_bus()
        hub.freeze_after(3, arbitration_id=0x7E0)
        victim.send(frame(100, 0x123))
        for number in range(10):
            victim.send(frame(number))
        # A later connection sends the same identifier and is not touched.
        again = open_bus()
        other.send(frame(7, 0x7E8))
        assert numbers(again, 1) == [7]
        again.send(frame(50))
        assert numbers(other, 5) == [100, 0, 1, 2, 50]
        assert victim.recv(0) is None, "it hears nothing"
        victim.send(frame(11))
        assert other.recv(0.05) is None


def test_a_paced_bus_takes_the_time_of_its_bits(path: Path, open_bus: Open) -> None:
    with hub_in_thread(path, bitrate=50_000) as hub:
        sender, reader = open_bus(), open_bus()
        began = time.monotonic()
        for number in range(100):
            sender.send(frame(number))
        assert numbers(reader, 100) == list(range(100))
        bits = sum(classic_bits(0x7E0, False, frame(number).data) for number in range(100))
        # Not a measurement: no machine is so slow that frames come before the wire lets them.
        assert time.monotonic() - began >= bits / 50_000 - 0.002
        assert hub.bus_s == pytest.approx(bits / 50_000)


# --- CAN FD -------------------------------------------------------------------------------------

FD_LENGTHS = (0, 1, 7, 8, 12, 16, 20, 24, 32, 48, 64)


def fd_frame(size: int, *, extended: bool = False, brs: bool = True, esi: bool = False) -> can.Message:
    return can.Message(
        arbitration_id=0x18DAF110 if extended else 0x7E0,
        data=bytes(range(size)),
        is_extended_id=extended,
        is_fd=True,
        bitrate_switch=brs,
        error_state_indicator=esi,
    )


@pytest.mark.parametrize("paced", [False, True], ids=["unpaced", "paced"])
def test_fd_frames_pass_beside_classic_ones(path: Path, paced: bool) -> None:
    """In one order for all; a classic endpoint sees the classic ones only, and hears of no other."""
    rates = {"bitrate": 1_000_000, "data_bitrate": 8_000_000} if paced else {}
    sent = [
        one
        for size in FD_LENGTHS
        for one in (
            fd_frame(size),
            fd_frame(size, extended=True, brs=False, esi=True),
            frame(size),
            can.Message(arbitration_id=0x100, dlc=4, is_remote_frame=True, is_extended_id=False),
        )
    ]
    with (
        hub_in_thread(path, **rates) as hub,
        HubBus(path, fd=True) as sender,
        HubBus(path, fd=True, receive_own_messages=True) as reader,
        HubBus(path, receive_own_messages=True) as classic,
    ):
        for one in sent:
            sender.send(one)
        for one in sent:
            got = reader.recv(20)
            assert got is not None
            assert got.equals(one, timestamp_delta=None, check_channel=False, check_direction=False)
        for one in sent:
            if one.is_fd:
                continue
            got = classic.recv(20)
            assert got is not None
            assert got.equals(one, timestamp_delta=None, check_channel=False, check_direction=False)
        reader.send(fd_frame(64))
        own = reader.recv(20)
        assert own is not None
        assert (bytes(own.data), own.is_rx, own.is_fd) == (bytes(range(64)), False, True)
        assert classic.recv(0) is None
        assert hub.frames == len(sent) + 1


def test_a_paced_bus_switches_the_rate_of_fd_frames(path: Path) -> None:
    with (
        hub_in_thread(path, bitrate=100_000, data_bitrate=1_000_000) as hub,
        HubBus(path, fd=True, bitrate=100_000, data_bitrate=1_000_000) as sender,
        HubBus(path, fd=True) as reader,
    ):
        began = time.monotonic()
        for brs in (True, False):
            sender.send(fd_frame(64, brs=brs))
            assert reader.recv(20) is not None
        slow, fast = fd_bits(0x7E0, False, bytes(range(64)), True)
        nominal, _ = fd_bits(0x7E0, False, bytes(range(64)), False)
        takes_s = (slow + nominal) / 100_000 + fast / 1_000_000
        assert time.monotonic() - began >= takes_s - 0.002
        assert hub.bus_s == pytest.approx(takes_s)


def test_bursts_of_fd_frames_lose_nothing(path: Path) -> None:
    """Frames of all lengths, cut anywhere by the socket, from two sides at once."""
    count = 3000
    with hub_in_thread(path), HubBus(path, fd=True) as one, HubBus(path, fd=True) as other:

        def burst(bus: HubBus, seen: list[bytes]) -> None:
            for number in range(count):
                size = FD_LENGTHS[number % len(FD_LENGTHS)]
                data = (number.to_bytes(4, "big") * 16)[:size]
                bus.send(can.Message(arbitration_id=0x7E0, data=data, is_extended_id=False, is_fd=True))
            while len(seen) < count and (got := bus.recv(20)):
                seen.append(bytes(got.data))

        seen: tuple[list[bytes], list[bytes]] = ([], [])
        threads = [
            threading.Thread(target=burst, args=(one, seen[0])),
            threading.Thread(target=burst, args=(other, seen[1])),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        expected = [
            (number.to_bytes(4, "big") * 16)[: FD_LENGTHS[number % len(FD_LENGTHS)]]
            for number in range(count)
        ]
        assert seen == (expected, expected)


def test_an_fd_endpoint_is_frozen_after_its_nth_frame(path: Path) -> None:
    with hub_in_thread(path) as hub, HubBus(path, fd=True) as victim, HubBus(path, fd=True) as other:
        hub.freeze_after(2, arbitration_id=0x7E0)
        for size in (12, 64, 8, 48):
            victim.send(fd_frame(size))
        assert [len(got.data) for got in iter(lambda: other.recv(0.05), None)] == [12, 64]


# --- wrong places and wrong peers ---------------------------------------------------------------


def test_paths_that_can_not_be_are_named(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / "can.sock"
    with pytest.raises(HubError, match=r"is over 107"):
        HubServer(deep)
    with pytest.raises(can.CanInitializationError, match="is over 107"):
        HubBus(deep)
    with pytest.raises(HubError, match="No such file"), hub_in_thread(tmp_path / "nowhere" / "can.sock"):
        pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HubError, match="is no socket"), hub_in_thread(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(HubError, match="bitrate 5"):
        HubServer(tmp_path / "can.sock", bitrate=5)
    with pytest.raises(HubError, match="data_bitrate 2000000"):
        HubServer(tmp_path / "can.sock", data_bitrate=2_000_000)


def test_no_second_hub_takes_a_place_that_is_taken(path: Path, open_bus: Open) -> None:
    with hub_in_thread(path):
        with pytest.raises(HubError, match=r"listens on .* already"), hub_in_thread(path):
            pass
        one, other = open_bus(), open_bus()
        one.send(frame(1))
        assert numbers(other, 1) == [1]
    assert not path.exists()


def test_a_dead_hubs_socket_is_taken_over(path: Path, open_bus: Open) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(can.CanInitializationError, match="no hub at"):
        open_bus()
    with hub_in_thread(path) as hub:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        open_bus()
        assert hub.endpoints == 1


HELLO = GREETING.pack(MAGIC, VERSION, 0, 0, 0, 0)
HELLO_FD = GREETING.pack(MAGIC, VERSION, FD, 0, 0, 0)


def wait_end(stranger: socket.socket) -> None:
    """Until the hub ends this connection; a time-out of the socket fails the test."""
    with suppress(ConnectionResetError):
        while stranger.recv(100):
            pass


def test_whoever_does_not_speak_the_hubs_language_is_dropped(path: Path, open_bus: Open) -> None:
    with hub_in_thread(path) as hub:
        one, other = open_bus(), open_bus()
        for words in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"QHUB\x01\0\0\0\0\0\0\0\0\0\0\0",
            HELLO + b"\xff" * 16,
            HELLO + FRAME.pack(0x7E0, 8, FD, bytes(8)),
            HELLO_FD + FRAME.pack(0x7E0, 9, FD, bytes(8)),
            HELLO_FD + FRAME.pack(0x7E0, 8, 0x80, bytes(8)),
            HELLO_FD + FRAME.pack(0x800, 64, FD, bytes(8)) + bytes(64),
        ):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.settimeout(20)
                stranger.connect(str(path))
                stranger.sendall(words)
                wait_end(stranger)
        one.send(frame(5))
        assert numbers(other, 1) == [5]
        assert hub.endpoints == 2


def test_what_listens_and_is_no_hub_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"220 smtp ready\r\n")
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(can.CanInitializationError, match="no hub of this version"):
            HubBus(path)
        thread.join(10)


def test_the_end_of_the_hub_is_told(path: Path, open_bus: Open) -> None:
    with hub_in_thread(path):
        bus = open_bus()
    with pytest.raises(can.CanOperationError, match="has gone"):
        bus.recv(10)
    with pytest.raises(can.CanOperationError, match="has gone"):
        bus.send(frame(1))


def test_what_the_bus_does_not_carry_is_refused(path: Path, open_bus: Open) -> None:
    with hub_in_thread(path, bitrate=500_000):
        with pytest.raises(can.CanInitializationError, match="the hub's is 500000"):
            HubBus(path, bitrate=250_000)
        with pytest.raises(can.CanInitializationError, match="data_bitrate 2000000"):
            HubBus(path, fd=True, data_bitrate=2_000_000)
        bus = open_bus()
        for message in (
            fd_frame(12),
            can.Message(data=bytes(9), is_extended_id=False, check=False),
            can.Message(is_error_frame=True),
            can.Message(arbitration_id=0x800, is_extended_id=False, check=False),
        ):
            with pytest.raises(can.CanOperationError):
                bus.send(message)


async def test_the_hub_runs_in_the_callers_loop_too(path: Path) -> None:
    async with HubServer(path) as hub:
        one, other = await asyncio.to_thread(HubBus, path), await asyncio.to_thread(HubBus, path)
        one.send(frame(9))
        assert await asyncio.to_thread(numbers, other, 1) == [9]
        assert hub.endpoints == 2
        one.shutdown()
        other.shutdown()
