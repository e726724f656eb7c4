"""The commands of the CAN loader in an STM32's ROM: ST AN3154 (bxCAN) and AN5405 (FDCAN). Blocking.

The identifier of a frame is the command's code, in both directions; an acknowledgement is one byte. Traps of
the documents and of the parts, met here so that callers need not know them:

- **An acknowledgement says that bytes arrived, not that they were programmed or erased** (AN3154, 3.8 and
  3.9: no error is returned for protected sectors). Callers read back.
- Some parts acknowledge a data frame twice; what is found too many is waited out before each frame.
- Get's N is not believed; what the loader lists ends with its acknowledgement.
"""

from __future__ import annotations

from firmware_flashers.base import NoAnswer
from firmware_flashers.can_link import BitrateFixed
from firmware_flashers.refusals import BadAnswer
from firmware_flashers.rom_profile import SPEEDS
from firmware_flashers.rom_wire import RomWire
from firmware_flashers.rom_words import (
    ACK,
    ADDRESS,
    DATA,
    ERASE,
    EXTENDED_ERASE,
    EXTENDED_MASS_ERASE,
    EXTENDED_SPECIAL,
    GET,
    GET_ID,
    GET_VERSION,
    GO,
    HEADER,
    MASS_ERASE,
    MOST_LISTED,
    READ,
    READOUT_PROTECT,
    READOUT_UNPROTECT,
    SPECIAL,
    SPEED,
    WRITE,
    WRITE_PROTECT,
    WRITE_UNPROTECT,
    Listed,
)


