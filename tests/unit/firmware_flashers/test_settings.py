"""Settings, profiles and secrets: what is wrong is named by its key, and nothing secret shows itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firmware_flashers.base import MemoryRange, TrustClass
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.security import HmacSha256, Secret, read_secret
from firmware_flashers.uds_memory import MemoryMap
from firmware_flashers.uds_profile import PROFILES, UdsProfile, UdsTiming
from shared.errors import ConfigError


@pytest.fixture
def good(secret_file: Path) -> dict[str, Any]:
    return {
        "component": "brakes",
        "flasher": "stm32-uds",
        "interface": "virtual",
        "channel": "x",
        "tx_id": 0x7E0,
        "rx_id": 0x7E8,
        "kind": "brake-controller",
        "hardware": "B2",
        "security_secret_file": secret_file,
    }


def test_good_settings_open(good: dict[str, Any]) -> None:
    settings = EcuSettings(**good)
    assert settings.profile == UdsProfile()
    assert open_flasher(settings) is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flasher", "stm32-usd"),
        ("flasher", ""),
        ("interface", "socketcam"),
        ("channel", ""),
        ("component", ""),
        ("component", "a b"),
        ("kind", "x" * 65),
        ("hardware", "B2\n"),
        ("bitrate", 0),
        ("bitrate", 2_000_000),
        ("tx_id", -1),
        ("tx_id", 0x2000_0000),
        ("rx_id", 0x7E0),
        ("rx_id", 0x18DAF110),
        ("security_secret_file", Path("/nonexistent/secret")),
    ],
)
def test_a_bad_value_names_its_key(good: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        EcuSettings(**(good | {key: value}))


def test_29_bit_identifiers_are_settings_too(good: dict[str, Any]) -> None:
    EcuSettings(**(good | {"tx_id": 0x18DA10F1, "rx_id": 0x18DAF110}))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777, 0o610])
def test_a_secret_that_others_can_open_is_refused(secret_file: Path, mode: int) -> None:
    secret_file.chmod(mode)
    with pytest.raises(ConfigError, match="security_secret_file") as caught:
        read_secret(secret_file)
    assert "chmod 600" in caught.value.advice


@pytest.mark.parametrize("content", [b"", b"\x01" * 31, b"\x01" * 33, b"0f" * 31, b"zz" * 32, b"0f" * 33])
def test_a_secret_of_another_form_is_refused_and_not_shown(secret_file: Path, content: bytes) -> None:
    secret_file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_secret(secret_file)
    assert content[:8].decode("latin-1") not in caught.value.message or not content


def test_a_secret_may_be_raw_or_hex(secret_file: Path) -> None:
    raw = read_secret(secret_file)
    secret_file.write_text(raw.value.hex() + "\n")
    assert read_secret(secret_file) == raw
    secret_file.chmod(0o400)
    assert read_secret(secret_file) == raw


def test_a_folder_or_a_pipe_is_no_secret(tmp_path: Path) -> None:
    import os

    tmp_path.chmod(0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError):
            read_secret(path)


def test_a_secret_does_not_show_itself() -> None:
    assert "42" not in repr(Secret(b"\x42" * 32))


def test_the_key_is_the_documented_one() -> None:
    """RFC 4231, test case 2, cut to 16 bytes."""
    key = HmacSha256().key(b"what do ya want for nothing?", b"Jefe")
    assert key.hex() == "5bdcc146bf60754e6a042426089575c7"


def test_a_profile_from_toml_changes_what_it_names() -> None:
    profile = UdsProfile.from_mapping(
        {
            "padding": 0x55,
            "timing": {"erase_s": 3},
            "memory": {"slot": [0x0802_0000, 0x0808_0000], "sectors": [16384] * 4 + [65536] + [131072] * 3},
        }
    )
    assert profile.padding == 0x55
    assert profile.timing == UdsTiming(erase_s=3)
    assert profile.memory.slot == MemoryRange(start=0x0802_0000, end=0x0808_0000)
    assert UdsProfile.from_mapping({}) == UdsProfile()


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"paddding": 1}, "profile.paddding"),
        ({"padding": 256}, "profile.padding"),
        ({"padding": "CC"}, "profile.padding"),
        ({"security_level": 2}, "profile.security_level"),
        ({"security_level": 0x43}, "profile.security_level"),
        ({"security": "xor"}, "profile.security"),
        ({"timing": 5}, "profile.timing"),
        ({"timing": {"p3_s": 1}}, "profile.timing.p3_s"),
        ({"timing": {"p2_s": 0}}, "profile.timing.p2_s"),
        ({"timing": {"p2_s": -1}}, "profile.timing.p2_s"),
        ({"timing": {"p2_s": float("nan")}}, "profile.timing.p2_s"),
        ({"timing": {"p2_s": 1e9}}, "profile.timing.p2_s"),
        ({"timing": {"p2_s": "1"}}, "profile.timing.p2_s"),
        ({"timing": {"silent_tries": 1.5}}, "profile.timing.silent_tries"),
        ({"timing": {"silent_tries": True}}, "profile.timing.silent_tries"),
        ({"memory": {"flash": 1}}, "profile.memory.flash"),
        ({"memory": {"slot": 5}}, "profile.memory.slot"),
        ({"memory": {"slot": [1]}}, "profile.memory.slot"),
        ({"memory": {"slot": ["a", "b"]}}, "profile.memory.slot"),
        ({"memory": {"slot": [0x0801_0004, 0x0808_0000]}}, "profile.memory.slot"),
        ({"memory": {"slot": [0x0808_0000, 0x0801_0000]}}, "profile.memory.slot"),
        ({"memory": {"slot": [0x0800_8000, 0x0808_0000]}}, "profile.memory.slot"),
        ({"memory": {"slot": [0x0800_0000, 0x0801_0000]}}, "profile.memory.slot"),
        ({"memory": {"document": [0x0800_4000, 0x0800_8000]}}, "profile.memory.document"),
        ({"memory": {"ram": [2, 1]}}, "profile.memory.ram"),
        ({"memory": {"sectors": []}}, "profile.memory.sectors"),
        ({"memory": {"sectors": [0]}}, "profile.memory.sectors"),
        ({"memory": {"word_bytes": 3}}, "profile.memory.word_bytes"),
        ({"memory": {"flash_start": "0"}}, "profile.memory.flash_start"),
    ],
)
def test_a_bad_profile_names_its_key(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        UdsProfile.from_mapping(given)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"slots": 3}, "profile.slots"),
        ({"image": "elf"}, "profile.image"),
        ({"proof": "crc"}, "profile.proof"),
        ({"compression": "lzss"}, "profile.compression"),
        ({"block_bytes": 4096}, "profile.block_bytes"),
        ({"block_bytes": 2}, "profile.block_bytes"),
        ({"block_bytes": True}, "profile.block_bytes"),
        ({"erase_request_bytes": 0}, "profile.erase_request_bytes"),
        ({"erased_run_bytes": -1}, "profile.erased_run_bytes"),
        ({"dtc_off": 1}, "profile.dtc_off"),
        ({"slots": 2}, "profile.memory.document"),
        ({"routines": {"erase": False}}, "profile.erased_run_bytes"),
        ({"routines": {"check_memory": False}}, "profile.proof"),
        ({"routines": {"check_dependencies": False}}, "profile.routines.check_dependencies"),
        ({"routines": {"erase": 0x10000}}, "profile.routines.erase"),
        ({"routines": {"erase": True}}, "profile.routines.erase"),
        ({"routines": {"erase_answers": ["0"]}}, "profile.routines.erase_answers"),
        ({"routines": {"stop": 1}}, "profile.routines.stop"),
        ({"dids": {"kind": "F197"}}, "profile.dids.kind"),
        ({"dids": {"colour": 1}}, "profile.dids.colour"),
        ({"memory": {"slot": False}}, "profile.memory.slot"),
        ({"memory": {"sectors": False}}, "profile.memory.sectors"),
        ({"quiet_nodes": 5}, "profile.quiet_nodes"),
        ({"quiet_nodes": [5]}, "profile.quiet_nodes"),
        ({"quiet_nodes": [{"tx_id": 1}]}, "profile.quiet_nodes"),
        ({"quiet_nodes": [{"tx_id": 1, "rx_id": 1}]}, "profile.quiet_nodes"),
        ({"quiet_nodes": [{"tx_id": 1, "rx_id": 0x800}]}, "profile.quiet_nodes"),
        ({"quiet_nodes": [{"tx_id": "1", "rx_id": 2}]}, "profile.quiet_nodes"),
        ({"quiet_nodes": [{"tx_id": 1, "rx_id": 2}, {"tx_id": 2, "rx_id": 3}]}, "profile.quiet_nodes"),
        ({"quiet_nodes": [{"tx_id": n, "rx_id": n + 256} for n in range(40)]}, "profile.quiet_nodes"),
    ],
)
def test_bad_services_of_a_profile_name_their_key(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        UdsProfile.from_mapping(given)


def test_false_is_what_an_ecu_has_not() -> None:
    profile = UdsProfile.from_mapping(
        {
            "proof": "read",
            "dids": {"kind": False, "version": 0xF195},
            "routines": {"check_dependencies": False, "check_memory": False, "erase_answers": ["01"]},
            "memory": {"document": False, "bootloader": False},
            "quiet_nodes": [{"tx_id": 0x7E1, "rx_id": 0x7E9}],
        }
    )
    assert (profile.dids.kind, profile.dids.version, profile.dids.hardware) == (None, 0xF195, 0xF191)
    assert not profile.has_document
    assert profile.capabilities.trust_class is TrustClass.GATEWAY_ONLY
    assert profile.capabilities.never_erased == ()
    assert [node.tx_id for node in profile.quiet_nodes] == [0x7E1]


def test_what_a_table_leaves_out_is_as_in_its_family() -> None:
    esp = UdsProfile.from_mapping({"timing": {"boot_s": 30}}, base=PROFILES["esp32-uds"])
    assert esp.slots == 2
    assert esp.memory == PROFILES["esp32-uds"].memory
    assert (esp.timing.boot_s, esp.timing.erase_s) == (30, UdsTiming().erase_s)


def test_sectors_of_a_slot() -> None:
    memory = MemoryMap()
    starts = [0x0801_0000, 0x0802_0000, 0x0804_0000, 0x0806_0000]
    for length, count in ((1, 1), (65536, 1), (65537, 2), (448 * 1024, 4), (2**30, 4)):
        assert [s.start for s in memory.sectors_of(memory.slot, length)] == starts[:count]
    assert memory.document is not None
    assert memory.sectors_of(memory.document, 100) == [memory.document]
