"""What goes into a release is judged first, by the same judges that the flashers ask before they send."""

from __future__ import annotations

from enum import StrEnum

import typer

from shared.images.esp import read_esp
from shared.images.formats import read
from shared.images.mcuboot import read_mcuboot
from shared.images.stm32 import Stm32Layout, judge
from shared.images.stm32_families import FAMILIES


class Judge(StrEnum):
    """By whose rules an image is looked at."""

    STM32 = "stm32"
    ESP = "esp"
    MCUBOOT = "mcuboot"
    NONE = "none"


def judged(content: bytes, by: Judge, *, family: str | None, slot: str | None) -> bytes:
    """The image as it is flashed: raw bytes out of whatever file the linker made.

    Raises BadImageLayout that says why it could not start; typer.BadParameter for a missing option.
    """
    match by:
        case Judge.NONE:
            return content
        case Judge.ESP:
            read_esp(content)
            return content
        case Judge.MCUBOOT:
            read_mcuboot(content)
            return content
        case Judge.STM32:
            layout = _layout(family, slot)
            image = read(content, base=layout.slot_start)
            judge(image.data, layout, base=image.base)
            return image.data


def _layout(family: str | None, slot: str | None) -> Stm32Layout:
    if family not in FAMILIES:
        raise typer.BadParameter(f"--family is one of {', '.join(sorted(FAMILIES))}")
    start, _, end = (slot or "").partition("..")
    try:
        return Stm32Layout.of_family(FAMILIES[family], slot_start=int(start, 0), slot_end=int(end, 0))
    except ValueError as error:
        raise typer.BadParameter(f"--slot is START..END, as 0x08010000..0x08080000: {error}") from error
