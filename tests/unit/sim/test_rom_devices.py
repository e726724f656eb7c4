"""The simulated ROM loaders frame by frame, as AN3154 and AN5405 have them and ST's OpenBL differs."""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import can
import pytest

from shared.errors import ConfigError
from sim.mcu.faults import Faults, FaultState
from sim.mcu.flash import Flash, PowerCut
from sim.mcu.rom_loader import RomDevice, mark_of
from sim.mcu.rom_settings import RomSettings
from sim.mcu.stm32_rom import Stm32Rom
from sim.mcu.stm32_rom_fd import Stm32RomFd

START = 0x0800_0000
APPLICATION = 0x123
VECTORS = struct.pack("<II", 0x2000_1800, START + 0x101)


class Script:
    """A host that gives the device frames and writes down what it answers; its end cuts the power."""

    def __init__(self, frames: list[str], *, fd: bool) -> None:
        self.fd = fd
        self.frames = deque(frames)
        self.said: list[str] = []
        self.waited_s = 0.0
        self.bitrates: list[int] = []
        self.resets = 0
        self.most_sent = 500

    def now(self) -> float:
        return self.waited_s

    def wait(self, seconds: float) -> None:
        self.waited_s += seconds

    def receive(self, timeout_s: float) -> can.Message | None:
        if not self.frames:
            raise PowerCut
        can_id, data = self.frames.popleft().split("#")
        return can.Message(
            arbitration_id=int(can_id, 16), data=bytes.fromhex(data), is_extended_id=False, is_fd=self.fd
        )

    def send(self, arbitration_id: int, data: bytes, *, extended: bool = False, fd: bool = False) -> None:
        assert (extended, fd) == (False, self.fd and arbitration_id != APPLICATION)
        self.said.append(f"{arbitration_id:03X}#{data.hex().upper()}")

    def drop_input(self) -> None: ...

    def set_bitrate(self, bitrate: int) -> None:
        self.bitrates.append(bitrate)


Play = Callable[..., Script]


@pytest.fixture
def flash_of(tmp_path: Path) -> Iterator[Callable[[RomSettings], Flash]]:
    with ExitStack() as stack:
        made: dict[str, Flash] = {}

        def flash(settings: RomSettings) -> Flash:
            if settings.family not in made:
                made[settings.family] = stack.enter_context(
                    Flash(settings.flash_file, memory=settings.memory)
                )
            return made[settings.family]

        yield flash


@pytest.fixture
def play(tmp_path: Path, flash_of: Callable[[RomSettings], Flash]) -> Play:
    """Run a device of a family over frames, synchronised before unless `sync` is False."""

    def run(
        *frames: str,
        family: str = "stm32f105",
        sync: bool = True,
        prepare: Callable[[Flash], None] = lambda _: None,
        boot0: bool = True,
        faults: Faults | None = None,
        **habits: Any,
    ) -> Script:
        settings = RomSettings(flash_file=tmp_path / f"{family}.bin", family=family, **habits)
        flash = flash_of(settings)
        prepare(flash)
        fd = settings.part.rom == "fdcan"
        host = Script([*(["079#"] if sync else []), *frames], fd=fd)
        kind = Stm32RomFd if fd else Stm32Rom
        device: RomDevice = kind(settings, flash, FaultState(faults or Faults()), boot0=lambda: boot0)
        try:
            device.run(host, lambda: None)
        except PowerCut:
            pass
        else:
            host.resets += 1
        if sync:
            assert host.said.pop(0) == "079#79"
        return host

    return run


