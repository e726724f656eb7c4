"""The commands byte by byte, against answers written down from AN3154, AN5405 and ST's own implementation."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import can
import pytest

from firmware_flashers.base import FlashError, NoAnswer
from firmware_flashers.can_link import BitrateFixed, CanLink
from firmware_flashers.isotp import Interrupted
from firmware_flashers.refusals import BadAnswer
from firmware_flashers.rom_profile import RomTiming
from firmware_flashers.rom_words import BusNotIsolated, Nacked, NotListed
from firmware_flashers.stm32_rom import RomLoader

QUICK = RomTiming(ack_s=0.05, sync_s=0.3, probe_s=0.02, erase_s=0.05, program_s=0.05, mass_erase_s=0.05)


class Scripted(can.BusABC):
    """A loader that says what it is told to: each line of the script is `H id#data` or `D id#data`.

    A frame of the host that is not the next H of the script fails the test.
    """

    def __init__(self, script: str) -> None:
        self.lines = deque(line.split("<-")[0].split() for line in script.strip().splitlines())
        self.ready: deque[can.Message] = deque()
        self.fd_frames: set[bool] = set()
        self._advance()
        super().__init__("scripted")

    def _advance(self) -> None:
        while self.lines and self.lines[0][0] == "D":
            self.ready.append(frame(self.lines.popleft()[1]))

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        assert self.lines, f"nothing was due, but {told(msg)} came"
        assert told(msg) == self.lines[0][1].upper()
        self.fd_frames.add(msg.is_fd)
        self.lines.popleft()
        self._advance()

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        if self.ready:
            return self.ready.popleft(), False
        # Silence costs the time that it would on a bus: those waits are of hundredths.
        threading.Event().wait(timeout or 0)
        return None, False

    def shutdown(self) -> None:
        self._is_shutdown = True


def told(msg: can.Message) -> str:
    return f"{msg.arbitration_id:03X}#{bytes(msg.data).hex().upper()}"


def frame(text: str) -> can.Message:
    can_id, data = text.split("#")
    return can.Message(
        arbitration_id=int(can_id, 16),
        data=bytes.fromhex(data),
        is_extended_id=len(can_id) > 3,
        is_fd=len(data) > 16,
    )


Act = Callable[[RomLoader], Any]


def play(script: str, act: Act, *, fd: bool = False) -> Any:
    bus = Scripted(script)
    loader = RomLoader(CanLink(bus, name="scripted", fd=fd), QUICK, fd=fd)
    try:
        result = act(loader)
    finally:
        bus.shutdown()
    assert not bus.lines, f"not sent: {list(bus.lines)}"
    assert bus.fd_frames <= {fd}
    return result


DATA20 = bytes(range(20))

GOLDEN = """
H 031#0800000013
D 031#79
H 004#0001020304050607
D 031#79
H 004#08090A0B0C0D0E0F
D 031#79
H 004#10111213
D 031#79
D 031#79          <- only now programmed
"""

LIST = "\n".join(f"D 000#{one:02X}" for one in (0, 1, 2, 3, 0x11, 0x21, 0x31, 0x43, 0x63, 0x73, 0x82, 0x92))
COMMANDS = {0, 1, 2, 3, 0x11, 0x21, 0x31, 0x43, 0x63, 0x73, 0x82, 0x92}


def test_the_golden_trace_of_a_write() -> None:
    play(GOLDEN, lambda loader: loader.write(0x0800_0000, DATA20))


@pytest.mark.parametrize("said", ["0C", "0B", "FF"])
def test_get_does_not_believe_n(said: str) -> None:
    listed = play(f"H 000#\nD 000#79\nD 000#{said}\nD 000#20\n{LIST}\nD 000#79", RomLoader.get)
    assert (listed.version, listed.commands) == (0x20, COMMANDS)


def test_a_command_that_is_not_listed_is_not_sent() -> None:
    def act(loader: RomLoader) -> None:
        loader.get()
        with pytest.raises(NotListed) as caught:
            loader.write(0x0800_0000, DATA20)
        assert not caught.value.touched

    play("H 000#\nD 000#79\nD 000#01\nD 000#20\nD 000#00\nD 000#79", act)


@pytest.mark.parametrize(
    ("script", "act", "result"),
    [
        ("H 001#\nD 001#79\nD 001#31\nD 001#0000\nD 001#79", RomLoader.get_version, 0x31),
        ("H 002#\nD 002#79\nD 002#0413\nD 002#79", RomLoader.get_id, 0x413),
        (
            "H 011#0800000007\nD 011#79\nD 011#0102030405060708\nD 011#79",
            lambda loader: loader.read(0x0800_0000, 8),
            bytes(range(1, 9)),
        ),
        (
            # AN3154: the rest in one frame.
            "H 011#080000000A\nD 011#79\nD 011#0102030405060708\nD 011#090A0B\nD 011#79",
            lambda loader: loader.read(0x0800_0000, 11),
            bytes(range(1, 12)),
        ),
        (
            # OpenBL: the rest byte by byte, one of them like an acknowledgement.
            "H 011#080000000A\nD 011#79\nD 011#0102030405060708\nD 011#79\nD 011#0A\nD 011#0B\nD 011#79",
            lambda loader: loader.read(0x0800_0000, 11),
            bytes.fromhex("0102030405060708790A0B"),
        ),
        ("H 021#08000000\nD 021#79", lambda loader: loader.go(0x0800_0000), None),
        ("H 043#00\nD 043#79\nD 043#79\nH 043#05\nD 043#79", lambda one: one.erase(5, "an3154"), None),
        ("H 043#05\nD 043#79\nH 043#\nD 043#79\nD 043#79", lambda one: one.erase(5, "zycet"), None),
        ("H 043#05\nD 043#79\nD 043#79", lambda one: one.erase(5, "count"), None),
        ("H 043#FF\nD 043#79\nD 043#79\nD 043#79", RomLoader.mass_erase, None),
        (
            "H 063#08\nD 063#79\nH 063#0001020304050607\nD 063#79\nH 063#08\nD 063#79\nD 063#79",
            lambda loader: loader.write_protect(list(range(9))),
            None,
        ),
        ("H 073#\nD 073#79\nD 073#79", RomLoader.write_unprotect, None),
        ("H 082#\nD 082#79\nD 082#79", RomLoader.readout_protect, None),
        ("H 092#\nD 092#79\nD 092#79", RomLoader.readout_unprotect, None),
    ],
)
def test_commands_of_an3154(script: str, act: Act, result: Any) -> None:
    assert play(script, act) == result


FF = "FF" * 44
SPECIALLY = """
H 051#1234
D 051#79
D 051#79
H 004#0000
D 051#79
H 004#0001
H 004#09
D 051#79
D 051#0000
D 051#79
"""
WRITE_84 = f"""
H 031#0800000053
D 031#79
H 004#{bytes(range(64)).hex()}
H 004#{bytes(range(64, 84)).hex()}{FF}
D 031#79
"""


@pytest.mark.parametrize(
    ("script", "act", "result"),
    [
        (
            WRITE_84,
            lambda loader: loader.write(0x0800_0000, bytes(range(84))),
            None,
        ),
        (
            f"H 011#0800000013\nD 011#79\nD 011#{DATA20.hex()}{FF}\nD 011#79",
            lambda loader: loader.read(0x0800_0000, 20),
            DATA20,
        ),
        ("H 021#08000000\nD 021#79\nD 021#79", lambda loader: loader.go(0x0800_0000), None),
        (
            f"H 044#0001\nD 044#79\nD 044#79\nH 044#{'0105' * 32}\nD 044#79",
            lambda loader: loader.erase(0x105, "extended"),
            None,
        ),
        ("H 044#FFFF\nD 044#79\nD 044#79", RomLoader.mass_erase, None),
        (
            "H 050#1234\nD 050#79\nD 050#79\nH 004#0003\nH 004#010203\nD 050#79\nD 050#00000000\nD 050#79",
            lambda loader: loader.special(0x1234, b"\x01\x02\x03"),
            bytes(4),
        ),
        (
            SPECIALLY,
            lambda loader: loader.extended_special(0x1234, b"", b"\x09"),
            bytes(2),
        ),
        (
            "H 063#0A" + "00010203040506070809" + "FF\nD 063#79\nD 063#79",
            lambda loader: loader.write_protect(list(range(10))),
            None,
        ),
    ],
)
def test_commands_of_an5405(script: str, act: Act, result: Any) -> None:
    assert play(script, act, fd=True) == result


@pytest.mark.parametrize(
    ("script", "act"),
    [
        ("H 011#0800000007\nD 011#1F", lambda loader: loader.read(0x0800_0000, 8)),
        ("H 031#0800000007\nD 031#1F", lambda loader: loader.write(0x0800_0000, bytes(8))),
        (
            "H 031#0800000007\nD 031#79\nH 004#0000000000000000\nD 031#1F",
            lambda loader: loader.write(0x0800_0000, bytes(8)),
        ),
        ("H 021#08000000\nD 021#1F", lambda loader: loader.go(0x0800_0000)),
        ("H 043#00\nD 043#1F", lambda loader: loader.erase(0, "an3154")),
        ("H 043#00\nD 043#79\nD 043#79\nH 043#00\nD 043#1F", lambda loader: loader.erase(0, "an3154")),
        ("H 043#FF\nD 043#79\nD 043#1F", RomLoader.mass_erase),
        ("H 063#00\nD 063#1F", lambda loader: loader.write_protect([1])),
        ("H 073#\nD 073#1F", RomLoader.write_unprotect),
        ("H 082#\nD 082#1F", RomLoader.readout_protect),
        ("H 092#\nD 092#1F", RomLoader.readout_unprotect),
        ("H 002#\nD 002#1F", RomLoader.get_id),
    ],
)
def test_every_refusal_has_its_name(script: str, act: Act) -> None:
    with pytest.raises(Nacked):
        play(script, act)


@pytest.mark.parametrize(
    ("script", "act", "kind"),
    [
        ("H 002#", RomLoader.get_id, NoAnswer),
        ("H 002#\nD 002#79\nD 002#04\nD 002#79", RomLoader.get_id, BadAnswer),
        ("H 002#\nD 002#55", RomLoader.get_id, BadAnswer),
        ("H 002#\nD 002#", RomLoader.get_id, BadAnswer),
        ("H 000#\nD 000#79\nD 000#0102", RomLoader.get, BadAnswer),
        ("H 000#\nD 000#79\n" + "D 000#02\n" * 64, RomLoader.get, BadAnswer),
        ("H 001#\nD 001#79\nD 001#20\nD 001#79", RomLoader.get_version, BadAnswer),
        # A frame of the data is lost: the acknowledgement comes where eight bytes were due.
        (
            "H 011#080000000F\nD 011#79\nD 011#0102030405060708\nD 011#79",
            lambda loader: loader.read(0x0800_0000, 16),
            BadAnswer,
        ),
        # One frame too many.
        (
            "H 011#0800000007\nD 011#79\nD 011#0102030405060708\nD 011#0102030405060708",
            lambda loader: loader.read(0x0800_0000, 8),
            BadAnswer,
        ),
        (
            "H 031#0800000007\nD 031#79\nH 004#0000000000000000",
            lambda loader: loader.write(0x0800_0000, bytes(8)),
            NoAnswer,
        ),
        ("H 002#\nD 002#79\nD 123#00", RomLoader.get_id, BusNotIsolated),
        ("H 002#\nD 002#79\nD 00000002#00", RomLoader.get_id, BusNotIsolated),
    ],
)
def test_wrong_answers(script: str, act: Act, kind: type[FlashError]) -> None:
    with pytest.raises(kind):
        play(script, act)


def test_late_answers_of_other_commands_are_passed_over() -> None:
    script = "H 002#\nD 043#79\nD 079#1F\nD 002#79\nD 011#1F\nD 002#0413\nD 002#79"
    assert play(script, RomLoader.get_id) == 0x413


# What is asked before the last acknowledgements have come is asked of a loader that waits for commands.
IN_A_WRITE = """
H 079#
D 031#79
H 004#FFFFFFFFFFFFFFFF
D 031#79
D 031#79
H 004#FFFFFFFFFFFFFFFF
D 004#1F
H 004#FFFFFFFFFFFFFFFF
D 004#1F
H 079#
D 079#1F
H 079#
D 079#1F
"""


@pytest.mark.parametrize(
    ("script", "filled", "was_reset"),
    [
        ("H 079#\nD 079#79", 0, True),
        ("H 079#\nD 079#1F", 0, False),
        # In the middle of a write: two frames were still due.
        (
            IN_A_WRITE,
            3,
            False,
        ),
        # It does not know the filling and says nothing.
        ("H 079#\nD 031#79\nH 004#FFFFFFFFFFFFFFFF\nH 079#\nD 079#1F", 1, False),
    ],
)
def test_a_loader_is_found_in_the_middle_of_anything(script: str, filled: int, was_reset: bool) -> None:
    found = play(script, lambda loader: loader.resync(b"\xff" * 8, sync_first=True))
    assert found.was_reset == was_reset
    assert (found.filled > 0) == (filled > 0)


def test_nobody_is_there() -> None:
    bus = Scripted("")
    bus.send = lambda msg, timeout=None: None  # type: ignore[method-assign]
    with pytest.raises(NoAnswer) as caught:
        RomLoader(CanLink(bus, name="scripted"), QUICK, fd=False).resync(b"\xff" * 8)
    assert "BOOT0" in caught.value.advice
    bus.shutdown()


def test_the_rate_of_a_link_that_has_it_from_the_system() -> None:
    """Found out before the part has changed its own."""
    with pytest.raises(BitrateFixed):
        play("", lambda loader: loader.set_speed(1_000_000))


def test_a_cancelled_wait_ends() -> None:
    bus = Scripted("H 002#")
    interrupt = threading.Event()
    loader = RomLoader(CanLink(bus, name="scripted"), QUICK, fd=False, interrupt=interrupt)
    interrupt.set()
    with pytest.raises(Interrupted):
        loader.get_id()
    bus.shutdown()
