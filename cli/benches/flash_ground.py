"""What the flash benchmarks flash: a key, signed images, a simulated STM32 and how to reach it."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from firmware_flashers.base import FirmwareImage, MemoryRange
from firmware_flashers.registry import EcuSettings
from firmware_flashers.uds_memory import MemoryMap
from firmware_flashers.uds_profile import UdsProfile
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.mcu.assembly import McuSettings
from sim.mcu.images import FILLER_OFFSET, build_image
from sim.mcu.memory import KIB, Area
from sim.mcu.memory import MemoryMap as SimMap
from sim.mcu.profile import EcuIdentity

KIND, HARDWARE = "bench-ecu", "rev-a"
SECRET = bytes(range(32))
REQUEST_ID, RESPONSE_ID = 0x7E0, 0x7E8
_SECTORS = (*[16 * KIB] * 4, 64 * KIB, *[128 * KIB] * 8)
_SLOT = (0x0802_0000, 0x0802_0000 + 1024 * KIB)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """One MCU with a 1 MiB slot of eight 128 KiB sectors, its keys and its files."""

    folder: Path
    private_key: bytes
    public_key: bytes

    def image(self, version: str, nbytes: int, *, seed: str = "") -> FirmwareImage:
        """A signed image of bytes that don't compress; `seed` changes them."""
        data = build_image(version, nbytes, _SLOT[0])
        if seed:
            filler = random.Random(seed).randbytes(nbytes - FILLER_OFFSET)
            data = data[:FILLER_OFFSET] + filler
        return self.signed(version, data)

    def signed(self, version: str, data: bytes) -> FirmwareImage:
        """Any bytes, signed as this MCU's firmware."""
        spec = FirmwareSpec(
            kind=KIND,
            hardware=(HARDWARE,),
            version=version,
            release_counter=1,
            length=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        until = datetime(2045, 1, 1, tzinfo=UTC)
        return FirmwareImage(
            spec=spec, data=data, document=make_document(spec, load_signer(self.private_key), until)
        )

    def mcu(self) -> McuSettings:
        """The part's own settings; it takes no time to erase and to program."""
        return mcu_settings(self.folder, self.public_key)

    def ecu(
        self, interface: str, channel: str, *, bitrate: int | None = None, data_bitrate: int | None = None
    ) -> EcuSettings:
        """How the flasher reaches it; CAN FD with a data bit rate."""
        return EcuSettings(
            component="bench",
            flasher="stm32-uds",
            interface=interface,
            channel=channel,
            bitrate=bitrate,
            fd=data_bitrate is not None,
            data_bitrate=data_bitrate,
            tx_id=REQUEST_ID,
            rx_id=RESPONSE_ID,
            kind=KIND,
            hardware=HARDWARE,
            security_secret_file=self.folder / "secret",
            profile=UdsProfile(
                memory=MemoryMap(sectors=_SECTORS, slot=MemoryRange(start=_SLOT[0], end=_SLOT[1]))
            ),
        )


def mcu_settings(folder: Path, public_key: bytes) -> McuSettings:
    """The simulated part whose flash is in `folder`."""
    return McuSettings(
        flash_file=folder / "flash.bin",
        identity=EcuIdentity(kind=KIND, hardware=HARDWARE),
        public_keys=(public_key,),
        security_secret=SECRET,
        memory=SimMap(sectors=_SECTORS, slot=Area(start=_SLOT[0], end=_SLOT[1])),
    )


@contextmanager
def ground() -> Iterator[Ground]:
    """A fresh folder with keys and an empty part; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="quarry-bench-") as name:
        folder = Path(name)
        private, public = new_key()
        secret = folder / "secret"
        secret.write_bytes(SECRET)
        secret.chmod(0o600)
        (folder / "public.pem").write_bytes(public)
        yield Ground(folder=folder, private_key=private, public_key=public)
