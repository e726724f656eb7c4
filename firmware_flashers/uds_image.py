"""Judges an image against its document, the configured component and the part, before a byte is sent."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from firmware_flashers.base import BadImage, FirmwareImage, MemoryRange, WrongEcu
from firmware_flashers.uds_profile import ESP, MCUBOOT, STM32, UdsProfile
from shared.errors import OtaError
from shared.images.esp import EspTarget, judge_esp, read_esp
from shared.images.mcuboot import McubootSlot, judge_mcuboot, read_mcuboot
from shared.images.stm32 import judge
from shared.release import Incompatible
from shared.trust.document import read_unverified

DOCUMENT_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an image and the document that describes it go; no document where the ECU knows of none."""

    slot: MemoryRange
    document: MemoryRange | None


def judge_image(image: FirmwareImage, profile: UdsProfile, *, kind: str, hardware: str) -> None:
    """What can be said without asking the ECU. Raises WrongEcu and BadImage."""
    spec = image.spec
    try:
        spec.check_fits(kind=kind, hardware=hardware)
    except Incompatible as error:
        raise WrongEcu(error.message) from error
    if (len(image.data), hashlib.sha256(image.data).hexdigest()) != (spec.length, spec.sha256):
        raise BadImage("the image's bytes are not the ones that its document describes")
    try:
        _judge_content(image.data, profile)
    except OtaError as error:
        raise BadImage(error.message, advice=error.advice) from error
    if not profile.has_document:
        return
    try:
        # Whose signature it carries is the bootloader's to judge; that it speaks of these bytes, ours.
        claimed = read_unverified(image.document)
    except OtaError as error:
        raise BadImage(error.message) from error
    if claimed != spec:
        raise BadImage("the document describes another firmware than the image's")


def _judge_content(data: bytes, profile: UdsProfile) -> None:
    memory = profile.memory
    if profile.image == STM32:
        judge(data, memory.layout)
    elif profile.image == MCUBOOT:
        slot_bytes = memory.slot.end - memory.slot.start
        judge_mcuboot(read_mcuboot(data), McubootSlot(slot_bytes=slot_bytes, write_bytes=memory.word_bytes))


def judge_place(image: FirmwareImage, place: Place) -> None:
    """Whether image and document have room. Raises BadImage."""
    slot_bytes = place.slot.end - place.slot.start
    if len(image.data) > slot_bytes:
        raise BadImage(f"the image has {len(image.data)} bytes, the slot holds {slot_bytes}")
    if place.document is None:
        return
    room = place.document.end - place.document.start - DOCUMENT_LENGTH.size
    if len(image.document) > room:
        raise BadImage(f"the document has {len(image.document)} bytes, the ECU keeps {room}")


def judge_part(image: FirmwareImage, profile: UdsProfile, target: EspTarget) -> None:
    """Whether this very part can start it, by the facts that it gave. Raises BadImage."""
    if profile.image != ESP:
        return
    try:
        judge_esp(read_esp(image.data), target)
    except OtaError as error:
        raise BadImage(error.message, advice=error.advice) from error


def document_bytes(image: FirmwareImage) -> bytes:
    """The document as an ECU keeps it: its length, then itself."""
    return DOCUMENT_LENGTH.pack(len(image.document)) + image.document