FD = "stm32l552"
GET = ["000#79", "000#0C", "000#20"]
LIST = [f"000#{one:02X}" for one in (0, 1, 2, 3, 0x11, 0x21, 0x31, 0x43, 0x63, 0x73, 0x82, 0x92)]
GET_FD = ["000#79", "000#0D", "000#20"]
LIST_FD = [f"000#{one:02X}" for one in (0, 1, 2, 0x11, 0x21, 0x31, 0x44, 0x63, 0x73, 0x82, 0x92, 0x50, 0x51)]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (["000#"], [*GET, *LIST, "000#79"]),
        (["001#"], ["001#79", "001#20", "001#0000", "001#79"]),
        (["002#"], ["002#79", "002#0418", "002#79"]),
        (["079#"], ["079#1F"]),
        (["055#00"], ["055#1F"]),
        # The golden trace.
        (
            ["031#0800000013", "004#0001020304050607", "004#08090A0B0C0D0E0F", "004#10111213"],
            ["031#79"] * 5,
        ),
        # Data on any identifier, that of another command too.
        (["031#0800000007", "043#0001020304050607"], ["031#79"] * 3),
        (["011#0800000009"], ["011#79", "011#FFFFFFFFFFFFFFFF", "011#FFFF", "011#79"]),
        (["043#00", "043#01"], ["043#79", "043#79", "043#79"]),
        # Nine codes: the full frame is acknowledged, the last is not.
        (["043#08", "043#0001020304050607", "043#08"], ["043#79"] * 4),
        (["043#FF"], ["043#79", "043#79"]),
    ],
)
def test_answers_of_an3154(play: Play, frames: list[str], said: list[str]) -> None:
    assert play(*frames).said == said


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (["000#"], [*GET_FD, *LIST_FD, "000#79"]),
        (["002#"], ["002#79", "002#0472", "002#79"]),
        (["031#0800000007", f"004#{'00' * 64}"], ["031#79", "031#79"]),
        # A short frame: the part waits for the bytes that are missing.
        (["031#0800000007", "004#0000000000"], ["031#79"]),
        (["011#0800000003"], ["011#79", f"011#{'FF' * 64}", "011#79"]),
        (["044#0001", f"044#{'0001' * 32}"], ["044#79"] * 3),
        (["044#FFFF"], ["044#79", "044#79"]),
        (["044#FFF0"], ["044#79", "044#1F"]),
        (["044#00"], ["044#79", "044#1F"]),
        (["050#1234"], ["050#79", "050#1F"]),
        (["051#1234"], ["051#79", "051#1F"]),
        (["003#01"], ["003#1F"]),
        (["043#00"], ["043#1F"]),
    ],
)
def test_answers_of_an5405(play: Play, frames: list[str], said: list[str]) -> None:
    assert play(*frames, family=FD).said == said


@pytest.mark.parametrize(
    "frame",
    [
        "011#60000000FF",  # no memory there
        "011#2000000007",  # the loader's own RAM
        "011#08000000",  # a header too short
        "031#1FFFB00007",  # system memory is not written
        "031#080000000700",
        "021#60000000",
        "021#0800000000",
        "021#08000000",  # no vector table
        "003#05",
        "003#00",
        "003#0102",
        "043#",
        "043#0001",
        "063#",
    ],
)
def test_what_an3154_refuses(play: Play, frame: str) -> None:
    assert play(frame).said == [f"{frame[:3]}#1F"]


@pytest.mark.parametrize(
    "frame",
    ["011#0800000007", "031#0800000007", "021#08000000", "043#00", "043#FF", "063#00", "073#", "082#"],
)
def test_readout_protection(play: Play, frame: str) -> None:
    host = play(frame, prepare=lambda flash: (flash.write(START, VECTORS), flash.readout_protect()))
    assert host.said == [f"{frame[:3]}#1F"]


@pytest.mark.parametrize("frame", ["011#0800000007", "031#0800000007", "021#08000000", "044#0001", "063#00"])
def test_readout_protection_over_fd(play: Play, frame: str) -> None:
    host = play(frame, family=FD, prepare=lambda flash: flash.readout_protect())
    assert host.said == [f"{frame[:3]}#1F"]


