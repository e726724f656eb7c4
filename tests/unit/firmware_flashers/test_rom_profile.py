"""A ROM profile refuses what no part has, and names the key."""

from __future__ import annotations

from typing import Any

import pytest

from firmware_flashers.base import MemoryRange
from firmware_flashers.rom_profile import RomProfile
from shared.errors import ConfigError

START = 0x0800_0000


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"family": "stm32z9"}, "profile.family"),
        ({"family": 5}, "profile.family"),
        ({"family": "stm32h743"}, "profile.family"),  # FDCAN
        ({"family": "stm32g431"}, "profile.family"),  # no CAN in its loader
        ({"dialect": "extended"}, "profile.dialect"),
        ({"dialect": ""}, "profile.dialect"),
        ({"slot": [START, START]}, "profile.slot"),
        ({"slot": [START, START + 0x5000]}, "profile.slot"),  # no whole sectors
        ({"slot": [0x2000_0000, 0x2000_1000]}, "profile.slot"),
        ({"slot": "all"}, "profile.slot"),
        ({"slot": [START]}, "profile.slot"),
        ({"slot": [True, START]}, "profile.slot"),
        ({"never_erased": [START, START + 4]}, "profile.never_erased"),
        ({"never_erased": "calibration"}, "profile.never_erased"),
        ({"never_erased": [[START + 4, START]]}, "profile.never_erased"),
        ({"never_erased": [[START, START + 0x4000]]}, "profile.slot"),  # overlaps
        ({"speed": 100_000}, "profile.speed"),
        ({"speed": True}, "profile.speed"),
        ({"isolated_bus": "yes"}, "profile.isolated_bus"),
        ({"mass_erase": 1}, "profile.mass_erase"),
        (
            {
                "mass_erase": True,
                "never_erased": [[START, START + 0x4000]],
                "slot": [START + 0x4000, START + 0x8000],
            },
            "profile.mass_erase",
        ),
        ({"blank_check": "sometimes"}, "profile.blank_check"),
        ({"timing": 5}, "profile.timing"),
        ({"timing": {"ack_s": 0}}, "profile.timing.ack_s"),
        ({"timing": {"ack_s": "long"}}, "profile.timing.ack_s"),
        ({"timing": {"block_tries": 1.5}}, "profile.timing.block_tries"),
        ({"timing": {"nap_s": 1}}, "profile.timing.nap_s"),
        ({"sector_map": []}, "profile.sector_map"),
        ({"protocol": "stm32-uds"}, "profile.protocol"),
    ],
)
def test_wrong_values(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RomProfile.from_mapping(given)
    assert key in caught.value.message


@pytest.mark.parametrize(
    "given", [{"speed": 500_000}, {"dialect": "an3154"}, {"family": "stm32f40x"}], ids=str
)
def test_what_an5405_has_not(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RomProfile.from_mapping({"family": "stm32h743", **given}, protocol="stm32-rom-fd")


def test_sectors_that_a_code_of_one_byte_does_not_reach() -> None:
    """0xFF alone means all of the flash."""
    pages = 0x800
    given = {"family": "stm32l45x"}
    RomProfile.from_mapping({**given, "slot": [START, START + 255 * pages]})
    with pytest.raises(ConfigError) as caught:
        RomProfile.from_mapping({**given, "slot": [START, START + 256 * pages]})
    assert "sector 255" in caught.value.message


def test_a_whole_profile() -> None:
    profile = RomProfile.from_mapping(
        {
            "family": "stm32f40x",
            "dialect": "zycet",
            "slot": [START + 0x8000, START + 0x10000],
            "never_erased": [[START, START + 0x8000]],
            "speed": 1_000_000,
            "isolated_bus": True,
            "skip_unchanged": False,
            "timing": {"erase_s": 4},
        }
    )
    assert profile.area == MemoryRange(start=START + 0x8000, end=START + 0x10000)
    assert profile.timing.erase_s == 4
    capabilities = profile.capabilities
    assert capabilities.image_start == START + 0x8000
    assert MemoryRange(start=START, end=START + 0x8000) in capabilities.never_erased
    # The system memory that the loader itself lies in.
    assert any(one.start == 0x1FFF_0000 for one in capabilities.never_erased)


def test_the_defaults_are_all_of_the_flash() -> None:
    profile = RomProfile()
    assert profile.way_of_erase == "an3154"
    assert profile.area == MemoryRange(start=START, end=START + 0x10_0000)
    assert not profile.isolated_bus
    fd = RomProfile(protocol="stm32-rom-fd", family="stm32h743")
    assert (fd.way_of_erase, fd.is_fd) == ("extended", True)