class RomLoader(RomWire):
    """One loader, spoken to from one thread. Raises FlashError (see its kinds) and nothing else."""

    # --- what it is ------------------------------------------------------------------------------

    def get(self) -> Listed:
        """The version of the protocol and the commands that the loader knows."""
        self.begin(GET, b"")
        values: list[int] = []
        while len(values) < MOST_LISTED:
            data = self.data(GET, self.timing.ack_s)
            if len(data) != 1:
                raise BadAnswer(f"the loader's list of commands holds {data.hex()}")
            # The code of no command is that of an acknowledgement.
            if data[0] == ACK and len(values) > 1:
                self.listed = frozenset(values[2:])
                return Listed(version=values[1], commands=self.listed)
            values.append(data[0])
        raise BadAnswer(f"the loader lists more than {MOST_LISTED} commands")

    def get_version(self) -> int:
        """The version of the protocol, 0x20 for 2.0."""
        self.begin(GET_VERSION, b"")
        version = self.data(GET_VERSION, self.timing.ack_s)
        options = self.data(GET_VERSION, self.timing.ack_s)
        if len(version) != 1 or len(options) != 2:
            raise BadAnswer(f"the loader's version is {version.hex()} {options.hex()}")
        self.acknowledged(GET_VERSION, self.timing.ack_s)
        return version[0]

    def get_id(self) -> int:
        """The product id."""
        self.begin(GET_ID, b"")
        product = self.data(GET_ID, self.timing.ack_s)
        if len(product) != 2:
            raise BadAnswer(f"the loader's product id is {product.hex()}")
        self.acknowledged(GET_ID, self.timing.ack_s)
        return int.from_bytes(product, "big")

    # --- memory ----------------------------------------------------------------------------------

    def read(self, address: int, length: int, *, first_s: float | None = None) -> bytes:
        """1 to 256 bytes. `first_s` bounds the wait for a loader that may still be busy."""
        self.begin(READ, HEADER.pack(address, length - 1), first_s)
        receive, frame_bytes = self.link.receive, self.frame_bytes
        ack_s, interrupted = self.timing.ack_s, self.interrupt.is_set
        got = bytearray()
        while len(got) < length:
            message = receive(ack_s)
            if message is None or message.arbitration_id != READ:
                data = self.data(READ, ack_s, message)
            else:
                data = message.data
            # OpenBL sends what is left after whole frames byte by byte, AN3154 in one frame.
            if len(data) != frame_bytes and (
                self.fd or len(got) + len(data) > length or length - len(got) >= 8
            ):
                raise BadAnswer(
                    f"{len(data)} bytes came from {address + len(got):#010x} where {frame_bytes} were due"
                )
            got += data
            if interrupted():
                self.check_interrupt()
        self.acknowledged(READ, ack_s)
        return bytes(got[:length])

    def write(self, address: int, data: bytes) -> None:
        """1 to 256 bytes, whole flash words at an aligned address. Proves nothing: read back."""
        frame_bytes, ack_s = self.frame_bytes, self.timing.ack_s
        self.begin(WRITE, HEADER.pack(address, len(data) - 1))
        if self.fd:
            # The loader waits for whole frames (AN5405); they are not acknowledged one by one.
            for at in range(0, len(data), frame_bytes):
                self.send(DATA, data[at : at + frame_bytes].ljust(frame_bytes, b"\xff"))
        else:
            send, receive, settle = self.link.send, self.link.receive, self.doubles_acks
            for at in range(0, len(data), frame_bytes):
                if settle:
                    self.settle()
                send(DATA, data[at : at + frame_bytes], extended=False)
                message = receive(ack_s)
                if message is None or message.arbitration_id != WRITE or message.data != b"\x79":
                    self.acknowledged(WRITE, ack_s, message)
        self.acknowledged(WRITE, self.timing.program_s)

    def erase(self, sector: int, dialect: str) -> None:
        """One sector by its number. Proves nothing: look whether it is blank."""
        erase_s, ack_s = self.timing.erase_s, self.timing.ack_s
        match dialect:
            case "extended":
                # The number of the only sector fills the frame, so that it matters not whether a part counts
                # from 0 or from 1 (AN5405 and OpenBL differ).
                self.begin(EXTENDED_ERASE, (1).to_bytes(2, "big"))
                self.acknowledged(EXTENDED_ERASE, ack_s)
                self.send(EXTENDED_ERASE, sector.to_bytes(2, "big") * 32)
                self.acknowledged(EXTENDED_ERASE, erase_s)
            case "an3154":
                self.begin(ERASE, b"\x00")
                self.acknowledged(ERASE, ack_s)
                self.send(ERASE, bytes([sector]))
                self.acknowledged(ERASE, erase_s)
            case "zycet":
                self.begin(ERASE, bytes([sector]))
                self.send(ERASE, b"")
                self.acknowledged(ERASE, ack_s)
                self.acknowledged(ERASE, erase_s)
            case _:
                self.begin(ERASE, bytes([sector]))
                self.acknowledged(ERASE, erase_s)

    def filling_of_erase(self, sector: int, dialect: str) -> bytes:
        """What a loader that waits for sector codes may be given without harm: the same sector again."""
        if dialect == "extended":
            return sector.to_bytes(2, "big") * 32
        return bytes([sector]) * 8

    def mass_erase(self) -> None:
        """Everything, protected ranges of the profile too."""
        if self.fd:
            self.begin(EXTENDED_ERASE, EXTENDED_MASS_ERASE)
            self.acknowledged(EXTENDED_ERASE, self.timing.mass_erase_s)
            return
        self.begin(ERASE, MASS_ERASE)
        self.acknowledged(ERASE, self.timing.mass_erase_s)
        # OpenBL adds a third acknowledgement: it is passed over as late when it comes.

    def go(self, address: int) -> None:
        """Start what the vector table at `address` says; from here on there is no loader."""
        self.begin(GO, ADDRESS.pack(address))
        if self.fd:
            self.acknowledged(GO, self.timing.ack_s)

    # --- what a product adds to AN5405

    def special(self, operation: int, data: bytes = b"") -> bytes:
        """An operation of the product's own, with up to 128 bytes; returns what is answered, sizes included.

        Frames as in ST's openbl_fdcan_cmd.c. Raises Nacked for an operation that the loader does not know.
        """
        self._begin_special(SPECIAL, operation)
        self._send_sized(data)
        self.acknowledged(SPECIAL, self.timing.program_s)
        return self._until_acknowledged(SPECIAL)

    def extended_special(self, operation: int, data: bytes = b"", more: bytes = b"") -> bytes:
        """The same with two pieces of data, the second of up to 1024 bytes."""
        self._begin_special(EXTENDED_SPECIAL, operation)
        for piece in (data, more):
            self._send_sized(piece)
            self.acknowledged(EXTENDED_SPECIAL, self.timing.program_s)
        return self._until_acknowledged(EXTENDED_SPECIAL)

    def _begin_special(self, command: int, operation: int) -> None:
        self.begin(command, operation.to_bytes(2, "big"))
        self.acknowledged(command, self.timing.ack_s)

    def _send_sized(self, data: bytes) -> None:
        self.send(DATA, len(data).to_bytes(2, "big"))
        for at in range(0, len(data), self.frame_bytes):
            self.send(DATA, _padded(data[at : at + self.frame_bytes]))

    def _until_acknowledged(self, command: int) -> bytes:
        answer = bytearray()
        for _ in range(MOST_LISTED):
            data = self.data(command, self.timing.program_s)
            if data == b"\x79":
                return bytes(answer)
            answer += data
        raise BadAnswer(f"the answer to command {command:#04x} has no end")

    # --- bit rate and protection -----------------------------------------------------------------

    def set_speed(self, bitrate: int) -> None:
        """Change the loader's and the link's bit rate. Raises BitrateFixed before anything is sent."""
        if not self.link.sets_bitrate:
            raise BitrateFixed(f"{self.link.name}: the bit rate can't be changed to {bitrate} from here")
        self.begin(SPEED, bytes([SPEEDS.index(bitrate) + 1]))
        self.link.set_bitrate(bitrate)
        try:
            self.acknowledged(SPEED, self.timing.speed_s)
        except NoAnswer:
            # It may have come while the link was being opened anew.
            self.resync(b"\xff" * self.frame_bytes, sync_first=True)

    def write_protect(self, sectors: list[int]) -> None:
        """Protect sectors, then the part resets itself."""
        if self.fd:
            body = bytes([len(sectors), *sectors])
            self.begin(WRITE_PROTECT, _padded(body))
        else:
            self.begin(WRITE_PROTECT, bytes([len(sectors) - 1]))
            codes = bytes(sectors)
            for at in range(0, len(codes), 8):
                self.send(WRITE_PROTECT, codes[at : at + 8])
                self.acknowledged(WRITE_PROTECT, self.timing.ack_s)
        self.acknowledged(WRITE_PROTECT, self.timing.program_s)

    def write_unprotect(self) -> None:
        """Protect no sector any more, then the part resets itself."""
        self.begin(WRITE_UNPROTECT, b"")
        self.acknowledged(WRITE_UNPROTECT, self.timing.program_s)

    def readout_protect(self) -> None:
        """Refuse every access to memory from the part's own reset on."""
        self.begin(READOUT_PROTECT, b"")
        self.acknowledged(READOUT_PROTECT, self.timing.program_s)

    def readout_unprotect(self) -> None:
        """Erase everything and allow access again; both acknowledgements come before the erase (OpenBL)."""
        self.begin(READOUT_UNPROTECT, b"")
        self.acknowledged(READOUT_UNPROTECT, self.timing.ack_s)


def _padded(body: bytes) -> bytes:
    """Up to a length that an FD frame can have (ISO 11898-1, table 5)."""
    size = next(one for one in (*range(9), 12, 16, 20, 24, 32, 48, 64) if one >= len(body))
    return body.ljust(size, b"\xff")