@pytest.mark.parametrize(
    ("habits", "frames", "said"),
    [
        ({"get_n_one_less": True}, ["000#"], [GET[0], "000#0B", GET[2], *LIST, "000#79"]),
        ({"read_single_bytes": True}, ["011#0800000001"], ["011#79", "011#FF", "011#FF", "011#79"]),
        ({"third_mass_erase_ack": True}, ["043#FF"], ["043#79"] * 3),
        (
            {"extra_write_acks": 2},
            ["031#080000000F", "004#0000000000000000", "004#0000000000000000"],
            ["031#79"] * 5,
        ),
        ({"synced_again": "ack"}, ["079#"], ["079#79"]),
        ({"dialect": "zycet"}, ["043#0102", "043#"], ["043#79"] * 3),
        ({"dialect": "count"}, ["043#0102"], ["043#79"] * 2),
        ({"family": FD, "counts_frames": True}, ["031#0800000007", "004#"], ["031#79"] * 2),
        (
            {"family": FD, "special_operations": (0x1234,)},
            ["050#1234", "004#0003", "004#010203"],
            ["050#79", "050#79", "050#79", "050#00000000", "050#79"],
        ),
        (
            {"family": FD, "special_operations": (0x1234,)},
            ["051#1234", "004#0000", "004#0048", f"004#{'00' * 64}", f"004#{'00' * 8}"],
            ["051#79", "051#79", "051#79", "051#79", "051#0000", "051#79"],
        ),
        (
            {"family": FD, "special_operations": (0x1234,)},
            ["050#1234", "004#FFFF"],
            ["050#79", "050#79", "050#1F"],
        ),
        ({"family": FD, "erase_counts_from_zero": True}, ["044#0000", "044#0001"], ["044#79"] * 3),
    ],
    ids=str,
)
def test_habits(play: Play, habits: dict[str, Any], frames: list[str], said: list[str]) -> None:
    assert play(*frames, **habits).said == said


def content(flash: Flash, start: int = START, size: int = 64) -> bytes:
    return flash.read(start, size)


@pytest.mark.parametrize(
    ("family", "header", "programmed"),
    [
        ("stm32f105", "031#0800000403", True),  # words of 4
        ("stm32f105", "031#0800000203", False),
        ("stm32l43x", "031#0800000407", False),  # words of 8
        ("stm32h743", "031#080000101F", False),  # words of 32: ACKed and not programmed (H723)
        ("stm32h743", "031#080000201F", True),
    ],
)
def test_alignment(
    play: Play,
    tmp_path: Path,
    flash_of: Callable[[RomSettings], Flash],
    family: str,
    header: str,
    programmed: bool,
) -> None:
    data = [f"004#{'AA' * 64}"] if family == "stm32h743" else ["004#AAAAAAAAAAAAAAAA"]
    assert play(header, *data, family=family).said[-1] == "031#79"
    flash = flash_of(RomSettings(flash_file=tmp_path / f"{family}.bin", family=family))
    assert (content(flash) != b"\xff" * 64) == programmed


def test_what_flash_does_not_take_is_acknowledged(
    play: Play, tmp_path: Path, flash_of: Callable[[RomSettings], Flash]
) -> None:
    """A second write over the first, a protected sector's erase and write."""
    zeros = ["031#0800000007", "004#0000000000000000"]
    ones = ["031#0800000007", "004#1111111111111111"]
    assert play(*ones, *zeros).said == ["031#79"] * 6
    flash = flash_of(RomSettings(flash_file=tmp_path / "stm32f105.bin", family="stm32f105"))
    assert content(flash, size=8) == b"\x11" * 8
    flash.write_protect([0, 1])
    assert play("043#00", "043#00").said == ["043#79"] * 3
    assert content(flash, size=8) == b"\x11" * 8
    assert play("031#0800080007", "004#0000000000000000").said == ["031#79"] * 3
    assert content(flash, START + 0x800) == b"\xff" * 64
    # Everything but those.
    assert play("043#FF").said == ["043#79"] * 2
    assert content(flash, size=8) == b"\x11" * 8


@pytest.mark.parametrize(
    ("frames", "acks"),
    [(["063#00", "063#05"], 3), (["073#"], 2), (["082#"], 2), (["092#"], 2)],
)
def test_protection_ends_with_a_reset(play: Play, frames: list[str], acks: int) -> None:
    host = play(*frames)
    assert host.said == [f"{frames[0][:3]}#79"] * acks
    assert host.resets == 1


