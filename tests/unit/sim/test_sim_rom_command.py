"""Words of `quarry sim mcu stm32-rom`: habits of the part, and what can't be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.sim_rom import QUIRKS, parse_quirks, stm32_rom, stm32_rom_fd
from shared.errors import ConfigError
from sim.mcu.rom_settings import RomSettings


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ([], {}),
        (["crashes"], {"crashes": True}),
        (["crashes=0"], {"crashes": False}),
        (["extra_write_acks=3", "read_single_bytes=1"], {"extra_write_acks": 3, "read_single_bytes": True}),
        (["acks_second_sync"], {"synced_again": "ack"}),
        (["go_ignores_vectors"], {"go_looks": False}),
    ],
)
def test_quirks(words: list[str], fields: dict[str, Any]) -> None:
    assert parse_quirks(words) == fields


@pytest.mark.parametrize("word", ["welsh", "extra_write_acks", "extra_write_acks=x", "crashes=2", ""])
def test_wrong_quirks(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_quirks([word])
    assert word in caught.value.message


def test_every_quirk_is_a_setting(tmp_path: Path) -> None:
    settings = RomSettings(flash_file=tmp_path / "f.bin")
    words = [name if kind is bool else f"{name}=1" for name, kind in QUIRKS.items()]
    dataclasses.replace(settings, **parse_quirks(words))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (stm32_rom, {"family": "stm32h743"}),
        (stm32_rom, {"family": "stm32x"}),
        (stm32_rom, {"dialect": "welsh"}),
        (stm32_rom_fd, {"family": "stm32f40x"}),
        (stm32_rom_fd, {"family": "stm32g431"}),
    ],
)
def test_wrong_parts(tmp_path: Path, run: Callable[..., None], words: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        run(interface="virtual", channel="x", flash=tmp_path / "f.bin", **words)
