"""What an ECU with two slots says of them, and what is asked of it: ESP-IDF's OTA, over UDS.

The running application takes the new image into the passive slot, starts it on trial at the next reset
(NEW, then PENDING_VERIFY), and goes back by itself unless it is confirmed (ESP-IDF programming guide,
"App Rollback"; the states are those of esp_ota_img_states).
"""

from __future__ import annotations

import struct

from firmware_flashers import uds
from firmware_flashers.base import FlashError, MemoryRange, NotNow, NotProved
from firmware_flashers.refusals import BadAnswer
from firmware_flashers.uds_image import Place
from firmware_flashers.uds_memory import holds, overlaps
from firmware_flashers.uds_profile import UdsProfile
from firmware_flashers.uds_words import (
    CONFIRM,
    DID_CHIP_ID,
    DID_CHIP_REVISION,
    DID_PASSIVE_SLOT,
    DID_RUNNING_SLOT,
    DID_RUNNING_STATE,
    DID_SECURE_VERSION,
    ROLLBACK,
    ImageState,
)
from shared.images.esp import EspTarget

_PLACE = struct.Struct(">IIII")


class Slots:
    """One ECU's two slots, seen through its running application."""

    def __init__(self, client: uds.UdsClient, profile: UdsProfile) -> None:
        self._client = client
        self._memory = profile.memory

    def running(self, *, tries: int | None = None) -> int:
        """The slot that runs: 0 or 1."""
        slot = self._client.read(DID_RUNNING_SLOT, "the running slot", tries=tries)
        if slot not in {b"\x00", b"\x01"}:
            raise BadAnswer(f"the ECU's running slot is {slot[:8].hex()}, neither 0 nor 1")
        return slot[0]

    def state(self) -> ImageState:
        """Where the running image is on its way."""
        state = self._client.read(DID_RUNNING_STATE, "the state of the running image")
        if len(state) != 1 or state[0] not in set(ImageState):
            raise BadAnswer(f"the ECU's image state {state[:8].hex()} is unknown")
        return ImageState(state[0])

    def place(self) -> Place:
        """The passive slot and where its document lies.

        Raises BadAnswer for ranges that no profile of this family can mean.
        """
        raw = self._client.read(DID_PASSIVE_SLOT, "the passive slot")
        if len(raw) != _PLACE.size:
            raise BadAnswer(f"the ECU's passive slot has {len(raw)} bytes, not {_PLACE.size}")
        image, image_bytes, document, document_bytes = _PLACE.unpack(raw)
        slot = MemoryRange(start=image, end=image + image_bytes)
        kept = MemoryRange(start=document, end=document + document_bytes)
        for what in (slot, kept):
            if not self._memory.is_whole_sectors(what) or not holds(self._memory.slot, what):
                raise BadAnswer(
                    f"the ECU names {what.start:#x}..{what.end:#x} as passive: not whole sectors of its slots"
                )
        if overlaps(slot, kept):
            raise BadAnswer("the ECU names a passive slot that overlaps its document")
        return Place(slot=slot, document=kept)

    def target(self, place: Place) -> EspTarget:
        """What an image must fit."""
        return EspTarget(
            chip_id=self._number(DID_CHIP_ID, 2, "the chip's id"),
            revision=self._number(DID_CHIP_REVISION, 2, "the chip's revision"),
            secure_version=self._number(DID_SECURE_VERSION, 4, "the anti-rollback counter"),
            partition_bytes=place.slot.end - place.slot.start,
        )

    def confirm(self) -> None:
        """Make the running image permanent; again when it is already, harmless."""
        status = self._client.routine(CONFIRM, b"", "the confirmation of the running image")
        if status != b"\x00":
            raise NotProved(f"the ECU did not confirm the running image (status {status.hex() or 'none'})")

    def roll_back(self) -> None:
        """Give the running image up, once: the ECU resets into the other slot.

        Raises NotNow when it can't; NoAnswer, whatever it did then.
        """
        try:
            status = self._client.routine(ROLLBACK, b"", "the way back to the other image", tries=1)
        except NotNow as error:
            raise NotNow(
                error.message,
                code="nothing_to_return_to",
                advice="The vehicle must stand, and the ECU's other slot must hold a whole image; "
                "otherwise flash the former image again.",
            ) from error
        finally:
            self._client.fell_back()
        if status not in {b"", b"\x00"}:
            raise FlashError(
                f"the ECU does not go back to its other image (status {status.hex()})", code="not_reverted"
            )

    def _number(self, did: int, size: int, what: str) -> int:
        raw = self._client.read(did, what)
        if len(raw) != size:
            raise BadAnswer(f"{what} has {len(raw)} bytes, not {size}")
        return int.from_bytes(raw, "big")