def test_readout_unprotect_acknowledges_before_it_erases(
    play: Play, tmp_path: Path, flash_of: Callable[[RomSettings], Flash]
) -> None:
    host = play(
        "092#",
        erase_s=0.5,
        prepare=lambda flash: (
            flash.write(START, VECTORS),
            flash.write_protect([0]),
            flash.readout_protect(),
        ),
    )
    assert host.said == ["092#79", "092#79"]
    flash = flash_of(RomSettings(flash_file=tmp_path / "stm32f105.bin", family="stm32f105"))
    assert not flash.is_readout_protected
    assert content(flash) == b"\xff" * 64
    assert host.waited_s == 128 * 0.5


def test_speed(play: Play) -> None:
    host = play("003#04", speed_s=0.3)
    assert host.said == ["003#79", "003#79"]
    assert host.bitrates == [125_000, 1_000_000]
    assert host.waited_s == 0.3
    failed = play("003#02", speed_fails=True)
    assert (failed.said, failed.resets, failed.bitrates) == (["003#79"], 1, [125_000])


def test_nothing_is_answered_before_the_synchronisation(play: Play) -> None:
    assert play("000#", "011#0800000000", "079#", "002#", sync=False).said == [
        "079#79",
        "002#79",
        "002#0418",
        "002#79",
    ]


def test_times(play: Play) -> None:
    assert play("043#02", "043#010203", erase_s=0.5).waited_s == 1.5
    assert play("043#FF", mass_erase_s=7.0).waited_s == 7.0
    assert play("031#0800000007", "004#0000000000000000", program_s=0.1).waited_s == 0.2
    assert play("043#00", "043#01", faults=Faults(pending_s=3.0)).waited_s == 3.0


IMAGE = VECTORS.ljust(64, b"\x55")


@pytest.mark.parametrize(("family", "acks"), [("stm32f105", 1), (FD, 2)])
def test_go_starts_the_application(play: Play, family: str, acks: int) -> None:
    host = play(
        "021#08000000", "011#0800000000", family=family, prepare=lambda flash: flash.write(START, IMAGE)
    )
    mark = hashlib.sha256(IMAGE).digest()[:8]
    assert mark == mark_of(IMAGE)
    assert host.said[:acks] == ["021#79"] * acks


@pytest.mark.parametrize(
    ("vectors", "runs"),
    [
        (VECTORS, True),
        # A core looks at no stack pointer before it starts.
        (b"\xff" * 4 + VECTORS[4:], True),
        (VECTORS[:4] + b"\xff" * 4, False),
        (VECTORS[:4] + struct.pack("<I", START + 0x100), False),
        (VECTORS[:4] + struct.pack("<I", 0x6000_0001), False),
    ],
)
def test_what_starts_at_power_on(tmp_path: Path, vectors: bytes, runs: bool) -> None:
    settings = RomSettings(flash_file=tmp_path / "f.bin", family="stm32f105")
    with Flash(settings.flash_file, memory=settings.memory) as flash:
        flash.write(START + 8, IMAGE[8:])
        for at in (0, 4):
            if vectors[at : at + 4] != b"\xff" * 4:
                flash.write(START + at, vectors[at : at + 4])
        device = Stm32Rom(settings, flash, FaultState(Faults()), boot0=lambda: False)
        host = Script(["004#"] * 3, fd=False)
        with pytest.raises(PowerCut):
            device.run(host, lambda: None)
    assert (device.running is not None) == runs
    assert bool(host.said) == runs


@pytest.mark.parametrize(
    ("habits", "key"),
    [
        ({"family": "stm32x"}, "family"),
        ({"family": "stm32g431"}, "family"),
        ({"dialect": "welsh"}, "dialect"),
        ({"application_id": 0x800}, "application_id"),
        ({"application_s": 0}, "application_s"),
        ({"extra_write_acks": -1}, "extra_write_acks"),
        ({"erase_s": -1.0}, "erase_s"),
        ({"boot_start": 0x2000_0000}, "boot_start"),
    ],
    ids=str,
)
def test_wrong_settings(tmp_path: Path, habits: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RomSettings(flash_file=tmp_path / "f.bin", **habits)
    assert key in caught.value.message
